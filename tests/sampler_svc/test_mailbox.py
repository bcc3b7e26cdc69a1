"""Events from a worker thread to a stream: what may be dropped, and what never is."""

import asyncio
import threading
from collections.abc import Callable

from sampler_svc import mailbox as mailbox_module
from sampler_svc.mailbox import Mailbox
from sampler_svc.sampling.events import Step


async def received(write: Callable[[Mailbox[str]], None]) -> list[str | Step]:
    """What a reader gets that begins to read when all is written."""
    mailbox: Mailbox[str] = Mailbox(asyncio.get_running_loop())

    def work() -> None:
        write(mailbox)
        mailbox.close()

    await asyncio.to_thread(work)
    return [event async for event in mailbox.events()]


async def test_events_that_come_once_are_never_dropped() -> None:
    """Whatever is no step arrives, in order."""
    words = [str(number) for number in range(50)]

    assert await received(lambda mailbox: [mailbox.put(word) for word in words]) == words


async def test_quick_steps_are_dropped_but_not_the_last() -> None:
    """Of a hundred steps in no time arrives the last, which an unread one gives way to."""
    events = await received(lambda mailbox: [mailbox.put(Step(index, 100)) for index in range(100)])

    assert events == [Step(99, 100)]


async def test_the_newest_preview_survives_the_steps_that_are_dropped() -> None:
    """A preview rides on with the next step that is sent."""

    def write(mailbox: Mailbox[str]) -> None:
        for index in range(100):
            mailbox.put(Step(index, 100, b"old" if index == 40 else b"new" if index == 70 else b""))

    assert await received(write) == [Step(99, 100, b"new")]


async def test_an_unread_preview_rides_on_with_the_step_that_takes_its_place(monkeypatch) -> None:
    """A slow reader finds one step, the newest, with the newest preview there was."""
    now = 0.0
    monkeypatch.setattr(mailbox_module.time, "monotonic", lambda: now)

    def write(mailbox: Mailbox[str]) -> None:
        nonlocal now
        for index, preview in enumerate((b"old", b"new", b"", b"")):
            now += 1
            mailbox.put(Step(index, 9, preview))

    assert await received(write) == [Step(3, 9, b"new")]


async def test_steps_come_at_most_five_times_a_second(monkeypatch) -> None:
    """By the clock, not by their number; what arrives between is kept in order with other events."""
    now = 0.0
    monkeypatch.setattr(mailbox_module.time, "monotonic", lambda: now)

    def write(mailbox: Mailbox[str]) -> None:
        nonlocal now
        for index in range(20):
            now += 0.0501
            mailbox.put(Step(index, 20))
            mailbox.put(str(index))

    events = await received(write)

    assert [event.index for event in events if isinstance(event, Step)] == [0, 4, 8, 12, 16, 19]
    assert [event for event in events if isinstance(event, str)] == [str(index) for index in range(20)]


async def test_a_reader_that_waits_gets_events_as_they_come() -> None:
    """The reader need not wait for the end."""
    mailbox: Mailbox[str] = Mailbox(asyncio.get_running_loop())
    seen, goes_on = [], threading.Event()

    def work() -> None:
        mailbox.put("first")
        assert goes_on.wait(10)
        mailbox.put("second")
        mailbox.close()

    worker = asyncio.create_task(asyncio.to_thread(work))
    async for event in mailbox.events():
        seen.append(event)
        goes_on.set()
    await worker

    assert seen == ["first", "second"]


async def test_a_mailbox_without_news_says_so() -> None:
    """While the writer has nothing to say its reader is told that again and again, and nothing else is lost (r7)."""
    mailbox: Mailbox[str] = Mailbox(asyncio.get_running_loop())
    events = mailbox.events(0.02)

    assert [await anext(events), await anext(events)] == [None, None]
    await asyncio.to_thread(mailbox.put, "news")
    found = await anext(events)
    while found is None:
        found = await anext(events)
    assert found == "news"
