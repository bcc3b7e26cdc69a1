"""Uploads: what is kept, under which name, and that nothing is left of one that is refused."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody

from tests.configs import sampling_config
from tests.full_disk import fill, mounted, read_only
from tests.gateway.conftest import World, picture, refused, sha256
from unitune.images import MAX_CHUNK_BYTES
from unitune.picture_header import MAX_BYTES
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.image_pb2 import (
    DeleteImageRequest,
    GetImageRequest,
    Image,
    ListImagesRequest,
    UploadImageRequest,
)

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


async def test_a_file_as_http_hands_it_over_is_the_same_picture(world: World) -> None:
    """Its first piece beside the header, an empty one at its end."""
    data = picture(size=(9, 9))
    pieces = [HttpBody(content_type="image/png", data=data[:10]), HttpBody(data=data[10:]), HttpBody()]
    first, *others = (UploadImageRequest(file=piece) for piece in pieces)
    first.header.parent = "tenants/default"
    assert await send(world, first, *others) == await world.upload(data)


async def test_tenants_do_not_share_pictures(world: World) -> None:
    """The same file of two tenants is kept twice, so that each can delete its own."""
    one, two = await world.upload(picture()), await world.upload(picture(), parent="tenants/acme")
    assert two.name == f"tenants/acme/images/{one.sha256}" and len(world.stored()) == 4


HEADER = UploadImageRequest(header=Header())
CHUNK = UploadImageRequest(chunk=b"x")
FILE = UploadImageRequest(file=HttpBody(data=b"x"))


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "header"),
        ([CHUNK], "header"),
        ([HEADER, HEADER], "header"),
        ([FILE], "header"),
        ([UploadImageRequest(header=Header(parent="acme"), file=FILE.file)], "parent"),
        ([HEADER, UploadImageRequest(chunk=b"x", file=FILE.file)], "file"),
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


async def test_a_damaged_picture_is_data_loss_until_it_is_uploaded_again(world: World) -> None:
    """A file cut short, other JSON, a circle of links: DATA_LOSS, and the next upload heals it (r16)."""
    data = picture("navy")
    image = await world.upload(data)
    folder = world.folder / "store" / "images" / "default" / image.sha256
    about = (folder / "image.json").read_bytes()
    for part, damage in (
        ("image.json", about[: len(about) // 2]),
        ("image.json", b""),
        ("image.json", b"[]"),
        ("image.json", b'{"create_s": 1e400}'),
        ("image.json", about.replace(b"}", b', "other": 1}')),
        ("file", data[:40]),
        ("image.json", None),
        ("file", None),
    ):
        (folder / part).unlink()
        if damage is None:
            (folder / part).symlink_to(part)
        else:
            (folder / part).write_bytes(damage)
        reason = "STORE_CORRUPT" if damage is None else "IMAGE_CORRUPT"
        call = world.edits.Edit(EditRequest(image=image.name, prompt="a dog", config=sampling_config(method="sdedit")))
        await refused(call, grpc.StatusCode.DATA_LOSS, reason)
        assert (await world.upload(data)).name == image.name
        request = EditRequest(image=image.name, prompt="a dog", config=sampling_config(method="sdedit"))
        assert [event async for event in world.edits.Edit(request)][-1].HasField("done")


async def test_a_store_that_is_full_says_so(world: World, tmp_path: Path) -> None:
    """An upload into a full store is RESOURCE_EXHAUSTED with RetryInfo, leaves nothing, and works later (r6)."""
    (tmp_path / "store").rename(tmp_path / "old")
    with mounted(tmp_path / "store", "1m"):
        ballast = fill(tmp_path / "store")
        error = await refused(world.upload(picture()), grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
        assert error.retry_after_s and world.stored() == ["ballast"]
        ballast.unlink()
        assert (await world.upload(picture())).size_bytes == len(picture())


async def test_a_store_that_cannot_be_written_says_so(world: World) -> None:
    """An upload into a store that can only be read is UNAVAILABLE with RetryInfo (r6)."""
    with read_only(world.folder / "store"):
        error = await refused(world.upload(picture()), grpc.StatusCode.UNAVAILABLE, "STORE_DOWN")
    assert error.retry_after_s


async def test_pictures_are_found_and_listed(world: World) -> None:
    """One by its name, those of a tenant in pages, in the order of the names and without repetition; a damaged one is
    listed as such, and one that is deleted or of another tenant is not."""
    uploaded = [await world.upload(picture(colour)) for colour in ("red", "green", "blue", "navy", "teal")]
    theirs = await world.upload(picture(), parent="tenants/acme")
    assert await world.images.GetImage(GetImageRequest(name=theirs.name)) == theirs
    await world.images.DeleteImage(DeleteImageRequest(name=uploaded[0].name))
    await refused(
        world.images.GetImage(GetImageRequest(name=uploaded[0].name)), grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND"
    )
    (world.folder / "store" / "images" / "default" / uploaded[1].sha256 / "image.json").write_text("damaged")
    found, token = [], ""
    while True:
        page = await world.images.ListImages(ListImagesRequest(page_size=2, page_token=token))
        assert len(page.images) <= 2
        found += page.images
        if not (token := page.next_page_token):
            break
    assert [image.name for image in found] == sorted(image.name for image in uploaded[1:])
    listed = {image.name: image for image in found}
    assert "damaged" in listed[uploaded[1].name].warnings[0]
    assert [listed[image.name] for image in uploaded[2:]] == uploaded[2:]
    for token in (theirs.name, "x"):
        call = world.images.ListImages(ListImagesRequest(page_token=token))
        await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "page_token")
    assert not (await world.images.ListImages(ListImagesRequest(parent="tenants/nobody"))).images
