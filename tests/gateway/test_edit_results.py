"""What is remembered of edits that ended: bounded by bytes, number and time, the oldest forgotten first."""

import asyncio

import pytest

from gateway import edit_results
from gateway.edit_results import EditResults, OpenEdit
from unitune.errors import Internal, NotFound, to_status
from unitune.v1.edit_pb2 import Edit, EditEvent, Timings


def ended(results: EditResults, size_bytes: int) -> OpenEdit:
    """An edit that is done, with a picture of so many bytes."""
    opened = results.begin("default")
    opened.done([EditEvent.EditedImage(png=bytes(size_bytes))], Timings())
    return opened


def names(results: EditResults, edits: list[OpenEdit]) -> list[bool]:
    """Which of them are still known."""
    found = []
    for opened in edits:
        try:
            found.append(results.get(opened.edit.name) is opened)
        except NotFound as error:
            assert error.reason == "EDIT_NOT_FOUND"
            found.append(False)
    return found


async def test_pictures_are_bounded_by_bytes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment that an edit ends, the oldest ends beyond the bound are forgotten; no further call is needed (R9)."""
    monkeypatch.setattr(edit_results, "MAX_BYTES", 10_000)
    results = EditResults()
    running = results.begin("default")
    slow = results.begin("default")  # begun first, ends last
    edits = [ended(results, 3_000) for _ in range(5)]
    slow.done([EditEvent.EditedImage(png=bytes(3_000))], Timings())
    assert results.size_bytes <= 10_000
    assert names(results, [running, *edits, slow]) == [True, False, False, False, True, True, True]


async def test_ends_are_bounded_by_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are forgotten when there are many, and all of them in time, though nobody asks (R9)."""
    monkeypatch.setattr(edit_results, "MAX_EDITS", 3)
    monkeypatch.setattr(edit_results, "KEPT_S", 0.5)
    results = EditResults()
    edits = [ended(results, 10) for _ in range(5)]
    assert names(results, edits) == [False, False, True, True, True]
    async with asyncio.timeout(10):
        while results.size_bytes:
            await asyncio.sleep(0.02)
    assert names(results, edits) == [False] * 5


async def test_one_that_ends_twice_counts_once() -> None:
    """Cancelled in the moment in which it fails, it is kept once, with its last state."""
    results = EditResults()
    opened = results.begin("default")
    opened.cancelled()
    opened.failed(to_status(Internal("x", reason="INTERNAL")))
    assert results.size_bytes == opened.edit.ByteSize() and opened.edit.state == Edit.STATE_FAILED
    assert results.cancel(opened.edit.name).state == Edit.STATE_FAILED
