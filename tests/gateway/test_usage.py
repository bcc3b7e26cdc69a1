"""What each tenant has used: counted once, by the day, and told to the tenant itself and to admins."""

import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from gateway import usage as usage_counts
from gateway import usage_records
from gateway.state import State
from gateway.tuning_records import Attempt, Taker
from gateway.usage import UsageCounts
from gateway.usage_records import KEPT_DAYS, Used
from tests.full_disk import fill, mounted
from tests.gateway.callers import EDIT, Caller, ask_for_keys, make
from tests.gateway.conftest import World, edit, picture, refused
from tests.gateway.older_state import take_sharing_out, take_usage_out
from tests.gateway.test_state import tuning
from unitune.errors import ResourceExhausted
from unitune.v1.tuning_pb2 import DeleteTuningRequest, Tuning, WeightsRef
from unitune.v1.usage_pb2 import ListUsageRequest, Usage

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
        take_sharing_out(old)
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


async def usage(world: World, **request: Any) -> list[Usage]:
    """What a page tells."""
    return list((await stub(world).ListUsage(ListUsageRequest(**request))).usage)


def stub(world: World) -> Any:
    """Of the service."""
    return world.stubs["usage"]


async def test_what_a_tenant_does_is_counted(world: World) -> None:
    """Pictures and tunings once, each edit, the seconds of tuner and sampler, and the bytes that are stored."""
    world.sampler.step_s = 0.02
    tuning = await world.tuned()
    await world.upload(picture())  # the same again
    await world.tune()  # found
    for _ in range(2):
        await edit(world, tuning=tuning.name)
    await world.upload(picture("red"), parent="tenants/acme")
    acme, default = await usage(world)
    assert (default.parent, default.images, default.tunings, default.edits) == ("tenants/default", 1, 1, 2)
    assert (acme.parent, acme.images, acme.tunings, acme.edits) == ("tenants/acme", 1, 0, 0)
    assert 2 * 15 * 0.02 <= default.sampler_s < 20 and 0 < default.tuner_s < 20 and acme.sampler_s == 0
    root = world.folder / "store"
    for collection, told in (
        ("images", default.image_bytes),
        ("tunings", default.weight_bytes),
        ("edits", default.result_bytes),
    ):
        assert told == sum(path.stat().st_size for path in (root / collection / "default").rglob("*") if path.is_file())
        assert told > 0
    assert await usage(world, parent="tenants/default") == [default]
    (never,) = await usage(world, parent="tenants/never")
    assert (never.parent, never.edits, never.image_bytes) == ("tenants/never", 0, 0)


async def test_what_was_counted_outlives_a_gateway_and_what_is_deleted(world: World) -> None:
    """A gateway that stops writes what it has counted; a deleted tuning stays counted, and its bytes are gone."""
    tuning = await world.tuned()
    await edit(world, tuning=tuning.name)
    await world.close()
    await world.open()
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    (used,) = await usage(world)
    assert (used.images, used.tunings, used.edits) == (1, 1, 1)
    assert (used.image_bytes, used.weight_bytes, used.result_bytes) == (0, 0, 0)


async def test_usage_comes_in_pages_and_refuses_other_days(world: World) -> None:
    """Every tenant once, in the order of the names; a day of another form, or an end before the start, is refused."""
    for tenant in "cab":
        await world.upload(picture(), parent=f"tenants/{tenant}")
    found, token = [], ""
    while True:
        page = await stub(world).ListUsage(ListUsageRequest(page_size=2, page_token=token))
        found += [used.parent for used in page.usage]
        if not (token := page.next_page_token):
            break
    assert found == ["tenants/a", "tenants/b", "tenants/c"]
    assert [used.images for used in await usage(world, start_day="2000-01-01", end_day="2000-12-31")] == [0, 0, 0]
    for request, field in (
        ({"start_day": "2026-1-1"}, "start_day"),
        ({"end_day": "2026-02-30"}, "end_day"),
        ({"end_day": "0000-00-00"}, "end_day"),
        ({"start_day": "2026-02-02", "end_day": "2026-02-01"}, "start_day"),
        ({"page_token": "x"}, "page_token"),
    ):
        call = stub(world).ListUsage(ListUsageRequest(**request))
        await refused(call, StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)
    assert (await usage(world, parent="tenants/a", end_day="0001-01-01"))[0].start_day == "0001-01-01"


async def test_a_tenant_sees_its_own_use_and_an_admin_that_of_all(world: World) -> None:
    """A key that reads names no other tenant; the admin's names one or all; a key that only edits sees none."""
    admin = await ask_for_keys(world)
    alice, bob = await make(admin, "alice"), await make(admin, "bob")
    for caller in (alice, bob):
        await caller.upload(picture())

    async def seen(caller: Caller, **request: Any) -> list[str]:
        return [one.parent for one in (await caller("usage.ListUsage", ListUsageRequest(**request))).usage]

    assert await seen(alice) == await seen(alice, parent="tenants/alice") == ["tenants/alice"]
    assert await seen(admin) == ["tenants/alice", "tenants/bob"]
    assert await seen(admin, parent="tenants/bob") == ["tenants/bob"]
    call = alice("usage.ListUsage", ListUsageRequest(parent="tenants/bob"))
    await refused(call, StatusCode.PERMISSION_DENIED, "TENANT_MISMATCH")
    editor = await make(admin, "alice", EDIT)
    call = editor("usage.ListUsage", ListUsageRequest())
    await refused(call, StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


async def test_use_that_cannot_be_written_is_counted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full it stays in memory, for a bounded number of tenants, and then counts once."""
    monkeypatch.setattr(usage_counts, "KEPT_TENANTS", 2)
    with mounted(tmp_path / "disk", "2m") as disk:
        state = await State.open(disk / "state.sqlite")
        counts = UsageCounts(state)
        ballast = fill(disk)
        with pytest.raises(ResourceExhausted):
            for number in range(100):
                await state.create(tuning(key=f"k{number}", number=number), None)
        for tenant in ("a", "b", "c", "a"):
            counts.count(tenant, Used(edits=1))
        with pytest.raises(ResourceExhausted):
            await counts.keep()
        ballast.unlink()
        counts.count("a", Used(edits=1))
        for _ in range(2):
            await counts.keep()
        edits = {tenant: used.edits for tenant, used in await state.used_by_all(*EVER, "", 9) if used.edits}
        assert edits == {"a": 3, "b": 1}
        await state.close()
