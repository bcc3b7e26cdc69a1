"""Uploads: what is kept, under which name, and that nothing is left of one that is refused."""

from collections.abc import AsyncIterator

import grpc
import pytest

from tests.gateway.conftest import World, picture, refused, sha256
from unitune.images import MAX_CHUNK_BYTES
from unitune.picture_file import MAX_BYTES
from unitune.v1.image_pb2 import Image, UploadImageRequest

Header = UploadImageRequest.Header


async def send(world: World, *requests: UploadImageRequest) -> Image:
    """An upload of exactly these messages."""

    async def messages() -> AsyncIterator[UploadImageRequest]:
        for request in requests:
            yield request

    return await world.images.UploadImage(messages())


async def test_upload_is_named_by_its_bytes(world: World) -> None:
    """Name, size and kind are the file's; uploading it again answers alike and keeps the first time."""
    data = picture(kind="JPEG", size=(50, 20))
    image = await world.upload(data, sha256=sha256(data).upper(), size_bytes=len(data))
    assert image.name == f"tenants/default/images/{sha256(data)}" and image.sha256 == sha256(data)
    assert (image.width, image.height, image.media_type, image.size_bytes) == (50, 20, "image/jpeg", len(data))
    assert await world.upload(data) == image
    file = f"images/default/{image.sha256}/file"
    assert file in world.stored() and (world.folder / "store" / file).read_bytes() == data


async def test_chunk_sizes_make_no_difference(world: World) -> None:
    """One byte at a time or the largest chunk that is allowed."""
    data = picture(size=(9, 9))
    assert await world.upload(data, chunk_bytes=1) == await world.upload(data, chunk_bytes=MAX_CHUNK_BYTES)


async def test_tenants_do_not_share_pictures(world: World) -> None:
    """The same file of two tenants is kept twice, so that each can delete its own."""
    one, two = await world.upload(picture()), await world.upload(picture(), parent="tenants/acme")
    assert two.name == f"tenants/acme/images/{one.sha256}" and len(world.stored()) == 4


HEADER = UploadImageRequest(header=Header())
CHUNK = UploadImageRequest(chunk=b"x")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "header"),
        ([CHUNK], "header"),
        ([HEADER, HEADER], "header"),
        ([HEADER, UploadImageRequest(chunk=b"")], "chunk"),
        ([HEADER, UploadImageRequest(chunk=bytes(MAX_CHUNK_BYTES + 1))], "chunk"),
        ([UploadImageRequest(header=Header(parent="acme")), CHUNK], "parent"),
        ([UploadImageRequest(header=Header(parent="tenants/../x")), CHUNK], "parent"),
        ([UploadImageRequest(header=Header(size_bytes=-1)), CHUNK], "header.size_bytes"),
        ([UploadImageRequest(header=Header(size_bytes=2)), CHUNK], "header.size_bytes"),
        ([UploadImageRequest(header=Header(sha256="abc")), CHUNK], "header.sha256"),
    ],
)
async def test_upload_out_of_form_is_refused(world: World, messages: list[UploadImageRequest], field: str) -> None:
    """Each wrong message is refused naming the field, and nothing is kept."""
    await refused(send(world, *messages), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)
    assert world.stored() == [] and (await world.upload(picture())).width == 40


async def test_upload_with_another_digest_is_refused(world: World) -> None:
    """Bytes that are not the announced ones are not kept."""
    call = world.upload(picture("red"), sha256=sha256(picture("blue")))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH", "header.sha256")
    assert world.stored() == []


async def test_upload_that_is_too_large_is_refused(world: World) -> None:
    """Above 16 MiB an upload is refused at the header that announces it, or at the chunk that exceeds it."""
    announced = send(world, UploadImageRequest(header=Header(size_bytes=MAX_BYTES + 1)))
    error = await refused(announced, grpc.StatusCode.INVALID_ARGUMENT, "UPLOAD_TOO_LARGE", "image")
    assert str(MAX_BYTES + 1) in error.metadata["value"] and str(MAX_BYTES) in error.metadata["remedy"]
    chunks = [UploadImageRequest(chunk=bytes(MAX_CHUNK_BYTES))] * (MAX_BYTES // MAX_CHUNK_BYTES)
    sent = send(world, HEADER, *chunks, CHUNK)
    await refused(sent, grpc.StatusCode.INVALID_ARGUMENT, "UPLOAD_TOO_LARGE", "image")
    assert world.stored() == []
