"""Edits beyond the sampler's streams: who waits, who is next, and that no edit is in the way of another tenant's."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from gateway import relay
from gateway.config import SAMPLE_STREAMS as STREAMS
from gateway.config import GatewayConfig
from gateway.fair_queue import FairQueue
from gateway.open_calls import LONG_CALLS
from tests.configs import sampling_config
from tests.gateway.conftest import World, eventually, picture, refused
from unitune import settings
from unitune.errors import from_status
from unitune.image_pieces import Assembly
from unitune.png_text import HEADER_BYTES
from unitune.v1.edit_pb2 import CancelEditRequest, Edit, EditEvent, EditRequest, GetEditRequest
from unitune.v1.tuning_pb2 import DeleteTuningRequest


async def take(queue: FairQueue, tenant: str, order: list[str], go_on: asyncio.Event) -> None:
    """Have one turn until `go_on`."""
    async with queue.place(tenant):
        order.append(tenant)
        await go_on.wait()


async def test_tenants_take_turns_and_the_oldest_is_first() -> None:
    """With one stream the tenants are served in turn, and each one's edits in the order in which they came."""
    queue, order = FairQueue(1), list[str]()

    async def one(name: str) -> None:
        async with queue.place(name[0]):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(name) for name in ("a1", "a2", "a3", "b1", "c1", "b2")))
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2"] and queue.num_waiting == 0


async def test_one_tenant_never_has_more_than_half() -> None:
    """200 edits of one tenant leave a place for another one's first; nobody has more than there are."""
    queue, order, go_on = FairQueue(8), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(take(queue, "a", order, go_on)) for _ in range(200)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(take(queue, tenant, order, go_on)) for tenant in "bcdef"]
    await asyncio.sleep(0.01)
    assert order == ["a"] * 4 + ["b", "c", "d", "e"] and queue.num_waiting == 197
    go_on.set()
    await asyncio.gather(*tasks)
    assert len(order) == 205 and order.index("f") < 12 and queue.num_waiting == 0


async def test_a_place_is_given_back_however_it_is_left() -> None:
    """Cancelled while it waits, in the moment in which its turn comes, or while it has it: no place is lost."""
    queue, go_on = FairQueue(2), asyncio.Event()
    order: list[str] = []
    tasks = [asyncio.create_task(take(queue, "a", order, go_on)) for _ in range(3)]
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert queue.num_waiting == 1  # the third; one tenant has one of two
    tasks[0].cancel()  # the third's ticket is given in the same moment in which it is cancelled
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    go_on.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*(take(queue, tenant, order, go_on) for tenant in "abab"))
    assert order[-4:].count("b") == 2 and queue.num_waiting == 0


def test_the_number_of_streams_is_a_setting() -> None:
    """Below what a connection may have, and one at least; anything else is refused in one line."""
    needed = {"UNITUNE_STORE": "x", "UNITUNE_STATE": "y"}
    assert settings.load(GatewayConfig, needed).sample_streams == STREAMS
    assert settings.load(GatewayConfig, needed | {"UNITUNE_SAMPLE_STREAMS": "3"}).sample_streams == 3
    for wrong in ("0", "100", "-1"):
        with pytest.raises(settings.BadSetting, match=f"UNITUNE_SAMPLE_STREAMS is {wrong}"):
            settings.load(GatewayConfig, needed | {"UNITUNE_SAMPLE_STREAMS": wrong})


SDEDIT = sampling_config(method="sdedit")


def begin(stub: Any, tenant: str, **request: Any) -> Any:
    """An edit that needs no tuning."""
    asked = {"image_data": picture(), "config": SDEDIT, "prompt": "a dog", **request}
    return stub.Edit(EditRequest(parent=f"tenants/{tenant}", **asked), timeout=60)


async def rest(call: Any) -> list[EditEvent]:
    """Its events from here on, without heartbeats."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        if not event.HasField("heartbeat"):
            events.append(event)
    return events


async def accepted(stub: Any, tenant: str, count: int) -> tuple[list[Any], list[str]]:
    """So many edits that were begun, and their names."""
    calls = [begin(stub, tenant) for _ in range(count)]
    return calls, [(await call.read()).accepted.edit for call in calls]


@contextlib.asynccontextmanager
async def held(world: World) -> AsyncIterator[None]:
    """Every edit that the sampler begins hangs before its first event."""
    world.sampler.go_on.clear()
    try:
        yield
    finally:
        world.sampler.go_on.set()


async def test_two_hundred_edits_of_one_tenant_are_not_in_anothers_way(world: World) -> None:
    """With 200 edits of one tenant open, that hang in the sampler, another tenant's edit is taken and served (R2)."""
    async with held(world):
        calls, _ = await accepted(world.edits, "noisy", 200)
        await eventually(lambda: _true(len(world.sampler.requests) == STREAMS // 2))
        other = begin(world.edits, "polite")
        name = (await other.read()).accepted.edit
        await eventually(lambda: _true(name in {request.edit for request in world.sampler.requests}))
        assert len(world.sampler.requests) == STREAMS // 2 + 1  # the others wait in the gateway
    assert (await rest(other))[-1].HasField("done")
    ends = [(await rest(call))[-1] for call in calls]
    assert all(end.HasField("done") for end in ends) and len(world.sampler.requests) == 201


async def test_cancels_end_only_what_they_name(world: World) -> None:
    """Of 160 open edits 120 are cancelled at once: all of them say cancelled, and every one of another tenant's 40 ends
    with its picture (R3)."""
    async with held(world):
        doomed, names = await accepted(world.edits, "noisy", 120)
        others, _ = await accepted(world.edits, "polite", 40)
        answers = await asyncio.gather(
            *(world.edits.CancelEdit(CancelEditRequest(name=name), timeout=30) for name in names)
        )
        assert {answer.state for answer in answers} == {Edit.STATE_CANCELLED}
        ends = [(await rest(call))[-1].WhichOneof("event") for call in doomed]
        assert ends == ["cancelled"] * 120
    assert [(await rest(call))[-1].WhichOneof("event") for call in others] == ["done"] * 40
    for name in names:
        assert (await world.edits.GetEdit(GetEditRequest(name=name))).state == Edit.STATE_CANCELLED


async def test_an_edit_tells_how_long_it_waited_and_is_never_silent(world: World) -> None:
    """Waiting for a turn is in queue_s, heartbeats come meanwhile, and a deleted tuning's weights are not used after it
    (R2)."""
    await world.close()
    world.config = replace(world.config, heartbeat_s=0.05, sample_streams=1)
    await world.open()
    tuning = await world.tuned()
    async with held(world):
        first = begin(world.edits, "default")
        await eventually(lambda: _true(len(world.sampler.requests) == 1))
        second = begin(world.edits, "default")
        third = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
        for call in (second, third):
            assert (await call.read()).HasField("accepted")
            assert (await call.read()).HasField("heartbeat") and (await call.read()).HasField("heartbeat")
        await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    assert (await rest(first))[-1].done.timings.queue_s < 0.1
    done = (await rest(second))[-1].done.timings
    assert 0.1 <= done.queue_s <= done.total_s
    failed = (await rest(third))[-1].failed
    assert "there is no tuning" in failed.message and len(world.sampler.requests) == 2


async def test_a_sample_that_never_began_is_asked_for_again(world: World) -> None:
    """A stream that ended with its transport before its first event is repeated with the same request; one that has
    begun, or that ends so for ever, is told as it is (R3)."""
    world.sampler.refusals = 2
    large = picture(size=(900, 700), kind="PNG") + bytes(600_000)  # more than grpc keeps to repeat by default
    call = begin(world.edits, "default", image_data=large)
    assert (await rest(call))[-1].HasField("done")
    assert len(world.sampler.requests) == 3 and len({r.SerializeToString() for r in world.sampler.requests}) == 1

    world.sampler.refusals = 100
    failed = (await rest(begin(world.edits, "default")))[-1].failed
    assert "does not answer" in failed.message and 3 < len(world.sampler.requests) <= 8

    world.sampler.refusals, world.sampler.breaks = 0, True
    before = len(world.sampler.requests)
    assert (await rest(begin(world.edits, "default")))[-1].HasField("failed")
    assert len(world.sampler.requests) == before + 1


async def _true(answer: bool) -> bool:
    return answer


async def test_a_connection_full_of_streams_still_has_its_other_calls_answered(world: World) -> None:
    """One connection's calls above the limit are refused at once, with a time to wait, and unary calls are answered
    (R2)."""
    async with held(world):
        calls, names = await accepted(world.edits, "noisy", LONG_CALLS)
        error = await refused(begin(world.edits, "noisy"), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        assert error.retry_after_s and str(LONG_CALLS) in error.message
        await refused(world.upload(picture()), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        await world.edits.CancelEdit(CancelEditRequest(name=names[0]), timeout=10)
        assert (await rest(calls[0]))[-1].HasField("cancelled")
        assert (await world.upload(picture())).width == 40
    ends = [(await rest(call))[-1].WhichOneof("event") for call in calls[1:]]
    assert ends == ["done"] * (LONG_CALLS - 1)


def large_png(size_bytes: int) -> bytes:
    """What the sampler takes for a picture, of so many bytes that do not compress."""
    return picture()[:HEADER_BYTES] + os.urandom(size_bytes)


def pictures(events: list[EditEvent]) -> list[bytes]:
    """The files of an edit's pictures, put together."""
    assembly, files = Assembly(), []
    for event in events:
        if event.HasField("image"):
            assembly.begin([event.image])
        elif event.HasField("image_part"):
            assembly.add(event.image_part)
        else:
            continue
        if assembly.is_whole:
            files += [image.png for image in assembly.take()]
    return files


async def test_readers_that_do_not_read_keep_no_turn(world: World) -> None:
    """Two tenants open as many edits as there are turns and read none of them: a third tenant's edit is served, and
    they have all of their pictures when they read at last, without the previews that would have waited."""
    world.sampler.png = large_png(5 << 20)
    asleep = [
        begin(world.edits, tenant, seeds=[1, 2], preview_every=1) for tenant in ("one", "two") for _ in range(STREAMS)
    ]
    await eventually(lambda: _true(len(world.sampler.requests) >= STREAMS))
    async with asyncio.timeout(20):  # less than the time after which a reader that does not read is cut
        events = await rest(begin(world.edits, "three"))
    assert events[-1].HasField("done") and events[-1].done.timings.queue_s < 10
    await eventually(lambda: _true(len(world.sampler.requests) == 2 * STREAMS + 1))  # all had their turn
    for call in asleep:
        events = await rest(call)
        assert events[-1].HasField("done") and [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert [file[-1000:] for file in pictures(events)] == [world.sampler.png[-1000:]] * 2


async def test_a_reader_too_far_behind_loses_its_edit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store takes no results, an edit that is not read ends with READER_TOO_SLOW, its turn is free; who reads
    has every picture, however large they are, and GetEdit says that they are not kept."""
    monkeypatch.setattr(relay, "BEHIND_S", 0.5)
    await world.close()
    world.config = replace(world.config, sample_streams=1)
    await world.open()
    (world.folder / "store" / "edits").write_bytes(b"a file where a folder must be")
    world.sampler.png = large_png(12 << 20)
    asleep = begin(world.edits, "one")
    name = (await asleep.read()).accepted.edit
    await eventually(lambda: _true(len(world.sampler.requests) == 1))
    awake = await rest(begin(world.edits, "two", seeds=[1, 2, 3]))
    assert len(pictures(awake)) == 3 and awake[-1].HasField("done")
    assert world.sampler.stopped.is_set()
    failed = from_status((await rest(asleep))[-1].failed)
    assert (await world.edits.GetEdit(GetEditRequest(name=name))).state == Edit.STATE_FAILED
    assert failed.reason == "READER_TOO_SLOW" and "read the stream without pauses" in failed.message
    lost = world.edits.GetEdit(GetEditRequest(name=awake[0].accepted.edit))
    await refused(lost, grpc.StatusCode.DATA_LOSS, "EDIT_NOT_KEPT")


async def test_places_come_and_go() -> None:
    """More of them are taken at once, and one tenant has half of those that there are now; of fewer, who has one keeps
    it, and no other gets one before there are few enough."""
    queue, order, go_on = FairQueue(2), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(take(queue, tenant, order, go_on)) for tenant in "aaaaabbbbb"]
    await asyncio.sleep(0.01)
    assert order == ["a", "b"]
    queue.resize(8)
    await asyncio.sleep(0.01)
    assert sorted(order) == ["a"] * 4 + ["b"] * 4
    queue.resize(2)
    go_on.set()
    await asyncio.gather(*tasks)
    assert len(order) == 10 and queue.num_waiting == 0 and queue.num_taken == 0
    queue.resize(4)
    go_on.clear()
    tasks = [asyncio.create_task(take(queue, "c", order, go_on)) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert queue.num_taken == 2
    go_on.set()
    await asyncio.gather(*tasks)
