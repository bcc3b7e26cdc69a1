"""The weights of tunings in the store, as the gateway sees them: named, verified, deleted."""

from gateway.names import parse
from unitune import store_paths
from unitune.errors import DataLoss
from unitune.object_store import ObjectStore
from unitune.v1.tuning_pb2 import WeightsRef
from unitune.weights import MANIFEST_FILE, Manifest


class WeightFiles:
    """The weights of all tunings in one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def path(self, name: str, attempt: int) -> str:
        """Where an attempt of a tuning puts its weights."""
        parts = parse(name, "tunings")
        return store_paths.weights_path(parts.tenant, parts.id, attempt)

    def checkpoint_path(self, name: str, attempt: int, update: int) -> str:
        """Where an attempt of a tuning puts its checkpoint after so many updates."""
        return store_paths.checkpoint_path(self.path(name, attempt), update)

    async def verify(self, weights: WeightsRef) -> None:
        """Raise DataLoss (WEIGHTS_CORRUPT, WEIGHTS_MISSING) unless the store has a manifest that says the same."""
        try:
            data = await self._store.answer(self._store.get, f"{weights.path}/{MANIFEST_FILE}")
        except FileNotFoundError:
            raise DataLoss("the tuner left no weights in the store", reason="WEIGHTS_MISSING") from None
        manifest = Manifest.from_json(data)
        if (manifest.digest, manifest.key) != (weights.digest, weights.key):
            raise DataLoss("the stored weights are not those that the tuner announced", reason="WEIGHTS_CORRUPT")

    async def discard(self, name: str, *, keep: str = "") -> None:
        """Delete all that the attempts of a tuning left, except the weights under the path `keep`."""
        await self._store.answer(self._store.discard, _folder(name), keep=keep)
        if keep:
            for path in filter(store_paths.is_checkpoint, await self._store.answer(self._store.list, keep)):
                await self._store.answer(self._store.delete, path)


def _folder(name: str) -> str:
    parts = parse(name, "tunings")
    return store_paths.tuning_path(parts.tenant, parts.id)
