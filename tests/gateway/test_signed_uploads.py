"""Files that go past the gateway: put into the bucket by a URL and claimed, and results that are fetched by one."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest

from gateway import signed_uploads, validation
from tests.bucket import Bucket
from tests.configs import sampling_config
from tests.gateway.callers import EDIT, Caller, make
from tests.gateway.conftest import World, edit, picture, refused, sha256
from unitune.v1.edit_pb2 import GetEditRequest
from unitune.v1.image_pb2 import CreateUploadRequest, Image, Upload, UploadImageRequest

Header = UploadImageRequest.Header
UNKNOWN = f"tenants/default/uploads/u-{32 * '0'}"


@pytest.fixture
async def on_bucket(world: World, bucket: Bucket) -> AsyncIterator[World]:
    """A gateway whose store is a bucket, which callers reach by another name than the gateway does."""
    await world.close()
    endpoint = bucket.environment["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost")
    world.config = replace(world.config, store=bucket.url, store_signed_endpoint=endpoint)
    await world.open()
    yield world


async def create(world: World, parent: str = "") -> Upload:
    """A new upload."""
    return await world.images.CreateUpload(CreateUploadRequest(parent=parent))


async def put(url: str, data: bytes) -> None:
    """PUT a file to a URL, without a credential."""
    request = urllib.request.Request(url, data, {"content-type": "application/octet-stream"}, method="PUT")
    await asyncio.to_thread(lambda: urllib.request.urlopen(request).close())


async def claim(world: World, upload: str, *others: UploadImageRequest, **header: object) -> Image:
    """The image of an upload's file."""
    requests = [UploadImageRequest(header=Header(upload=upload, **header)), *others]
    return await world.images.UploadImage(iter(requests), timeout=20)


def waiting(bucket: Bucket) -> list[str]:
    """What lies in uploads, by the last part of its path."""
    return [path.rpartition("/")[2] for path in bucket.paths() if path.startswith("unitune/uploads/")]


async def test_a_file_that_was_put_there_is_claimed_once(on_bucket: World, bucket: Bucket) -> None:
    """It is the image that an upload of the same bytes is. Of two claims at once one is answered; and what is put there
    later by the same URL is not claimed, but swept."""
    data = picture()
    upload = await create(on_bucket)
    assert parse_qs(urlsplit(upload.url).query)["X-Amz-Expires"] == ["900"]
    assert urlsplit(upload.url).hostname == "localhost" and upload.expire_time.seconds
    await put(upload.url, data)
    claims = [claim(on_bucket, upload.name, sha256=sha256(data), size_bytes=len(data)) for _ in range(2)]
    answers = await asyncio.gather(*claims, return_exceptions=True)
    (image,) = (one for one in answers if isinstance(one, Image))
    (error,) = (one for one in answers if isinstance(one, grpc.aio.AioRpcError))
    assert error.code() is grpc.StatusCode.NOT_FOUND and waiting(bucket) == []
    assert image == await on_bucket.upload(data)
    await put(upload.url, data)
    await refused(claim(on_bucket, upload.name), grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")
    assert waiting(bucket) == ["file"]
    with pytest.MonkeyPatch.context() as later:
        later.setattr(signed_uploads, "KEPT_S", -60.0)
        await on_bucket.gateway.retention.sweep()
    assert waiting(bucket) == []


async def test_what_cannot_be_claimed_is_refused(
    on_bucket: World, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing there yet, which may still come; no picture, another digest or too many bytes, which end the upload;
    bytes beside it; an unknown or another tenant's one. Nothing is kept."""
    upload = await create(on_bucket)
    empty = await refused(claim(on_bucket, upload.name), grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_EMPTY")
    assert "PUT" in empty.message
    await put(upload.url, b"no picture")
    beside = claim(on_bucket, upload.name, UploadImageRequest(chunk=b"x"))
    await refused(beside, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "header.upload")
    await refused(claim(on_bucket, upload.name), grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNDECODABLE")
    await refused(claim(on_bucket, upload.name), grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")
    for header, reason in (({"sha256": 64 * "0"}, "DIGEST_MISMATCH"), ({"size_bytes": 1}, "INVALID_FIELD")):
        other = await create(on_bucket)
        await put(other.url, picture())
        await refused(claim(on_bucket, other.name, **header), grpc.StatusCode.INVALID_ARGUMENT, reason)
    large = await create(on_bucket)
    await put(large.url, picture())
    with monkeypatch.context() as small:
        small.setattr(signed_uploads, "MAX_BYTES", 20)
        await refused(claim(on_bucket, large.name), grpc.StatusCode.INVALID_ARGUMENT, "UPLOAD_TOO_LARGE", "image")
    await refused(claim(on_bucket, UNKNOWN), grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")
    await refused(claim(on_bucket, "u-1"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "header.upload")
    foreign = claim(on_bucket, UNKNOWN, parent="tenants/acme")
    await refused(foreign, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "header.upload")
    assert waiting(bucket) == [] and not [path for path in bucket.paths() if "/images/" in path]


async def test_uploads_that_wait_are_bounded_and_swept(
    on_bucket: World, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number and by bytes, for each tenant; young ones outlast a sweep, and one that is too old cannot be claimed
    even before it."""
    monkeypatch.setattr(signed_uploads, "MAX_OPEN", 2)
    first, _ = [await create(on_bucket) for _ in range(2)]
    error = await refused(create(on_bucket), grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_UPLOAD_LIMIT")
    assert error.subject == "tenants/default" and error.retry_after_s
    await put(first.url, picture())
    await on_bucket.gateway.retention.sweep()
    assert waiting(bucket).count("open") == 2
    monkeypatch.setattr(signed_uploads, "MAX_OPEN", 9)
    on_bucket.gateway._images._storage._most = len(picture()) - 1
    await refused(create(on_bucket), grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_STORAGE_LIMIT")
    assert (await create(on_bucket, "tenants/acme")).name.startswith("tenants/acme/uploads/u-")
    monkeypatch.setattr(signed_uploads, "KEPT_S", -60.0)
    await refused(claim(on_bucket, first.name), grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")
    await on_bucket.gateway.retention.sweep()
    assert waiting(bucket) == []


async def test_uploads_that_are_made_at_once_are_bounded(
    on_bucket: World, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten calls at the same moment make as many as a tenant may have, and no more."""
    monkeypatch.setattr(signed_uploads, "MAX_OPEN", 3)
    made = await asyncio.gather(*(create(on_bucket) for _ in range(10)), return_exceptions=True)
    assert len([one for one in made if isinstance(one, Upload)]) == 3 and waiting(bucket).count("open") == 3


async def test_an_upload_is_its_tenants(on_bucket: World) -> None:
    """Whoever knows its name, but not its credential, cannot claim it."""
    await on_bucket.close()
    on_bucket.config = replace(on_bucket.config, admin_key_file=on_bucket.folder / "admin.key")
    await on_bucket.open()
    admin = Caller(on_bucket, (on_bucket.folder / "admin.key").read_text().strip())
    ours, theirs = await make(admin, "acme", EDIT), await make(admin, "other", EDIT)
    upload = await ours("images.CreateUpload", CreateUploadRequest())
    assert upload.name.startswith("tenants/acme/uploads/")
    await put(upload.url, picture())
    request = UploadImageRequest(header=Header(upload=upload.name))
    for caller, code in ((theirs, grpc.StatusCode.NOT_FOUND), (ours, grpc.StatusCode.OK)):
        assert await caller("images.UploadImage", iter([request])).code() is code


async def test_pictures_are_fetched_by_urls(on_bucket: World, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the URL gets the file that GetEdit would give, also when that would be too large for an answer. The
    results are deleted with the edit."""
    events = await edit(on_bucket, image_data=picture(), config=sampling_config(method="sdedit"), seeds=[1, 2])
    name = next(event.accepted.edit for event in events if event.HasField("accepted"))
    whole = await on_bucket.edits.GetEdit(GetEditRequest(name=name))
    monkeypatch.setattr(validation, "ANSWER_BYTES", 1)
    await refused(
        on_bucket.edits.GetEdit(GetEditRequest(name=name)), grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"
    )
    linked = await on_bucket.edits.GetEdit(GetEditRequest(name=name, image_urls=True))
    assert [image.seed for image in linked.images] == [1, 2] and not any(image.png for image in linked.images)
    for image, ours in zip(linked.images, whole.images, strict=True):
        assert await asyncio.to_thread(lambda url: urllib.request.urlopen(url).read(), image.png_url) == ours.png
        assert 0 < int(parse_qs(urlsplit(image.png_url).query)["X-Amz-Expires"][0]) <= 600
        assert image.size_bytes == len(ours.png)
    monkeypatch.undo()
    assert await on_bucket.edits.GetEdit(GetEditRequest(name=name)) == whole
    await on_bucket.gateway._results._stored.discard(name)
    assert not [path for path in bucket.paths() if path.startswith("unitune/edits/")]


async def test_a_folder_has_no_urls(world: World) -> None:
    """Uploads and results by URL are refused, with what to do instead."""
    error = await refused(create(world), grpc.StatusCode.FAILED_PRECONDITION, "NO_SIGNED_URLS")
    assert "UploadImage" in error.message
    events = await edit(world, image_data=picture(), config=sampling_config(method="sdedit"))
    name = next(event.accepted.edit for event in events if event.HasField("accepted"))
    call = world.edits.GetEdit(GetEditRequest(name=name, image_urls=True))
    await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "NO_SIGNED_URLS")
    assert not [path for path in world.stored() if path.startswith("uploads/")]
