"""Where weights and uploaded images lie: a folder by default, a bucket by URL.

obstore has one interface to local folders, memory, S3, GCS and Azure, with a create-only put, and needs no daemon.
"""

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import obstore
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from unitune import metrics, store_paths, telemetry
from unitune.errors import (
    STORE_DOWN,
    STORE_PATH,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    UniTuneError,
)
from unitune.system_errors import RETRY_DOWN_S, sentence, store_error
from unitune.weights import MANIFEST_FILE, WEIGHTS_FILE, Manifest, TunedWeights, unpack

logger = logging.getLogger(__name__)

RETRIES_S = 20.0  # of a bucket; obstore's default of three minutes is longer than any caller waits
ANSWER_S = 60.0  # for one call, a picture of 16 MiB at most
THREADS = 16  # each call to a network disk that hangs occupies one
SIGNERS = (S3Store, GCSStore, AzureStore)

P = ParamSpec("P")
T = TypeVar("T")

_UNFINISHED = re.compile(r".+#\d+")


class ObjectStore:
    """Bytes by path, and tuned weights on top. Thread-safe; blocking calls.

    Every call may raise ResourceExhausted (STORE_FULL), Unavailable (STORE_DOWN), DataLoss (STORE_CORRUPT) if something
    is not a file, and InvalidField for a path that no object can have (`unitune.store_paths`), such as one that leaves
    the store. The log names the path and the system's reason; the error does not.
    """

    def __init__(self, url: str, signed_endpoint: str = "") -> None:
        """Open a store. A plain path means a local folder, made if it is missing, mode 0700. `signed_endpoint` is the
        bucket's address in URLs for others, where it is not that of this process.

        Raises OSError naming the setting when it cannot be used.
        """
        self._url = url
        self._folder = None if "://" in url else Path(url).resolve()
        try:
            self._store: obstore.store.ObjectStore = self._open(url)
            self._signer = self._open(url, endpoint=signed_endpoint) if signed_endpoint else self._store
        except Exception as error:  # obstore raises many kinds; the first line of each says enough
            reason = sentence(error) if isinstance(error, OSError) else _first_line(error)
            raise OSError(f"UNITUNE_STORE is {url!r}: {reason}") from error
        self._threads = ThreadPoolExecutor(THREADS, "store")

    def _open(self, url: str, **config: Any) -> obstore.store.ObjectStore:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            url = self._folder.as_uri()
        return from_url(url, **config, retry_config={"retry_timeout": timedelta(seconds=RETRIES_S)})

    def check_create_only(self) -> None:
        """Raise OSError, naming the setting, for a bucket that writes over what is there: it would not keep what was
        promised. One that does not answer now is not checked; the log says why.

        It writes one object, and deletes it.
        """
        if self._folder is not None:
            return
        path = f"probe/{secrets.token_hex(8)}"
        try:
            with _translated_errors():
                try:
                    for data in (b"first", b"second"):
                        obstore.put(self._store, path, data, mode="create")
                except (obstore.exceptions.NotSupportedError, NotImplementedError):
                    pass
                except obstore.exceptions.AlreadyExistsError:
                    return
        except UniTuneError:
            return
        finally:
            with suppress(UniTuneError):  # a rule of the bucket deletes it then: k8s/bucket/lifecycle.json
                self.delete(path)
        raise OSError(
            f"UNITUNE_STORE is {self._url!r}: it writes over objects that are there; "
            "use a bucket with conditional writes (If-None-Match), and leave AWS_CONDITIONAL_PUT unset"
        )

    async def answer(self, call: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> T:
        """Make one of the calls below on a thread. Raises Unavailable (STORE_DOWN) if it takes too long."""
        try:
            async with asyncio.timeout(ANSWER_S):
                work = asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*arguments, **options))
                return await work
        except TimeoutError:
            telemetry.event(logger, "store failed", level=logging.ERROR, detail=f"no answer within {ANSWER_S:g} s")
            metrics.STORE_ERRORS.labels(STORE_DOWN).inc()
            raise Unavailable(
                "the store of the server does not answer: try again", reason=STORE_DOWN, retry_after_s=RETRY_DOWN_S
            ) from None

    def put(self, path: str, data: bytes) -> None:
        """Create an object. An existing one keeps its bytes (paths are named by content or are unique)."""
        store_paths.check_object(path)
        with _translated_errors():
            try:
                obstore.put(self._store, path, data, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return

    def get(self, path: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""
        store_paths.check_object(path)
        with _translated_errors():
            return bytes(obstore.get(self._store, path).bytes())

    def has(self, path: str) -> bool:
        """Whether the object exists."""
        store_paths.check_object(path)
        with _translated_errors():
            try:
                obstore.head(self._store, path)
            except FileNotFoundError:
                return False
            return True

    def sign(self, method: Literal["GET", "PUT"], path: str, expires_s: float) -> str:
        """A URL for whoever has it to GET or PUT the object, for so many seconds.

        Raises FailedPrecondition (NO_SIGNED_URLS) for a store that has none.
        """
        store_paths.check_object(path)
        if self._folder is not None or not isinstance(self._signer, SIGNERS):
            raise FailedPrecondition(
                "this server's store is no bucket that gives URLs to others: send the file to UploadImage, and get "
                "pictures without image_urls",
                reason="NO_SIGNED_URLS",
            )
        with _translated_errors():
            return obstore.sign(self._signer, method, path, timedelta(seconds=expires_s))

    def get_first(self, path: str, most_bytes: int) -> bytes:
        """The object's first bytes, at most so many. Raises FileNotFoundError."""
        store_paths.check_object(path)
        with _translated_errors():
            return bytes(obstore.get(self._store, path, options={"range": (0, most_bytes)}).bytes())

    def file_bytes(self, path: str) -> int:
        """The size of one object. Raises FileNotFoundError."""
        store_paths.check_object(path)
        with _translated_errors():
            return int(obstore.head(self._store, path)["size"])

    def delete(self, path: str) -> None:
        """Delete an object, if it exists."""
        store_paths.check_object(path)
        with _translated_errors():
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                return

    def list(self, prefix: str) -> list[str]:
        """All paths below a prefix; the empty prefix is the whole store."""
        return list(self.times(prefix))

    def times(self, prefix: str) -> dict[str, float]:
        """All paths below a prefix, each with the Unix time of its last write, by the store's clock."""
        if prefix:
            store_paths.check_object(prefix)
        with _translated_errors():
            pages = obstore.list(self._store, prefix)
            return {meta["path"]: meta["last_modified"].timestamp() for page in pages for meta in page}

    def size_bytes(self, prefix: str) -> int:
        """The bytes of all objects below a prefix."""
        store_paths.check_object(prefix)
        with _translated_errors():
            return sum(meta["size"] for page in obstore.list(self._store, prefix) for meta in page)

    def renew(self, path: str) -> None:
        """Write an object's bytes again, so that its time is now. Raises FileNotFoundError."""
        data = self.get(path)
        with _translated_errors():
            obstore.put(self._store, path, data)

    def delete_unfinished(self, before_s: float) -> int:
        """Delete unfinished files of a local folder that were started before a Unix time; their number.

        An object's bytes are first written into a file beside it, named by it, "#" and a number, which is not listed.
        A process that was killed leaves that file. Buckets forget unfinished uploads by rules of their own.
        """
        if self._folder is None:
            return 0
        count = 0
        # os.walk ignores folders that vanish meanwhile.
        for path in (Path(folder) / name for folder, _, names in os.walk(self._folder) for name in names):
            with suppress(FileNotFoundError):
                if _UNFINISHED.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < before_s:
                    path.unlink()
                    count += 1
        return count

    def discard(self, prefix: str, *, keep: str = "") -> None:
        """Delete all that lies below a prefix, manifests first, except below `keep`.

        In a local folder this also deletes unfinished files, links and empty folders.
        """
        store_paths.check_object(prefix)
        if self._folder is None:
            found = [path for path in self.list(prefix) if not (keep and path.startswith(f"{keep}/"))]
            for path in sorted(found, key=_manifests_first):
                self.delete(path)
            return
        with _translated_errors():
            _empty(self._folder / prefix, kept=self._folder / keep if keep else None)

    def put_weights(self, path: str, data: bytes, manifest: Manifest) -> None:
        """Write weights, then their manifest. Weights without a manifest do not exist."""
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
        """Read only the manifest. Raises DataLoss as `get_weights` does."""
        try:
            manifest = Manifest.from_json(self.get(f"{path}/{MANIFEST_FILE}"))
        except FileNotFoundError as error:
            raise _gone() from error
        if manifest.digest != digest:
            raise DataLoss("the stored weights are not those of the tuning", reason="WEIGHTS_CORRUPT")
        return manifest

    def delete_weights(self, path: str) -> None:
        """Delete weights, the manifest first, so that nobody starts to read them."""
        self.delete(f"{path}/{MANIFEST_FILE}")
        self.delete(f"{path}/{WEIGHTS_FILE}")


def _empty(folder: Path, kept: Path | None) -> None:
    """Delete a folder of the store and its contents, except what is below `kept`."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    walked = [(Path(path), folders, files) for path, folders, files in os.walk(folder, topdown=False)]
    found = [path / name for path, folders, files in walked for name in (*folders, *files)]
    gone = [path for path in found if path.is_symlink() or not path.is_dir()]
    for path in sorted(gone, key=lambda path: _manifests_first(path.name)):
        if kept is None or kept not in path.parents:
            path.unlink(missing_ok=True)
    for path, _, _ in walked:
        with suppress(OSError):  # not empty: it holds something kept, or a new file
            path.rmdir()


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate errors of obstore and of the system, except FileNotFoundError, which is an answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ValueError, TypeError) as error:  # obstore's, for an invalid path
        raise InvalidArgument("the path is none of the store", reason=STORE_PATH) from error
    except Exception as error:
        telemetry.event(logger, "store failed", level=logging.ERROR, detail=_first_line(error))
        ours = store_error(error)
        metrics.STORE_ERRORS.labels(ours.reason).inc()
        raise ours from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _manifests_first(path: str) -> bool:
    """A sort key: manifests first, so that nobody starts to read weights that are being deleted."""
    return not path.endswith(MANIFEST_FILE)


def _gone() -> DataLoss:
    return DataLoss("the weights of this tuning are gone", reason="WEIGHTS_MISSING")
