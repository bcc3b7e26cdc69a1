"""What each tenant has used: counted once, by the day, and told to the tenant itself and to admins."""

import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from gateway import usage_records
from gateway.state import State
from gateway.tuning_records import Attempt, Taker
from gateway.usage_records import KEPT_DAYS, Used
from tests.gateway.older_state import take_usage_out
from tests.gateway.test_state import tuning
from unitune.v1.tuning_pb2 import Tuning, WeightsRef

EVER = (date(2000, 1, 1), date(2100, 1, 1))


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    """An empty state."""
    state = await State.open(tmp_path / "state.sqlite")
    yield state
    await state.close()


def took(tuning: Tuning, seconds: float) -> None:
    """Have it begun so long ago."""
    tuning.start_time.FromMicroseconds(round(1e6 * (time.time() - seconds)))


async def test_a_tuning_counts_when_it_is_made_and_its_seconds_whenever_a_tuner_lets_it_go(state: State) -> None:
    """One that is found counts for nothing; every attempt's seconds count once, however it ends."""
    made = await state.create(tuning(), None)
    await state.create(tuning(number=1), None)  # finds the same
    assert await state.used_by("default", *EVER) == Used(tunings=1)
    taken = await state.take(Taker("a", "place"))
    assert taken is not None
    await state.change(made.name, lambda now: took(now, 10))
    await state.let_go(Attempt(made.name, 1))
    assert (await state.used_by("default", *EVER)).tuner_s == pytest.approx(10, abs=1)
    taken = await state.take(Taker("a", "place"))
    assert taken is not None and taken.attempt == 2
    await state.change(made.name, lambda now: took(now, 100))
    for _ in range(2):  # the second is a report that is repeated
        await state.finish(Attempt(made.name, 2), WeightsRef(digest="d"))
    used = await state.used_by("default", *EVER)
    assert used.tuner_s == pytest.approx(110, abs=1) and used.tunings == 1
    assert await state.used_by("acme", *EVER) == Used()
    await state.remove(made.name)
    assert (await state.used_by("default", *EVER)).tunings == 1


async def test_use_is_told_by_days_and_in_pages(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of a time count; whoever used nothing in it is told as such; what is too old is forgotten."""
    today = usage_records.today()
    monkeypatch.setattr(usage_records, "today", lambda: today - timedelta(days=KEPT_DAYS + 1))
    await state.use({"a": Used(edits=100)})
    monkeypatch.setattr(usage_records, "today", lambda: today - timedelta(days=1))
    await state.use({"a": Used(edits=1, sampler_s=2.5), "b": Used(images=3)})
    monkeypatch.setattr(usage_records, "today", lambda: today)
    await state.use({"a": Used(edits=1), "c": Used(edits=7)})
    yesterday = today - timedelta(days=1)
    assert await state.used_by("a", yesterday, today) == Used(edits=2, sampler_s=2.5)
    assert await state.used_by("a", *EVER) == Used(edits=2, sampler_s=2.5)
    assert await state.used_by_all(today, today, "", 2) == [("a", Used(edits=1)), ("b", Used())]
    assert await state.used_by_all(yesterday, today, "b", 2) == [("c", Used(edits=7))]


async def test_a_file_of_the_version_before_gets_the_table(tmp_path: Path) -> None:
    """Tenants that have tunings in it are known from the start, and count from then on."""
    path = tmp_path / "state.sqlite"
    state = await State.open(path)
    await state.create(tuning("acme"), None)
    await state.close()
    with sqlite3.connect(path) as old:
        take_usage_out(old)
        old.execute("PRAGMA user_version = 5")
    old.close()
    state = await State.open(path)
    assert await state.used_by_all(*EVER, "", 9) == [("acme", Used())]
    await state.create(tuning("acme", key="other"), None, trace="00-1-2-01")
    assert (await state.used_by("acme", *EVER)).tunings == 1
    traces = [(await state.take(Taker(f"{number}"))).trace for number in range(2)]  # type: ignore[union-attr]
    assert traces == ["", "00-1-2-01"]
    await state.close()
