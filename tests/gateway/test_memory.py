"""What many requests of one tenant cost in memory, in a real gateway process: those that wait, and those whose answers
nobody takes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import grpc
import pytest
from PIL import Image

from gateway import admission, edit_results
from gateway.admission import OPEN_BYTES_OF_TENANT
from tests.configs import entry, sampling_config
from tests.gateway.conftest import World, eventually, picture, refused
from tests.gateway.test_admission import shed
from tests.gateway.test_lives import upload
from tests.gateway.test_main import start
from tests.gateway.test_slow_readers import resident_bytes
from unitune import deadlines, serving
from unitune.v1.edit_pb2 import CompareRequest, Edit, EditRequest, GetEditRequest
from unitune.v1.edit_pb2_grpc import EditServiceStub

pytestmark = pytest.mark.slow  # real processes

SIDE = 1600  # of a picture of noise, whose file has 7.7 MB
WAITING = 60
RESULT_BYTES = 8 << 20
UNREAD = 40
SDEDIT = sampling_config(method="sdedit", num_inference_steps=2)


def noise(mode: str) -> bytes:
    """A PNG as large as its pixels."""
    bytes_each = len(mode)  # L or RGB
    image, file = Image.frombytes(mode, (SIDE, SIDE), os.urandom(SIDE * SIDE * bytes_each)), BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()


@asynccontextmanager
async def running(world: World) -> AsyncIterator[tuple[Any, str]]:
    """A gateway process and its address."""
    process, address = await start(world)
    try:
        yield process, address
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


async def test_edits_that_wait_keep_no_pictures_in_memory(world: World) -> None:
    """60 edits of a large picture wait for their turn: their pictures are not in the memory of the gateway, and the
    sampler gets picture and mask whole."""
    world.sampler.go_on.clear()
    photo, mask = noise("RGB"), noise("L")
    async with running(world) as (process, address), serving.channel(address) as channel:
        image = await upload(channel, photo)
        edits, request = EditServiceStub(channel), EditRequest(image=image, prompt="a dog", config=SDEDIT)
        request.mask_image = await upload(channel, mask)
        warm = [edits.Edit(request) for _ in range(4)]
        for call in warm:
            await call.read()
        await eventually(lambda: _true(len(world.sampler.requests) == 2))
        before = resident_bytes(process.pid)
        request.ClearField("mask_image")  # each would be decoded, which takes a while
        waiting = [edits.Edit(request) for _ in range(WAITING)]
        for call in waiting:
            assert (await call.read()).HasField("accepted")
        grown = resident_bytes(process.pid) - before
        print(f"{grown / WAITING / 2**20:.2f} MiB for each edit that waits")
        assert grown < WAITING * len(photo) / 2
        assert all((one.image, one.mask) == (photo, mask) for one in world.sampler.requests)
        for call in (*warm, *waiting):
            call.cancel()
        world.sampler.go_on.set()


async def test_results_that_nobody_takes_are_few(world: World) -> None:
    """40 callers of GetEdit do not take a result of 8 MiB: few of them are in memory, another tenant gets its own, and
    those that wait are answered once the others are gone."""
    world.sampler.png = picture() + os.urandom(RESULT_BYTES)
    async with running(world) as (process, address), serving.channel(address) as channel:

        async def edited(tenant: str) -> str:
            parent = f"tenants/{tenant}"
            request = EditRequest(parent=parent, image_data=picture(), prompt="a dog", config=SDEDIT)
            events = [event async for event in EditServiceStub(channel).Edit(request, timeout=60)]
            assert events[-1].HasField("done")
            return str(events[0].accepted.edit)

        name, others = await edited("noisy"), await edited("polite")
        # To the client, a call with a stream of answers: nothing is taken before it is read.
        unread = channel.unary_stream(
            "/unitune.v1.EditService/GetEdit",
            request_serializer=GetEditRequest.SerializeToString,
            response_deserializer=Edit.FromString,
        )
        before = resident_bytes(process.pid)
        calls = [unread(GetEditRequest(name=name)) for _ in range(UNREAD)]
        await asyncio.sleep(3)  # in which all could be read from the store
        grown = resident_bytes(process.pid) - before
        print(f"{grown / 2**20:.0f} MiB for {UNREAD} results that nobody takes")
        assert grown < 20 * RESULT_BYTES
        polite = await EditServiceStub(channel).GetEdit(GetEditRequest(name=others), timeout=30)
        assert len(polite.images[0].png) > RESULT_BYTES
        for call in calls[:-1]:
            call.cancel()
        assert len((await calls[-1].read()).images[0].png) > RESULT_BYTES


async def test_pictures_in_requests_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes, for each tenant and for all: a further edit or comparison is refused with the remedy, and taken when
    others have ended."""
    assert 64 << 20 <= OPEN_BYTES_OF_TENANT
    large = picture() + bytes(300_000)
    monkeypatch.setattr(admission, "OPEN_BYTES_OF_TENANT", 700_000)
    monkeypatch.setattr(admission, "OPEN_BYTES", 1_000_000)
    world.sampler.go_on.clear()

    def begin(tenant: str) -> Any:
        asked = EditRequest(parent=f"tenants/{tenant}", image_data=large, prompt="a dog", config=SDEDIT)
        return world.edits.Edit(asked, timeout=60)

    calls = [begin("a"), begin("a")]
    for call in calls:
        assert (await call.read()).HasField("accepted")
    error = await shed(begin("a"), "TENANT_EDIT_LIMIT", "tenants/a")
    assert "upload" in error.message
    asked = CompareRequest(parent="tenants/a", image_data=large, prompt="a dog", methods=[entry("sdedit")])
    await shed(world.edits.Compare(asked), "TENANT_EDIT_LIMIT", "tenants/a")
    calls.append(begin("b"))
    await calls[-1].read()
    await shed(begin("c"), "QUEUE_FULL", "server")
    world.sampler.go_on.set()
    for call in calls:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert [event async for event in begin("a")][-1].HasField("done")


async def test_a_comparison_has_its_picture_once(world: World) -> None:
    """However many methods it has, while the first one runs, and each of them is made of the picture."""
    assert world.gateway is not None
    large = picture() + bytes(300_000)
    methods = [entry("sdedit", config=SDEDIT), entry("unitune"), entry("imagic")]
    request = CompareRequest(image_data=large, prompt="a dog", methods=methods)
    asked = await world.gateway._comparisons._method_edits(request)
    assert sum(one.request.ByteSize() for one in asked) < 10_000
    events = [event async for event in world.edits.Compare(request, timeout=60)]
    assert events[-1].HasField("done") and [one.image for one in world.sampler.requests] == [large] * 3


async def _true(is_so: bool) -> bool:
    return is_so


async def test_what_is_not_read_counts_until_its_reader_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and results that nobody reads are cut, but keep their last message: so many of them are refused as too
    many open ones are, and there is room again once their callers have gone."""
    assert world.gateway is not None and world.channel is not None
    monkeypatch.setattr(deadlines, "WRITE_S", 0.3)
    monkeypatch.setattr(deadlines, "SLOWEST_BYTES_PER_S", 1 << 40)
    monkeypatch.setattr(edit_results, "NOT_TAKEN", 1)
    world.sampler.png = picture() + os.urandom(2 << 20)
    calls = world.gateway._edit_service._calls
    calls._most = 2
    request = EditRequest(image_data=picture(), prompt="a dog", config=SDEDIT)
    done = [event async for event in world.edits.Edit(request, timeout=60)]
    name = done[0].accepted.edit

    unread = [world.edits.Edit(request, timeout=60) for _ in range(2)]
    states = [await call.read() for call in unread]
    assert all(one.HasField("accepted") for one in states)

    async def are_cut() -> bool:
        return not world.gateway._edit_service._admission._edits

    await eventually(are_cut, 30)
    await refused(world.edits.Edit(request), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    for call in unread:
        call.cancel()
    await eventually(lambda: _true(not calls._open))
    assert [event async for event in world.edits.Edit(request, timeout=60)][-1].HasField("done")

    asked, read = GetEditRequest(name=name), world.edits.GetEdit
    unread = world.channel.unary_stream(
        "/unitune.v1.EditService/GetEdit", request_serializer=GetEditRequest.SerializeToString
    )(asked)
    await eventually(lambda: _true(bool(world.gateway._results._not_taken)), 30)
    await refused(read(asked), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    unread.cancel()
    await eventually(lambda: _true(not world.gateway._results._not_taken))
    assert len((await read(asked)).images) == 1
