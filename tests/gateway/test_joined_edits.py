"""A request that is sent again with its id: one edit, at one gateway or several."""

import asyncio
import os
import uuid
from collections.abc import Sequence
from typing import Any

import grpc

from tests.configs import entry
from tests.gateway.conftest import World, eventually, picture, refused
from unitune.errors import from_status
from unitune.image_pieces import Assembly
from unitune.v1.edit_pb2 import CompareRequest, EditEvent, EditRequest
from unitune.v1.usage_pb2 import ListUsageRequest


def asked(**fields: Any) -> EditRequest:
    """A request with an id."""
    return EditRequest(prompt="a dog", image_data=picture(), seeds=[3, 5], request_id=str(uuid.uuid4()), **fields)


async def all_of(world: World, request: EditRequest) -> list[EditEvent]:
    """All events of an edit."""
    return [event async for event in world.edits.Edit(request, timeout=60)]


def name_of(events: list[EditEvent]) -> str:
    """The name that it was accepted under."""
    (name,) = [event.accepted.edit for event in events if event.HasField("accepted")]
    return name


def pngs(events: list[EditEvent]) -> list[bytes]:
    """The files of its pictures."""
    assembly, found = Assembly(), []
    for event in events:
        if event.HasField("image"):
            assembly.begin([event.image])
        elif event.HasField("image_part"):
            assembly.add(event.image_part)
        if event.WhichOneof("event") in ("image", "image_part") and assembly.is_whole:
            found += [image.png for image in assembly.take()]
    return found


async def results_of(world: World, request: CompareRequest) -> list[Any]:
    """The whole pictures of a comparison's results."""
    assembly, found = Assembly(), []
    async for event in world.edits.Compare(request, timeout=60):
        if event.HasField("result"):
            assembly.begin(event.result.images)
        elif event.HasField("image_part"):
            assembly.add(event.image_part)
        if event.WhichOneof("event") in ("result", "image_part") and assembly.is_whole:
            found += assembly.take()
    return found


async def edits_of(world: World) -> int:
    """How many edits are counted for the tenant."""
    (used,) = (await world.stubs["usage"].ListUsage(ListUsageRequest(parent="tenants/default"))).usage
    return int(used.edits)


async def joined_by(first: World, second: World) -> None:
    """One request, at both while its edit runs and again when that is done: one edit, one sampling, one in usage."""
    request = asked()
    first.sampler.go_on.clear()
    running = asyncio.create_task(all_of(first, request))
    await eventually(lambda: _true(len(first.sampler.requests) == 1), within_s=30)
    joining = asyncio.create_task(all_of(second, request))
    await asyncio.sleep(0.5)  # for what must not happen
    assert not joining.done()
    first.sampler.go_on.set()
    events, others = await asyncio.gather(running, joining)
    assert name_of(events) == name_of(others) and pngs(events) == pngs(others) and len(pngs(events)) == 2
    assert others[-1].HasField("done") and others[-1].done.timings == events[-1].done.timings
    assert [event.sequence for event in others] == list(range(1, len(others) + 1))
    for world in (first, second):
        again = await all_of(world, request)
        assert name_of(again) == name_of(events) and pngs(again) == pngs(events)
    assert len(first.sampler.requests) == 1 and await edits_of(first) == 1

    other = EditRequest()
    other.CopyFrom(request)
    other.seeds.append(7)
    await refused(second.edits.Edit(other), grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED", "request_id")


async def at_once(worlds: Sequence[World]) -> None:
    """One request, sent to gateways in turn eight times at the same moment: one edit, one sampling."""
    request, sampler = asked(), worlds[0].sampler
    before = len(sampler.requests)
    found = await asyncio.gather(*(all_of(worlds[number % len(worlds)], request) for number in range(8)))
    assert len({name_of(events) for events in found}) == 1 and len(sampler.requests) == before + 1
    assert all(events[-1].HasField("done") and pngs(events) == pngs(found[0]) for events in found)


async def compared_by(first: World, second: World) -> None:
    """One comparison, sent to both while its second method runs, and again when it is done, of that method alone: each
    method is sampled once and counted once, and all have its pictures."""
    sampler, before = first.sampler, len(first.sampler.requests)
    used = await edits_of(first)
    request = CompareRequest(
        prompt="a dog",
        image_data=picture(),
        seeds=[3, 5],
        methods=[entry("unitune"), entry("sdedit")],
        request_id=str(uuid.uuid4()),
    )
    sampler.go_on.clear()

    async def compared(world: World, asked: CompareRequest = request) -> dict[str, list[bytes]]:
        results = [event.result async for event in world.edits.Compare(asked, timeout=60) if event.HasField("result")]
        assert not any(result.HasField("error") for result in results)
        return {result.timings.SerializeToString().hex(): [one.png for one in result.images] for result in results}

    running = asyncio.create_task(compared(first))
    await eventually(lambda: _true(len(sampler.requests) == before + 1), within_s=30)
    joining = asyncio.create_task(compared(second))
    await asyncio.sleep(0.5)  # for what must not happen
    sampler.go_on.set()
    found, joined = await asyncio.gather(running, joining)
    assert found == joined and len(found) == 2 and all(len(pictures) == 2 for pictures in found.values())
    del request.methods[0]
    again = await compared(second)
    assert len(again) == 1 and again.items() <= found.items()
    await edits_of(second)  # which writes what it has counted
    assert len(sampler.requests) == before + 2 and await edits_of(first) == used + 2


async def _true(is_so: bool) -> bool:
    return is_so


async def test_one_request_at_once_is_one_edit(world: World) -> None:
    """Eight at the same moment are one (F33)."""
    await world.tuned()
    await at_once([world])


async def test_one_request_is_one_edit(world: World) -> None:
    """A second request with its id joins the edit, while it runs and when it is done, also after a restart of the
    gateway; with another body it is refused (F33)."""
    await joined_by(world, world)
    request = asked()
    events = await all_of(world, request)
    await world.close()
    await world.open()
    await world.known()
    again = await all_of(world, request)
    assert name_of(again) == name_of(events) and pngs(again) == pngs(events)
    assert len(world.sampler.requests) == 2


async def test_one_comparison_is_one_edit_of_each_method(world: World) -> None:
    """A second request with its id joins the edits, while they run and when they are done; so does one after a restart
    of the gateway, whose pictures are in the store (F33)."""
    await compared_by(world, world)
    request = CompareRequest(
        prompt="a dog",
        image_data=picture(),
        methods=[entry("sdedit")],
        request_id=str(uuid.uuid4()),
        omit_metadata=True,
    )
    world.sampler.png = os.urandom(3 << 20)  # too large for one message
    first = await results_of(world, request)
    await world.close()
    await world.open()
    await world.known()
    assert await results_of(world, request) == first and len(first[0].png) > 2 << 20
    assert len(world.sampler.requests) == 3
    request.seeds.append(9)
    (refused_result,) = [event.result async for event in world.edits.Compare(request) if event.HasField("result")]
    assert from_status(refused_result.error).reason == "REQUEST_ID_REUSED"
    request.request_id = "1"
    await refused(world.edits.Compare(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "request_id")
    request.validate_only = True
    assert [event.WhichOneof("event") async for event in world.edits.Compare(request)] == ["accepted", "done"]


async def test_a_comparison_whose_edit_is_lost_begins_it_again(world: World) -> None:
    """Whoever joined the edit of a comparison that its caller closed gets its pictures all the same."""
    request = CompareRequest(
        prompt="a dog", image_data=picture(), methods=[entry("sdedit")], request_id=str(uuid.uuid4())
    )
    world.sampler.go_on.clear()
    closed = world.edits.Compare(request, timeout=60)
    await eventually(lambda: _true(len(world.sampler.requests) == 1), within_s=30)
    joined = world.edits.Compare(request, timeout=60)
    while not (event := await joined.read()).HasField("edit"):
        pass
    name = event.edit.accepted.edit
    closed.cancel()
    while not (event := await joined.read()).HasField("edit"):
        pass
    assert event.edit.HasField("accepted") and event.edit.accepted.edit != name
    world.sampler.go_on.set()
    while not (event := await joined.read()).HasField("result"):
        pass
    assert len(event.result.images) == 1 and not event.result.HasField("error")
    assert (await joined.read()).HasField("done") and await edits_of(world) == 1


async def test_a_request_whose_edit_was_cancelled_begins_again(world: World) -> None:
    """Who joined it is told to send the request again; that begins it anew, and all of it counts as one edit (F33)."""
    request = asked()
    world.sampler.go_on.clear()
    call = world.edits.Edit(request, timeout=60)
    cancelled = (await call.read()).accepted.edit
    await eventually(lambda: _true(len(world.sampler.requests) == 1), within_s=30)
    joined = world.edits.Edit(request, timeout=60)
    assert (await joined.read()).accepted.edit == cancelled
    call.cancel()
    error = from_status((await joined.read()).failed)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "EDIT_LOST") and error.retry_after_s
    assert await joined.read() is grpc.aio.EOF
    world.sampler.go_on.set()
    events = await all_of(world, request)
    assert events[-1].HasField("done") and name_of(events) != cancelled and len(pngs(events)) == 2
    assert await edits_of(world) == 1


async def test_a_request_whose_pictures_are_gone_begins_again(world: World) -> None:
    """Ten minutes after its end the pictures are deleted: the same request samples anew."""
    request = asked()
    events = await all_of(world, request)
    await world.gateway._results._stored.discard(name_of(events))
    again = await all_of(world, request)
    assert name_of(again) != name_of(events) and pngs(again) == pngs(events)
    assert len(world.sampler.requests) == 2


async def test_an_id_is_a_uuid_and_its_tenants_own(world: World) -> None:
    """Another form is refused, a validated request keeps no id, and another tenant's id is none of ours."""
    wrong = EditRequest(prompt="a dog", image_data=picture(), request_id="1")
    await refused(world.edits.Edit(wrong), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "request_id")
    request = asked(validate_only=True)
    assert len(await all_of(world, request)) == 2
    request.validate_only = False
    events = await all_of(world, request)
    request.parent = "tenants/acme"
    others = await all_of(world, request)
    assert name_of(events) != name_of(others) and len(world.sampler.requests) == 2
