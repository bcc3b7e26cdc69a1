"""Uploads that do not end: each is cut, and all of them together hold a bounded number of bytes."""

import asyncio
import signal
from typing import Any

import grpc
import pytest

from gateway import uploads as module
from gateway.uploads import Uploads
from tests.gateway.callers import ask_for_keys, make
from tests.gateway.conftest import World, eventually, picture, refused
from unitune import deadlines
from unitune.images import MAX_CHUNK_BYTES
from unitune.v1.image_pb2 import UploadImageRequest

pytestmark = pytest.mark.slow  # a real gateway, and deadlines that pass

CHUNK = UploadImageRequest(chunk=bytes(MAX_CHUNK_BYTES))


async def begin(world: World, chunks: int, tenant: str = "") -> Any:
    """An upload that has sent so much and does not end."""
    call = world.images.UploadImage(timeout=60)
    parent = f"tenants/{tenant}" if tenant else ""
    await call.write(UploadImageRequest(header=UploadImageRequest.Header(parent=parent)))
    for _ in range(chunks):
        await call.write(CHUNK)
    return call


def bound(world: World, **limits: Any) -> Uploads:
    """Give the gateway other limits of uploads."""
    assert world.gateway is not None
    uploads = Uploads(**limits)
    world.gateway._image_service._uploads = uploads
    return uploads


async def came(uploads: Uploads, size_bytes: int) -> None:
    """Return once so many bytes of all uploads are held."""

    async def check() -> bool:
        return uploads.size_bytes == size_bytes

    await eventually(check, 30)


async def test_an_upload_that_stops_is_cut_and_holds_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten uploads that stop after a megabyte end with a deadline, and their bytes are let go (R8)."""
    monkeypatch.setattr(deadlines, "READ_S", 1.0)
    uploads = bound(world)
    calls = [await begin(world, 4) for _ in range(10)]
    for call in calls:
        await refused(call, grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_SLOW")
    await came(uploads, 0)
    assert world.stored() == [] and (await world.upload(picture())).width == 40


async def test_an_upload_that_trickles_is_cut(world: World) -> None:
    """One that is never silent for long ends when it has lasted too long (R8)."""
    uploads = bound(world, upload_s=1.0)
    call = await begin(world, 1)

    async def trickle() -> None:
        while not call.done():
            await call.write(UploadImageRequest(chunk=b"x"))
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    error = await refused(call, grpc.StatusCode.DEADLINE_EXCEEDED, "UPLOAD_TOO_SLOW")
    await asyncio.gather(trickling, return_exceptions=True)
    assert "1 seconds" in error.message and uploads.size_bytes == 0


async def test_all_uploads_together_are_bounded(world: World) -> None:
    """By bytes and by number: what is too much is refused with a time to wait, the others go on (R8)."""
    size = 8 * MAX_CHUNK_BYTES
    uploads = bound(world, max_uploads=3, max_bytes=size)
    first = await begin(world, 5)
    await came(uploads, 5 * MAX_CHUNK_BYTES)
    error = await refused(await begin(world, 4), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
    assert error.retry_after_s
    await came(uploads, 5 * MAX_CHUNK_BYTES)
    second, third = await begin(world, 1), await begin(world, 1)
    await came(uploads, 7 * MAX_CHUNK_BYTES)
    await refused(await begin(world, 0), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
    second.cancel()
    await came(uploads, 6 * MAX_CHUNK_BYTES)
    assert (await world.upload(picture())).width == 40
    for call in (first, third):
        await call.done_writing()
        await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNDECODABLE")
    await came(uploads, 0)


async def test_a_slow_check_is_not_the_uploads_fault(world: World) -> None:
    """The limit is of the time in which the bytes come: a decoder that stands still then takes nothing of it."""
    assert world.gateway is not None
    await world.upload(picture("navy"))  # which starts a decoder
    checks = world.gateway._images._checks
    checks._deadline_s = 3.0
    checks._idle[0].send_signal(signal.SIGSTOP)
    bound(world, upload_s=1.5)
    assert (await world.upload(picture())).width == 40


async def test_tenants_take_turns_at_the_decoders(world: World) -> None:
    """With a dozen large pictures of one tenant waiting, another tenant's small one is decoded after the two that are
    being decoded."""
    order: list[str] = []

    async def upload(tenant: str, data: bytes) -> None:
        await world.upload(data, chunk_bytes=MAX_CHUNK_BYTES, parent=f"tenants/{tenant}")
        order.append(tenant)

    large = [picture(f"#0000{shade:02x}", (5000, 5000)) for shade in range(12)]
    uploads = [asyncio.create_task(upload("noisy", data)) for data in large]
    await eventually(lambda: done(order), 30)
    await upload("polite", picture())
    place = order.index("polite")
    await asyncio.gather(*uploads)
    assert place <= 5, order


async def done(order: list[str]) -> bool:
    """Whether anything was uploaded."""
    return bool(order)


async def test_one_tenant_has_half_of_the_uploads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant whose uploads do not end has neither all places nor all bytes: another tenant's picture is taken."""
    monkeypatch.setattr(module, "UPLOADS_OF_TENANT", 2)
    monkeypatch.setattr(module, "BYTES_OF_TENANT", 3 * MAX_CHUNK_BYTES)
    uploads = bound(world, max_uploads=4, max_bytes=6 * MAX_CHUNK_BYTES)
    calls = [await begin(world, 1, "noisy") for _ in range(2)]
    await came(uploads, 2 * MAX_CHUNK_BYTES)
    for _ in range(3):
        await refused(await begin(world, 0, "noisy"), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
    await calls[0].write(CHUNK)
    await calls[0].write(CHUNK)
    await refused(calls[0], grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
    assert (await world.upload(picture(), parent="tenants/polite")).width == 40
    calls[1].cancel()
    await came(uploads, 0)
    assert not uploads.open_of and not uploads.bytes_of


async def test_an_upload_without_a_header_is_its_credentials(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends nothing, not even a header, has no more places than who does."""
    monkeypatch.setattr(module, "UPLOADS_OF_TENANT", 2)
    admin = await ask_for_keys(world)
    noisy, polite = await make(admin, "noisy"), await make(admin, "polite")
    uploads = bound(world, max_uploads=4)
    silent = [noisy("images.UploadImage", None) for _ in range(2)]
    await eventually(lambda: is_open(uploads, 2))
    call = noisy("images.UploadImage", None)
    await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
    assert (await polite.upload(picture())).width == 40
    for call in silent:
        call.cancel()
    await eventually(lambda: is_open(uploads, 0))


async def is_open(uploads: Uploads, number: int) -> bool:
    """Whether so many uploads are under way."""
    return uploads.open_of.total() == number
