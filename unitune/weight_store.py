"""Where weights and uploaded images lie: a folder by default, an object store by URL.

obstore gives one interface to local folders, memory, S3, GCS and Azure, with a create-only put;
nothing else we know of has both without a daemon.
"""

import contextlib
import re
from pathlib import Path

import obstore
from obstore.store import ObjectStore, from_url

from unitune import store_paths
from unitune.errors import DataLoss
from unitune.weights import MANIFEST_FILE, WEIGHTS_FILE, Manifest, TunedWeights, unpack

_UNFINISHED = re.compile(r".+#\d+")


class WeightStore:
    """Bytes by path, and tuned weights on top. Thread-safe; blocking calls.

    Every call raises InvalidField for a path that no object of the store has (`unitune.store_paths`), such as one that
    leaves it.
    """

    def __init__(self, url: str) -> None:
        """Open a store. A plain path means a local folder, made if it is missing, mode 0700.

        Raises OSError naming the setting when it cannot be used.
        """
        self._folder: Path | None = None if "://" in url else Path(url).resolve()
        try:
            self._store: ObjectStore = self._open(url)
        except Exception as error:  # obstore raises many kinds; the first line of each says enough
            raise OSError(f"UNITUNE_STORE is {url!r}: {str(error).splitlines()[0]}") from error

    @staticmethod
    def _open(url: str) -> ObjectStore:
        if "://" not in url:
            folder = Path(url).resolve()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            url = folder.as_uri()
        return from_url(url)

    def put(self, path: str, data: bytes) -> None:
        """Create an object; a path that exists keeps its bytes (paths are named by content or are unique)."""
        store_paths.check_object(path)
        try:
            obstore.put(self._store, path, data, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return

    def get(self, path: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""
        store_paths.check_object(path)
        return bytes(obstore.get(self._store, path).bytes())

    def has(self, path: str) -> bool:
        """Whether the object exists."""
        store_paths.check_object(path)
        try:
            obstore.head(self._store, path)
        except FileNotFoundError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is fine."""
        store_paths.check_object(path)
        try:
            obstore.delete(self._store, path)
        except FileNotFoundError:
            return

    def list(self, prefix: str) -> list[str]:
        """All paths below a prefix; the empty one has all."""
        return list(self.times(prefix))

    def times(self, prefix: str) -> dict[str, float]:
        """All paths below a prefix, with the Unix seconds in which each was written last, by the store's own clock."""
        if prefix:
            store_paths.check_object(prefix)
        pages = obstore.list(self._store, prefix)
        return {meta["path"]: meta["last_modified"].timestamp() for page in pages for meta in page}

    def renew(self, path: str) -> None:
        """Write an object's own bytes once more: its time is now. Raises FileNotFoundError."""
        obstore.put(self._store, path, self.get(path))

    def delete_unfinished(self, before_s: float) -> int:
        """Delete files of a local folder that were begun before a moment, in Unix seconds, and not finished; how many.

        An object's bytes are first put into a file beside it, named by it, "#" and a number, which no listing has.
        A process that was killed leaves it. Object stores forget unfinished uploads by rules of their own.
        """
        if self._folder is None:
            return 0
        count = 0
        for path in self._folder.rglob("*#*"):
            with contextlib.suppress(FileNotFoundError):
                if _UNFINISHED.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < before_s:
                    path.unlink()
                    count += 1
        return count

    def put_weights(self, path: str, data: bytes, manifest: Manifest) -> None:
        """Write weights, then their manifest: until the second is there the weights do not exist."""
        self.put(f"{path}/{WEIGHTS_FILE}", data)
        self.put(f"{path}/{MANIFEST_FILE}", manifest.to_json())

    def get_weights(self, path: str, digest: str) -> TunedWeights:
        """Read and check weights.

        Raises DataLoss (WEIGHTS_CORRUPT) when the digest is not the asked one or anything differs from the manifest,
        and DataLoss (WEIGHTS_MISSING) when there are none.
        """
        manifest = self.get_manifest(path, digest)
        try:
            data = self.get(f"{path}/{WEIGHTS_FILE}")
        except FileNotFoundError as error:
            raise _gone() from error
        return unpack(data, manifest)

    def get_manifest(self, path: str, digest: str) -> Manifest:
        """Read what weights promise, and not the weights. Raises DataLoss as `get_weights` does."""
        try:
            manifest = Manifest.from_json(self.get(f"{path}/{MANIFEST_FILE}"))
        except FileNotFoundError as error:
            raise _gone() from error
        if manifest.digest != digest:
            raise DataLoss("the stored weights are not those of the tuning", reason="WEIGHTS_CORRUPT")
        return manifest

    def delete_weights(self, path: str) -> None:
        """Delete the manifest first, so that nobody reads weights that are going."""
        self.delete(f"{path}/{MANIFEST_FILE}")
        self.delete(f"{path}/{WEIGHTS_FILE}")


def _gone() -> DataLoss:
    return DataLoss("the weights of this tuning are gone", reason="WEIGHTS_MISSING")
