"""Reads the weights files of a store for one base model."""

import threading
from dataclasses import replace

from unitune.errors import FailedPrecondition
from unitune.object_store import ObjectStore
from unitune.weights import TunedWeights

# Of embeddings and probes in memory. An embedding of Stable Diffusion is a quarter of a megabyte; null-text has one for
# each step.
EXTRAS_BYTES = 128 << 20


class StoredWeights:
    """Keeps everything that it reads except the tensors, so that a warm edit reads no file. Thread-safe."""

    def __init__(self, store: ObjectStore, base_model: str) -> None:
        """`base_model` is the digest of the base model."""
        self._store, self._base_model = store, base_model
        self._kept: dict[str, TunedWeights] = {}  # by digest, without the denoiser's tensors
        self._lock = threading.Lock()

    def read(self, path: str, digest: str) -> TunedWeights:
        """The whole file. Raises what `ObjectStore.get_weights` raises."""
        tuned = self._store.get_weights(path, digest)
        with self._lock:
            self._kept[digest] = replace(tuned, tensors={})
            while len(self._kept) > 1 and sum(map(_extras_bytes, self._kept.values())) > EXTRAS_BYTES:
                del self._kept[next(iter(self._kept))]
        return tuned

    def extras(self, path: str, digest: str) -> TunedWeights:
        """Everything except the tensors. Raises FailedPrecondition (BASE_MODEL_MISMATCH), and as `read` does."""
        with self._lock:
            kept = self._kept.get(digest)
        kept = kept or self.read(path, digest)
        if kept.manifest.base_model != self._base_model:
            raise FailedPrecondition("the weights were tuned from another base model", reason="BASE_MODEL_MISMATCH")
        return kept

    def method(self, path: str, digest: str) -> str:
        """The tuning method. Raises what `ObjectStore.get_manifest` raises."""
        return self._store.get_manifest(path, digest).method

    def held(self) -> list[str]:
        """The digests of the weights of which anything is kept."""
        with self._lock:
            return list(self._kept)

    def forget(self, digest: str) -> None:
        """Read the file again the next time."""
        with self._lock:
            self._kept.pop(digest, None)


def _extras_bytes(tuned: TunedWeights) -> int:
    return sum(array.nbytes for array in (tuned.probe_tuned, tuned.probe_base, *tuned.extras.values()))
