"""Files that callers put into the bucket by a URL, until UploadImage claims them.

Two objects lie under `uploads/{tenant}/{upload}` of the store. `open` says that the upload may be claimed; CreateUpload
writes it, and it is deleted first, so that each upload is claimed once, whatever is put there afterwards. `file` is
what the caller put there. What nobody claims is swept.
"""

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.admission import of_tenant
from gateway.images import Images, too_large
from gateway.names import DEFAULT_TENANT, Name, missing, new_id, parse, parse_parent
from gateway.stored_bytes import StoredBytes
from gateway.uploads import Upload
from unitune import store_paths
from unitune.errors import FailedPrecondition, InvalidArgument
from unitune.object_store import ObjectStore
from unitune.picture_header import MAX_BYTES
from unitune.v1 import image_pb2

URL_S = 900.0  # for which the URL is good
KEPT_S = 3600.0  # from CreateUpload
MAX_OPEN = 32  # of one tenant
RETRY_S = 60.0
OPEN, FILE = "open", "file"


class SignedUploads:
    """The uploads of all tenants in one store."""

    def __init__(self, store: ObjectStore, images: Images, storage: StoredBytes) -> None:
        self._store, self._images, self._storage = store, images, storage

    async def create(self, request: image_pb2.CreateUploadRequest) -> image_pb2.Upload:
        """A new upload.

        Raises FailedPrecondition (NO_SIGNED_URLS), ResourceExhausted (TENANT_UPLOAD_LIMIT, TENANT_STORAGE_LIMIT).
        """
        tenant = parse_parent(request.parent) or DEFAULT_TENANT
        name = Name(tenant, store_paths.UPLOADS, new_id("u"))
        url = await self._store.answer(self._store.sign, "PUT", f"{_path(name)}/{FILE}", URL_S)
        async with self._images.holding(Name(tenant, store_paths.UPLOADS, "")):  # one at a time, or all would fit
            await self._admit(tenant)
            await self._store.answer(self._store.put, f"{_path(name)}/{OPEN}", b"")
        upload = image_pb2.Upload(name=str(name), url=url)
        upload.expire_time.FromMicroseconds(round((time.time() + URL_S) * 1e6))
        return upload

    async def _admit(self, tenant: str) -> None:
        """Raise ResourceExhausted unless a tenant may have a further upload."""
        # What lies in uploads of this tenant may still become pictures.
        prefix = f"{store_paths.UPLOADS}/{tenant}"
        waiting = await self._store.answer(self._store.list, prefix)
        if sum(path.endswith(f"/{OPEN}") for path in waiting) >= MAX_OPEN:
            message = f"{MAX_OPEN} uploads of this tenant are not claimed: name them in UploadImage, or wait an hour"
            raise of_tenant(tenant, MAX_OPEN, message, "TENANT_UPLOAD_LIMIT", RETRY_S)
        refused = await self._storage.refusal(tenant, await self._store.answer(self._store.size_bytes, prefix))
        if refused is not None:
            raise refused

    @asynccontextmanager
    async def claimed(self, upload: str, into: Upload) -> AsyncIterator[str]:
        """The SHA-256 of the file of an upload, whose bytes are added to `into`. After the block it is gone, also if
        its bytes were refused; after another error it may be claimed again.

        Raises NotFound (UPLOAD_NOT_FOUND), FailedPrecondition (UPLOAD_EMPTY), InvalidArgument (UPLOAD_TOO_LARGE), and
        ResourceExhausted as `Upload.add` does.
        """
        name = parse(upload, store_paths.UPLOADS, "header.upload")
        async with self._images.holding(name):
            times = await self._store.answer(self._store.times, _path(name))
            if times.get(f"{_path(name)}/{OPEN}", 0.0) < time.time() - KEPT_S:
                raise missing(name)
            try:
                digest = await self._take(name, into)
                yield digest
            except InvalidArgument:
                await self._discard(name)
                raise
            await self._discard(name)

    async def sweep(self) -> None:
        """Delete what was not claimed in time."""
        newest: dict[Name, float] = {}
        for path, time_s in (await self._store.answer(self._store.times, store_paths.UPLOADS)).items():
            of = store_paths.read_upload(path)
            if of is not None:
                name = Name(of[0], store_paths.UPLOADS, of[1])
                newest[name] = max(newest.get(name, 0.0), time_s)
        for name, time_s in newest.items():
            if time_s < time.time() - KEPT_S:
                await self._discard(name)

    async def _take(self, name: Name, into: Upload) -> str:
        path = f"{_path(name)}/{FILE}"
        try:
            size_bytes = await self._store.answer(self._store.file_bytes, path)
            if size_bytes > MAX_BYTES:
                raise too_large(f"{size_bytes} bytes")
            into.check(size_bytes)
            data, digest = await self._store.answer(self._read, path)
        except FileNotFoundError:
            raise FailedPrecondition(
                f"nothing was put into {name} yet: PUT the picture's file to its url first",
                reason="UPLOAD_EMPTY",
                metadata={"name": str(name)},
            ) from None
        if len(data) > MAX_BYTES:
            raise too_large(f"{len(data)} bytes")
        into.add(data)
        return digest

    def _read(self, path: str) -> tuple[bytes, str]:
        data = self._store.get_first(path, MAX_BYTES + 1)  # the URL may still be used, for a file of any size
        return data, hashlib.sha256(data).hexdigest()

    async def _discard(self, name: Name) -> None:
        for part in (OPEN, FILE):
            await self._store.answer(self._store.delete, f"{_path(name)}/{part}")


def _path(name: Name) -> str:
    return store_paths.upload_path(name.tenant, name.id)
