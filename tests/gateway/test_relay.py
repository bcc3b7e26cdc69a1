"""A generator and its reader: all events arrive, it stops when it must, and it is never left running."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from gateway import relay as relays
from gateway.relay import WAITING_BYTES, WAITING_EVENTS, Relay
from unitune.errors import Cancelled, DeadlineExceeded
from unitune.v1.edit_pb2 import EditEvent

STOP = Cancelled("stopped", reason="STOPPED")


class Numbers:
    """Emits numbers, with a pause before each; knows how far it got and whether it was cleaned up."""

    def __init__(self, count: int, pause_s: float = 0.0, error: Exception | None = None) -> None:
        self.count, self.pause_s, self.error = count, pause_s, error
        self.emitted, self.closed = 0, False

    async def emit(self) -> AsyncGenerator[int, None]:
        """The numbers from 0."""
        try:
            for number in range(self.count):
                await asyncio.sleep(self.pause_s)
                self.emitted = number + 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            await asyncio.sleep(0)
            self.closed = True


def relay(source: Numbers, silence_s: float = 10.0) -> Relay[int]:
    """The generator's relay, whose heartbeat is -1."""
    return Relay(source.emit(), silence_s=silence_s, heartbeat=lambda: -1, size_of=lambda _: 1)


async def test_everything_is_emitted_in_order() -> None:
    """More events than fit between generator and reader arrive complete."""
    source = Numbers(100)
    assert [event async for event in relay(source).events()] == list(range(100)) and source.closed


async def test_an_error_comes_after_what_was_emitted() -> None:
    """The reader gets every event, then the generator's own error."""
    seen = []
    with pytest.raises(KeyError):
        async for event in relay(Numbers(3, error=KeyError("x"))).events():
            seen.append(event)
    assert seen == [0, 1, 2]


async def test_silence_is_broken_by_heartbeats() -> None:
    """A slow generator has heartbeats between its events; a quick one has none."""
    seen = [event async for event in relay(Numbers(2, pause_s=0.12), silence_s=0.05).events()]
    assert [event for event in seen if event >= 0] == [0, 1] and seen.count(-1) >= 2
    assert -1 not in [event async for event in relay(Numbers(5)).events()]


async def test_stop_reaches_a_generator_whose_reader_sleeps() -> None:
    """A stopped generator is cleaned up before its reader comes back, who then gets the rest and the reason."""
    source = Numbers(1000)
    on_its_way = relay(source)
    async with aclosing(on_its_way.events()) as events:
        assert await anext(events) == 0
        await asyncio.sleep(0.02)
        assert source.emitted < 10  # a slow reader slows the generator
        on_its_way.stop(STOP)
        await asyncio.sleep(0.02)
        assert source.closed
        with pytest.raises(Cancelled) as caught:
            async for _ in events:
                pass
        assert caught.value is STOP


async def test_stop_after_the_end_changes_nothing() -> None:
    """A generator that has ended stays so."""
    on_its_way = relay(Numbers(2))
    events = on_its_way.events()
    assert [await anext(events), await anext(events)] == [0, 1]
    await asyncio.sleep(0.01)
    on_its_way.stop(STOP)
    assert [event async for event in events] == []


async def test_reader_that_goes_away_ends_the_generator() -> None:
    """When the reader closes or is cancelled, the generator has been cleaned up once that is over."""
    closed, cancelled = Numbers(1000), Numbers(1000, pause_s=0.01)
    async with aclosing(relay(closed).events()) as events:
        await anext(events)
    assert closed.closed

    async def read() -> None:
        async for _ in relay(cancelled).events():
            pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.03)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.sleep(0)
    assert cancelled.closed


async def told(events: list[EditEvent], **more: Any) -> tuple[int, list[EditEvent]]:
    """How far a generator gets while its reader has only the first event, and what the reader has in the end."""
    count = 0

    async def source() -> AsyncGenerator[EditEvent, None]:
        nonlocal count
        for event in events:
            count += 1
            yield event

    on_its_way = Relay(source(), silence_s=10, heartbeat=EditEvent, size_of=EditEvent.ByteSize, **more)
    stream = on_its_way.events()
    seen = [await anext(stream)]
    await asyncio.sleep(0.05)
    reached = count
    return reached, seen + [event async for event in stream]


def image(size: int) -> EditEvent:
    """A picture of so many bytes."""
    return EditEvent(image=EditEvent.EditedImage(png=bytes(size)))


async def test_a_slow_reader_costs_bytes_not_events() -> None:
    """Large events wait one at a time, small ones a few, and each reader gets all of them in the end (R9)."""
    large = [image(3 * WAITING_BYTES) for _ in range(5)]
    reached, seen = await told(large)
    assert reached == 2 and seen == large  # the reader has one, the generator holds one
    small = [image(1000) for _ in range(20)]
    reached, seen = await told(small)
    assert reached == WAITING_EVENTS + 1 and seen == small


async def test_a_slow_reader_goes_without_previews() -> None:
    """A preview that would have to wait is taken out of its step, the steps all arrive (R9)."""
    steps = [EditEvent(step=EditEvent.Step(index=index, preview=bytes(WAITING_BYTES // 2))) for index in range(12)]
    wanted = [step.step.index for step in steps]

    def lighten(event: EditEvent) -> None:
        event.step.ClearField("preview")

    _, seen = await told(steps, lighten=lighten)
    assert [event.step.index for event in seen] == wanted
    assert seen[0].step.preview and not any(event.step.preview for event in seen[2:5])


class Elsewhere:
    """Where large events are stored."""

    def __init__(self) -> None:
        self.loads = 0

    def stored(self, event: EditEvent) -> Callable[[], Awaitable[EditEvent]]:
        """What reads the event again."""
        data = event.SerializeToString()

        async def load() -> EditEvent:
            self.loads += 1
            return EditEvent.FromString(data)

        return load


async def test_a_backlog_lets_an_edit_go_on_without_its_reader() -> None:
    """All events are emitted while nobody reads: the large ones wait where they are stored, and the relay holds the one
    that the reader has (R9)."""
    elsewhere = Elsewhere()
    events = [image(3 * WAITING_BYTES + index) for index in range(6)]
    steps = [EditEvent(step=EditEvent.Step(index=index)) for index in range(100)]
    reached, seen = await told([*events, *steps], stored=elsewhere.stored)
    assert reached == 106 and seen == [*events, *steps] and elsewhere.loads >= 5

    async def source() -> AsyncGenerator[EditEvent, None]:
        for event in events:
            yield event

    left = Relay(source(), silence_s=10, heartbeat=EditEvent, size_of=EditEvent.ByteSize, stored=elsewhere.stored)
    async with aclosing(left.events()) as stream:
        assert await anext(stream) == events[0]
        await asyncio.sleep(0.05)
        assert left._size_bytes <= 3 * WAITING_BYTES + 8 * relays.EVENT_BYTES


async def test_a_full_backlog_ends_the_slowest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where large events are not stored, one who does not read loses its events' source, and one who reads has all of
    its own."""
    monkeypatch.setattr(relays, "BEHIND_S", 0.2)
    events = [image(3 * WAITING_BYTES) for _ in range(6)]

    async def source() -> AsyncGenerator[EditEvent, None]:
        for event in events:
            yield event

    def relay_of_images() -> Relay[EditEvent]:
        return Relay(source(), silence_s=10, heartbeat=EditEvent, size_of=EditEvent.ByteSize, stored=lambda event: None)

    slow = relay_of_images()
    asleep = slow.events()
    assert await anext(asleep) == events[0]
    assert [event async for event in relay_of_images().events()] == events
    await asyncio.sleep(0.5)
    assert slow._size_bytes <= 3 * WAITING_BYTES + 2000
    with pytest.raises(DeadlineExceeded) as caught:
        assert [event async for event in asleep] == []
    assert caught.value.reason == "READER_TOO_SLOW" and slow._size_bytes == 0
