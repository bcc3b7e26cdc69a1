"""Uploaded pictures: received in chunks, checked, kept under the digest of their bytes.

Two objects lie under `images/{tenant}/{sha256}` of the store. `file` is the picture as it came. `image.json` says what
is known of it. It is written last, so that a picture without it does not exist. Every upload of the same bytes renews
its time.
"""

import asyncio
import hashlib
import heapq
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from weakref import WeakValueDictionary

from google.protobuf.timestamp_pb2 import Timestamp

from gateway import validation
from gateway.fair_queue import FairQueue
from gateway.names import DEFAULT_TENANT, Name, missing, parse, parse_parent
from gateway.state import State
from gateway.stored_bytes import StoredBytes
from gateway.uploads import Upload
from gateway.usage import UsageCounts
from gateway.usage_records import Used
from unitune import images, store_paths
from unitune.errors import DataLoss, InvalidArgument, InvalidField, NotFound, ResourceExhausted, Unavailable
from unitune.object_store import ObjectStore
from unitune.picture_check import CHILDREN, PictureChecks
from unitune.picture_file import PictureInfo
from unitune.picture_header import MAX_BYTES, refusal
from unitune.v1.image_pb2 import Image, ListImagesRequest, ListImagesResponse, UploadImageRequest

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Images:
    """The pictures of all tenants in one store."""

    def __init__(self, store: ObjectStore, storage: StoredBytes, usage: UsageCounts, state: State) -> None:
        self._state = state
        self._store = store
        self._storage = storage
        self._usage = usage
        self._locks: WeakValueDictionary[Name, asyncio.Lock] = WeakValueDictionary()  # of pictures that somebody holds
        self._checks = PictureChecks()
        self._decoders = FairQueue(CHILDREN, CHILDREN)

    async def close(self) -> None:
        """End the processes that check pictures."""
        await self._checks.close()

    @asynccontextmanager
    async def holding(self, *names: Name) -> AsyncIterator[None]:
        """Hold these pictures for the block; nobody else, in any gateway, holds them meanwhile.

        For code that looks for a picture, or for its users, and then acts on what it found.
        """
        async with AsyncExitStack() as held:
            for name in sorted(set(names)):  # in one order, against deadlock
                await held.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
                await held.enter_async_context(self._state.holding(str(name)))
            yield

    async def check(self, tenant: str, data: bytes) -> PictureInfo:
        """What a picture's file holds, once it is the tenant's turn. Raises as `PictureChecks.picture` does."""
        async with self._decoders.place(tenant):
            return await self._checks.picture(data)

    async def check_mask(self, tenant: str, file: bytes | Name, picture: Image | PictureInfo, *, keeps: bool) -> None:
        """Raise InvalidArgument for `mask` as `PictureChecks.mask` does, for a mask of another size than the picture's,
        and for a mask with which nothing would be edited. The name is that of an uploaded one, which raises as `read`.

        With `keeps` white is kept, not edited.
        """
        async with self._decoders.place(tenant):
            mask = await self._checks.mask(file if isinstance(file, bytes) else await self.read(file))
        images.check_mask_size(mask.width, mask.height, (picture.height, picture.width))
        if mask.darkest == 255 if keeps else mask.brightest == 0:
            edited, kept = ("black", "white") if keeps else ("white", "black")
            raise InvalidField("mask", f"all {kept}", f"make {edited} what is to be edited; nothing is")

    async def keep(self, tenant: str, data: bytes) -> Image:
        """Check a picture and keep it. If it is there already, undamaged, only its time is renewed.

        Raises as `check` does, and ResourceExhausted (TENANT_STORAGE_LIMIT) for a new one.
        """
        name = Name(tenant, "images", hashlib.sha256(data).hexdigest())
        async with self.holding(name):
            try:
                there = await self.find(name)
                await self.read(name)
                # The picture is there, even if the store takes nothing now.
                with suppress(ResourceExhausted, Unavailable):
                    await self._store.answer(self._store.renew, f"{_path(name)}/image.json")
                return there
            except NotFound:
                pass
            except DataLoss:
                await self.discard(name)
        async with self._storage.storing(tenant, len(data)):
            info = await self.check(tenant, data)
            facts = {**asdict(info), "size_bytes": len(data), "create_s": time.time()}
            await self._store.answer(self._write, name, data, json.dumps(facts).encode())
        self._usage.count(tenant, Used(images=1))
        return await self.find(name)

    async def find(self, name: Name) -> Image:
        """A picture's resource. Raises NotFound (IMAGE_NOT_FOUND), DataLoss (IMAGE_CORRUPT)."""
        try:
            text = await self._store.answer(self._store.get, f"{_path(name)}/image.json")
        except FileNotFoundError:
            raise missing(name) from None
        create_time = Timestamp()
        try:
            facts = json.loads(text)
            create_time.FromMicroseconds(round(facts.pop("create_s") * 1e6))
            return Image(name=str(name), sha256=name.id, create_time=create_time, **facts)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            raise _damaged(name) from None

    async def page(self, request: ListImagesRequest) -> ListImagesResponse:
        """One page of a tenant's pictures, in the order of their names. Raises InvalidField."""
        tenant = parse_parent(request.parent) or DEFAULT_TENANT
        size, after = validation.check_page_size(request.page_size), ""
        if request.page_token:
            last = parse(request.page_token, "images", "page_token")
            if last.tenant != tenant:
                remedy = "use next_page_token of an answer to the same parent"
                raise InvalidField("page_token", request.page_token, remedy)
            after = last.id
        paths = await self._store.answer(self._store.list, f"{store_paths.IMAGES}/{tenant}")
        found = {of[1] for path in paths if path.endswith("/image.json") and (of := store_paths.read_image(path))}
        names = [Name(tenant, "images", one) for one in heapq.nsmallest(size + 1, (x for x in found if x > after))]
        listed = [await self._listed(name) for name in names[:size]]
        token = str(names[size - 1]) if len(names) > size else ""
        return ListImagesResponse(images=filter(None, listed), next_page_token=token)

    async def _listed(self, name: Name) -> Image | None:
        """A picture as a list has it, damaged ones, too; None if it is gone meanwhile."""
        try:
            return await self.find(name)
        except NotFound:
            return None
        except DataLoss as error:
            return Image(name=str(name), sha256=name.id, warnings=[error.message])

    async def read(self, name: Name) -> bytes:
        """A picture's file. Raises NotFound (IMAGE_NOT_FOUND), DataLoss (IMAGE_CORRUPT)."""
        try:
            data, digest = await self._store.answer(self._read, name)
        except FileNotFoundError:
            raise missing(name) from None
        if digest != name.id:
            raise _damaged(name)
        return data

    async def time_of(self, name: Name) -> float:
        """When a picture was uploaded last, in Unix seconds; 0 if it is not there."""
        return max((await self._store.answer(self._store.times, _path(name))).values(), default=0.0)

    async def discard(self, name: Name) -> None:
        """Delete a picture, or what a failed upload left of it, if it is there."""
        for path in (f"{_path(name)}/image.json", _file(name)):
            await self._store.answer(self._store.delete, path)

    def _read(self, name: Name) -> tuple[bytes, str]:
        """A picture's file and its SHA-256. It takes some milliseconds, so it runs outside of the event loop."""
        data = self._store.get(_file(name))
        return data, hashlib.sha256(data).hexdigest()

    def _write(self, name: Name, data: bytes, facts: bytes) -> None:
        self._store.put(_file(name), data)
        self._store.put(f"{_path(name)}/image.json", facts)


async def receive(
    requests: AsyncIterator[UploadImageRequest], upload: Upload, admit: Callable[[str], None]
) -> tuple[str, UploadImageRequest.Header]:
    """An upload's tenant and header; its bytes are in `upload`, in memory only. `admit` takes the tenant in, or raises.

    With the name of a signed upload none come. Raises InvalidField for a message out of place, InvalidArgument for
    UPLOAD_TOO_LARGE and DIGEST_MISMATCH, and ResourceExhausted as `Upload.add` does.
    """
    tenant, header = DEFAULT_TENANT, None
    digest = hashlib.sha256()
    async for request in requests:
        if request.WhichOneof("part") == "header":
            if header is not None:
                raise InvalidField("header", "a second one", "send it once, before the chunks")
            header = request.header
            tenant = _tenant_of(header)
            admit(tenant)
            _check_header(header)
            if not request.HasField("file"):
                continue
        if header is None:
            raise InvalidField("header", "missing", "the first message of an upload is its header")
        piece = _piece(request)
        if header.upload and piece:
            raise InvalidField("header.upload", header.upload, "send no bytes beside it: it has the file")
        if upload.size_bytes + len(piece) > MAX_BYTES:
            raise too_large(f"more than {MAX_BYTES} bytes")
        upload.add(piece)
        digest.update(piece)
    if header is None:
        raise InvalidField("header", "missing", "the first message of an upload is its header")
    if not header.upload:
        check_announced(header, upload.size_bytes, digest.hexdigest())
    return tenant, header


def check_announced(header: UploadImageRequest.Header, size_bytes: int, sha256: str) -> None:
    """Raise InvalidArgument (INVALID_FIELD, DIGEST_MISMATCH) unless a file is the announced one."""
    if header.size_bytes and header.size_bytes != size_bytes:
        raise InvalidField("header.size_bytes", header.size_bytes, f"but {size_bytes} bytes came")
    if header.sha256 and header.sha256.lower() != sha256:
        remedy = "the bytes that came have another digest; send the file again"
        raise InvalidArgument.field_error("header.sha256", header.sha256, remedy, reason="DIGEST_MISMATCH")


def _tenant_of(header: UploadImageRequest.Header) -> str:
    """Whose the picture will be. Raises InvalidField."""
    tenant = parse_parent(header.parent)
    if header.upload:
        owner = parse(header.upload, store_paths.UPLOADS, "header.upload").tenant
        if tenant not in (None, owner):
            raise InvalidField("header.upload", header.upload, "it is of another tenant: leave header.parent unset")
        return owner
    return tenant or DEFAULT_TENANT


def _piece(request: UploadImageRequest) -> bytes:
    """The next bytes of the picture. Raises InvalidField."""
    if request.HasField("file"):
        if request.WhichOneof("part") == "chunk":
            raise InvalidField("file", f"{len(request.file.data)} bytes", "send them in chunk, or in file, not in both")
        return request.file.data  # as large as what hands over an HTTP request makes it, and empty at its end
    if not 1 <= len(request.chunk) <= images.MAX_CHUNK_BYTES:
        raise InvalidField("chunk", f"{len(request.chunk)} bytes", f"send 1 to {images.MAX_CHUNK_BYTES} bytes each")
    return request.chunk


def _check_header(header: UploadImageRequest.Header) -> None:
    if header.size_bytes < 0:
        raise InvalidField("header.size_bytes", header.size_bytes, "it must be the file's size, or 0 if unknown")
    if header.size_bytes > MAX_BYTES:
        raise too_large(f"{header.size_bytes} bytes")
    if header.sha256 and not _SHA256.fullmatch(header.sha256):
        raise InvalidField("header.sha256", header.sha256, "it must be 64 hexadecimal digits, or empty")


def too_large(value: str) -> InvalidArgument:
    """The error of a file of so many bytes."""
    return refusal("image", "UPLOAD_TOO_LARGE", value, f"send a file of at most {MAX_BYTES} bytes")


def _damaged(name: Name) -> DataLoss:
    return DataLoss(
        f"the stored image {name} is damaged; upload it again", reason="IMAGE_CORRUPT", metadata={"name": str(name)}
    )


def _path(name: Name) -> str:
    return store_paths.image_path(name.tenant, name.id)


def _file(name: Name) -> str:
    return store_paths.image_file_path(name.tenant, name.id)
