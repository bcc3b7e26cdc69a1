"""The promises of `gateway.state`, in a file and on a PostgreSQL server."""

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from gateway import postgres
from gateway import state as state_module
from gateway.state import KEPT_EVENTS, MAX_CRASHES, State
from gateway.tuning_queue import WaitingTenant, position
from gateway.tuning_records import Attempt, CreateRequest, Standing, Taker
from tests.gateway.older_state import take_keys_out, take_leases_out, take_sharing_out, take_usage_out
from unitune.errors import InvalidArgument, from_status
from unitune.options import Flat
from unitune.v1.tuner_pb2 import Checkpoint
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress, WeightsRef

TUNER = Taker("tuner")

# As the first version of this program made the file.
FIRST_SCHEMA = """
CREATE TABLE tunings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    image TEXT NOT NULL,
    state INTEGER NOT NULL,
    position INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    last_event INTEGER NOT NULL DEFAULT 0,
    expire_s REAL,
    blob BLOB NOT NULL
);
CREATE UNIQUE INDEX live ON tunings (tenant, key) WHERE state IN (1, 2, 3);
CREATE INDEX by_tenant ON tunings (tenant, number);
CREATE INDEX by_image ON tunings (image);
CREATE INDEX by_state ON tunings (state);
CREATE TABLE events (
    tuning INTEGER, sequence INTEGER, blob BLOB NOT NULL, PRIMARY KEY (tuning, sequence)
) WITHOUT ROWID;
CREATE TABLE requests (
    tenant TEXT, request_id TEXT, body TEXT NOT NULL, tuning TEXT NOT NULL, create_s REAL NOT NULL,
    PRIMARY KEY (tenant, request_id)
) WITHOUT ROWID;
CREATE TABLE turns (tenant TEXT PRIMARY KEY, last_turn INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


@pytest.fixture(params=["sqlite", "postgresql"])
async def state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[State]:
    """An empty state."""
    if request.param == "sqlite":
        state = await State.open(tmp_path / "folder" / "state.sqlite")
    else:
        with pytest.MonkeyPatch.context() as quick:
            quick.setattr(postgres, "GATHERS_S", 0.02)
            state = await State.open(request.getfixturevalue("postgres_server").new_database())
    yield state
    await state.close()


def tuning(tenant: str = "default", key: str = "k", number: int = 0) -> Tuning:
    """A tuning as `create` takes it."""
    return Tuning(
        name=f"tenants/{tenant}/tunings/t-{tenant}-{key}-{number:04d}",
        image=f"tenants/{tenant}/images/{'a' * 64}",
        key=key,
        state=Tuning.STATE_QUEUED,
    )


def becomes(value: Tuning.State):
    """A change to this state."""
    return lambda tuning: setattr(tuning, "state", value)


async def kinds(state: State, name: str) -> list[str | None]:
    """What happened to a tuning."""
    kept = await state.read(name, 0)
    assert kept is not None
    return [event.WhichOneof("event") for event in kept.events]


async def test_one_live_tuning_per_tenant_and_key(state: State) -> None:
    """The second creation of a key answers with the first while it lives, whatever its state, and per tenant; like all
    of this file in SQLite and in PostgreSQL (F1)."""
    first = await state.create(tuning(number=1), None)
    for live in (Tuning.STATE_QUEUED, Tuning.STATE_RUNNING, Tuning.STATE_READY):
        await state.change(first.name, becomes(live))
        assert (await state.create(tuning(number=2), None)).name == first.name
        assert (await state.live("default", "k")).name == first.name
    assert (await state.create(tuning("acme", number=3), None)).name != first.name
    for ended in (Tuning.STATE_FAILED, Tuning.STATE_CANCELLED, Tuning.STATE_EXPIRED):
        current = await state.live("default", "k")
        await state.change(current.name, becomes(ended))
        assert await state.live("default", "k") is None
        assert (await state.create(tuning(number=10 + ended), None)).name != current.name


async def test_creations_at_once_make_one(state: State) -> None:
    """Many at once, each with a name of its own, and all get the same one."""
    answers = await asyncio.gather(*(state.create(tuning(number=number), None) for number in range(20)))
    assert len({answer.name for answer in answers}) == 1
    assert len((await state.page("default", 0, 0, 99)).tunings) == 1


async def test_request_is_recalled_per_tenant(state: State) -> None:
    """A request's id is its tenant's own, and its body must stay the same."""
    made = await state.create(tuning(), CreateRequest("id", "body"))
    assert (await state.recall("default", CreateRequest("id", "body"))).name == made.name
    assert await state.recall("acme", CreateRequest("id", "other")) is None
    assert await state.recall("default", CreateRequest("id2", "body")) is None
    with pytest.raises(InvalidArgument):
        await state.create(tuning(key="other", number=5), CreateRequest("id", "other"))
    assert await state.live("default", "other") is None


async def test_requests_that_are_known_are_bounded(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one tenant, however often it asks for a tuning that is there; the newest stay, and other tenants' do."""
    monkeypatch.setattr(state_module, "KEPT_REQUESTS", 20)
    made = await state.create(tuning("acme"), CreateRequest("id", "body"))
    for number in range(60):
        await state.create(tuning(number=number), CreateRequest(f"id-{number}", "body"))
    known = [await state.recall("default", CreateRequest(f"id-{number}", "body")) for number in range(60)]
    assert 15 <= len(known) - known.count(None) <= 20 and None not in known[-15:]
    assert (await state.recall("acme", CreateRequest("id", "body"))).name == made.name


async def test_tenants_take_turns(state: State) -> None:
    """One tenant's fifty tunings delay another's first by one; within a tenant the oldest goes first."""
    for number in range(50):
        await state.create(tuning("acme", f"a{number:02d}"), None)
    first = await state.take(Taker("the first"))
    await state.create(tuning("zoo", "z"), None)
    await state.create(tuning("bee", "b0"), None)
    await state.create(tuning("bee", "b1"), None)
    order = [(await state.take(Taker(f"tuner {number}"))).tuning.key for number in range(6)]
    assert first.tuning.key == "a00"
    assert order == ["z", "b0", "a01", "b1", "a02", "a03"]


async def test_a_tenant_runs_no_more_than_it_may(state: State) -> None:
    """With two allowed, a tenant's third tuning waits, and another tenant's is taken meanwhile; whoever waits for one
    that may be taken is woken when one of the two ends, and not before (F5)."""
    for number in range(4):
        await state.create(tuning("acme", f"a{number}", number), None)

    async def take(number: int) -> str | None:
        taken = await state.take(Taker(f"tuner {number}"), most_running=2)
        return None if taken is None else taken.tuning.key

    assert [await take(number) for number in range(3)] == ["a0", "a1", None]
    waiting = asyncio.create_task(state.wait_queued(most_running=2))
    await state.report(Attempt(tuning("acme", "a0").name, 1), "tuner 0", progress=TuningProgress(update=1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.3)
    await state.create(tuning("bee", "b", 9), None)
    await asyncio.wait_for(waiting, 20)
    assert [await take(3), await take(4)] == ["b", None]
    waiting = asyncio.create_task(state.wait_queued(most_running=2))
    await state.finish(Attempt(tuning("acme", "a0").name, 1), WeightsRef())
    await asyncio.wait_for(waiting, 20)
    assert [await take(5), await take(6)] == ["a2", None]
    assert (await state.take(Taker("tuner 7"))).tuning.key == "a3"


async def test_positions_are_the_order_of_taking(state: State) -> None:
    """Each tuning's queue_position is the number of those taken before it."""
    names = ["a0", "a1", "a2", "b0", "c0"]
    for name in names:
        await state.create(tuning({"a": "acme", "b": "bee", "c": "cow"}[name[0]], name), None)
    page = [(await state.page(tenant, 0, 0, 9)).tunings for tenant in ("acme", "bee", "cow")]
    positions = {found.key: found.queue_position for tunings in page for found in tunings}
    taken = [(await state.take(Taker(f"tuner of {name}"))).tuning.key for name in names]
    assert taken == sorted(positions, key=positions.__getitem__)
    assert await state.take(TUNER) is None


def in_turns(queue: list[WaitingTenant]) -> list[tuple[str, int]]:
    """Tenant and rank of every tuning in the order of being taken, by taking them one by one."""
    left, turns = {one.tenant: one.num_queued for one in queue}, {one.tenant: one.last_turn for one in queue}
    first, order = {one.tenant: one.first for one in queue}, list[tuple[str, int]]()
    while waiting := [tenant for tenant, number in left.items() if number]:
        tenant = min(waiting, key=lambda one: (turns[one], first[one]))
        order.append((tenant, [one for one, _ in order].count(tenant) + 1))
        left[tenant] -= 1
        turns[tenant] = max(turns.values()) + 1
    return order


def test_computed_positions_are_those_of_taking_one_by_one() -> None:
    """For 200 random queues the place of each tuning is its index in the list of all, in the order of taking (F7)."""
    chance = random.Random(7)
    for _ in range(200):
        turns = chance.sample(range(1, 99), 9)
        queue = [
            WaitingTenant(f"t{tenant}", chance.randint(1, 6), tenant + 1, chance.choice([0, turns[tenant]]))
            for tenant in range(chance.randint(1, 9))
        ]
        queue.sort(key=lambda one: (one.last_turn, one.first))
        order = in_turns(queue)
        assert [position(queue, tenant, rank) for tenant, rank in order] == list(range(len(order)))


async def test_those_who_wait_are_not_written_to(state: State) -> None:
    """Of 560 tunings each has one event, `queued`, whatever happens to those before it, and knows its place (r14)."""
    names = [(await state.create(tuning(f"t{number % 7}", f"k{number}", number), None)).name for number in range(560)]
    taken = [(await state.take(Taker(f"tuner {number}"))).tuning.name for number in range(3)]
    await state.change(names[10], becomes(Tuning.STATE_CANCELLED), lambda now: TuningEvent(cancelled=now))
    await state.let_go(Attempt(taken[0], 1))
    await state.remove(names[11])

    waiting = [name for name in names if name not in (*taken, names[10], names[11])]
    for name in waiting:
        assert await kinds(state, name) == ["queued"]
    places = sorted([(await state.get(name)).queue_position for name in [*waiting, taken[0]]])
    assert places == list(range(556))


async def test_event_and_change_happen_together_or_not_at_all(state: State) -> None:
    """A change whose event cannot be made is not made."""
    made = await state.create(tuning(), None)

    def broken(_: Tuning) -> TuningEvent:
        raise RuntimeError("no event")

    with pytest.raises(RuntimeError, match="no event"):
        await state.change(made.name, becomes(Tuning.STATE_CANCELLED), broken)
    assert await state.get(made.name) == made and await kinds(state, made.name) == ["queued"]


async def test_no_change_is_not_announced(state: State) -> None:
    """What changes nothing has no event and keeps its etag; what changes something has a new one."""
    made = await state.create(tuning(), None)
    same = await state.change(made.name, lambda tuning: None, lambda tuning: TuningEvent(cancelled=tuning))
    assert same == made and await kinds(state, made.name) == ["queued"]
    changed = await state.change(made.name, lambda tuning: tuning.labels.update({"a": "b"}))
    assert changed.etag != made.etag
    assert await state.change("tenants/default/tunings/t-none", becomes(Tuning.STATE_FAILED)) is None


async def test_old_events_are_pruned(state: State) -> None:
    """The last 512 events are kept, and a reader of older ones is told of the gap."""
    made = await state.create(tuning(), None)
    for update in range(1, KEPT_EVENTS + 10):
        await state.change(
            made.name,
            lambda tuning, update=update: setattr(tuning.progress, "update", update),
            lambda tuning: TuningEvent(progress=tuning.progress),
        )
    last = KEPT_EVENTS + 10
    kept = await state.read(made.name, 0)
    assert kept.gap and kept.last == last and len(kept.events) == KEPT_EVENTS
    assert [event.sequence for event in kept.events] == list(range(last - KEPT_EVENTS + 1, last + 1))
    assert not (await state.read(made.name, last - KEPT_EVENTS)).gap
    assert (await state.read(made.name, last - KEPT_EVENTS - 1)).gap


async def test_events_of_a_tuning_that_ended_an_hour_ago_go(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the last, whatever the tuning ended by; those of others stay (F14)."""
    ended = list[str]()
    for number, hours in enumerate((0.9, 1.0, 1.0, 1.0)):
        monkeypatch.setattr(state_module, "EVENTS_KEPT_S", 3600.0 * (1 - hours) - (hours == 1.0))
        made = await state.create(tuning(key=f"k{number}", number=number), None)
        attempt = Attempt(made.name, (await state.take(TUNER)).attempt)
        if number == 2:
            await state.fail(attempt, Status(code=9))
        elif number == 3:
            await state.change(made.name, becomes(Tuning.STATE_CANCELLED), lambda now: TuningEvent(cancelled=now))
        else:
            await state.finish(attempt, WeightsRef())
        ended.append(made.name)
    running = await state.create(tuning(key="running", number=9), None)
    await state.take(TUNER)
    assert await state.trim_events() == 3 and await state.trim_events() == 0
    found = [await kinds(state, name) for name in ended]
    assert found == [["queued", "started", "ready"], ["ready"], ["failed"], ["cancelled"]]
    assert await kinds(state, running.name) == ["queued", "started"]
    assert (await state.read(ended[1], 0)).gap and not (await state.read(ended[1], 2)).gap


async def test_wait_returns_when_there_is_wait_for_event(state: State) -> None:
    """A waiter wakes for its own tuning's event, also for one that came between its read and its wait."""
    one, two = await state.create(tuning(key="1"), None), await state.create(tuning(key="2"), None)
    waiting = asyncio.create_task(state.wait(one.name, 1))
    await state.change(two.name, becomes(Tuning.STATE_RUNNING), lambda _: TuningEvent(started=TuningEvent.Started()))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await state.change(one.name, becomes(Tuning.STATE_RUNNING), lambda _: TuningEvent(started=TuningEvent.Started()))
    await asyncio.wait_for(waiting, 10)
    await asyncio.wait_for(state.wait(one.name, 1), 10)
    gone = asyncio.create_task(state.wait(two.name, 99))
    await state.remove(two.name)
    await asyncio.wait_for(gone, 10)
    assert await state.read(two.name, 0) is None


async def test_a_state_grows_in_its_file_alone(state: State) -> None:
    """Tunings that came, had events and are waited for no more leave nothing in the memory of the process."""
    names = [(await state.create(tuning(key=f"{number}"), None)).name for number in range(20)]
    waiting = [asyncio.create_task(state.wait(name, 1)) for name in names]
    for name in names[:10]:
        await state.change(name, becomes(Tuning.STATE_CANCELLED), lambda now: TuningEvent(cancelled=now))
    await asyncio.wait_for(asyncio.gather(*waiting[:10]), 10)
    for task in waiting[10:]:
        task.cancel()
    await asyncio.gather(*waiting[10:], return_exceptions=True)
    assert not [name for name, held in vars(state).items() if isinstance(held, (dict, set, list)) and held]


async def test_a_cancelled_caller_leaves_a_whole_change(state: State) -> None:
    """A caller that goes away in the middle of a change does not undo it, and waiters still hear of it."""
    made = await state.create(tuning(), None)
    waiting = asyncio.create_task(state.wait(made.name, 1))
    calling = asyncio.create_task(
        state.change(made.name, becomes(Tuning.STATE_CANCELLED), lambda tuning: TuningEvent(cancelled=tuning))
    )
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait_for(waiting, 10)
    assert (await state.get(made.name)).state == Tuning.STATE_CANCELLED


async def test_what_was_lost_counts_when_its_tuner_died(state: State) -> None:
    """A lease that runs out puts its tuning back at its old place; once three tuners have died with it, which others
    show by taking work, it is FAILED (R5)."""
    name = (await state.create(tuning(key="first"), None)).name
    await state.create(tuning(key="second"), None)
    for attempt in range(1, MAX_CRASHES + 1):
        taken = await state.take(Taker(f"tuner {attempt}"), lease_s=-1)
        assert (taken.tuning.name, taken.attempt) == (name, attempt)
        assert await state.sweep() == [name]
    assert (await state.get(name)).state == Tuning.STATE_QUEUED  # the last tuner may yet prove to be alive
    assert (await state.take(Taker("tuner 4"))).tuning.key == "second"
    failed = await state.get(name)
    assert failed.state == Tuning.STATE_FAILED and from_status(failed.error).reason == "WORKER_CRASHED"
    assert await kinds(state, name) == [*["queued", "started"] * 3, "queued", "failed"]


async def test_what_was_lost_without_its_tuner_never_fails(state: State) -> None:
    """A tuner that takes work again with its old instance did not die with the run, and gives back what it forgot
    (R1)."""
    made = await state.create(tuning(), None)
    for instance in ("one", "one", "one", "two", "two", "two") * MAX_CRASHES:
        assert (await state.take(Taker(instance), lease_s=-1)).tuning.name == made.name
        await state.sweep()
        assert await state.take(Taker(instance)) is not None  # the same tuning, and then it asks anew
        assert await state.take(Taker(instance)) is not None
        await state.let_go(Attempt(made.name, (await state.take(Taker(instance))).attempt))
    assert (await state.get(made.name)).state == Tuning.STATE_QUEUED


async def test_a_run_that_gets_further_begins_the_count_anew(state: State) -> None:
    """Tuners may die as often as they like under a long tuning, unless its runs end ever at the same place (R5)."""
    made = await state.create(tuning(), None)
    reached = [1, 1, 5, 9, 9, 20, 3, 20]
    for number, updates in enumerate(reached):
        taken = await state.take(Taker(f"tuner {number}"))
        assert taken is not None, number
        attempt = Attempt(made.name, taken.attempt)
        await state.report(attempt, f"tuner {number}", progress=TuningProgress(update=updates), lease_s=-1)
        await state.sweep()
    assert await state.take(Taker("the last")) is None
    assert from_status((await state.get(made.name)).error).reason == "WORKER_CRASHED"


async def test_a_place_that_starts_again_gives_back_at_once(state: State) -> None:
    """Another process at a tuner's place shows that the one before it died: its lease is not waited for."""
    made = await state.create(tuning(), None)
    for number in range(MAX_CRASHES):
        taken = await state.take(Taker(f"tuner {number}", "here"))
        assert taken is not None and taken.attempt == number + 1
    assert await state.take(Taker("elsewhere", "there")) is None  # it runs
    assert await state.take(Taker("tuner 3", "here")) is None
    assert from_status((await state.get(made.name)).error).reason == "WORKER_CRASHED"


async def test_a_gateway_that_begins_blames_nobody(state: State) -> None:
    """What ran when the gateway before it ended may have ended with it; a tuner that reports again is its own again."""
    made = await state.create(tuning(), None)
    for number in range(2 * MAX_CRASHES):
        assert (await state.take(Taker(f"tuner {number}", "here"))).tuning.name == made.name
        await state.blame_nobody()
    for number in range(MAX_CRASHES):
        taken = await state.take(Taker(f"other {number}", "here"))
        await state.blame_nobody()
        await state.report(Attempt(made.name, taken.attempt), f"other {number}")
    assert await state.take(Taker("the last", "here")) is None


async def test_only_the_latest_attempt_changes_a_tuning(state: State) -> None:
    """Whatever an earlier attempt reports is answered as lost, and leaves tuning and events as they are."""
    made = await state.create(tuning(), None)
    first = Attempt(made.name, (await state.take(TUNER, lease_s=-1)).attempt)
    await state.sweep()
    late = await reports(state, first)
    assert [standing for standing, _ in late] == [Standing.LOST] * 5
    assert await kinds(state, made.name) == ["queued", "started", "queued"]

    second = Attempt(made.name, (await state.take(Taker("other"))).attempt)
    before = await state.get(made.name)
    assert [standing for standing, _ in await reports(state, first)] == [Standing.LOST] * 5
    assert await state.get(made.name) == before and await state.sweep() == []

    ours = WeightsRef(digest="2" * 64)
    assert await state.finish(second, ours) is Standing.KEPT
    assert [standing for standing, _ in await reports(state, first)] == [Standing.LOST] * 5
    assert (await state.get(made.name)).weights == ours
    assert await kinds(state, made.name) == ["queued", "started", "queued", "started", "ready"]


async def reports(state: State, attempt: Attempt) -> list[tuple[Standing, str]]:
    """Every report that an attempt can make, and what became of it."""
    checkpoint = Checkpoint(path="p", sha256="s", update=1)
    return [
        (await state.report(attempt, "tuner", progress=TuningProgress(update=9)), "progress"),
        (await state.keep_checkpoint(attempt, "tuner", checkpoint), "checkpoint"),
        (await state.finish(attempt, WeightsRef(digest="1" * 64)), "done"),
        (await state.fail(attempt, Status(code=13, message="no")), "failed"),
        (await state.let_go(attempt), "give_back"),
    ]


async def test_reports_may_be_repeated(state: State) -> None:
    """The end of an attempt that is reported again, as if its answer had been lost, is kept once: one last event."""
    one, two = await state.create(tuning(key="1"), None), await state.create(tuning(key="2"), None)
    weights, error = WeightsRef(digest="1" * 64), Status(code=13, message="it diverged")
    first = Attempt(one.name, (await state.take(TUNER)).attempt)
    assert [await state.finish(first, weights) for _ in range(3)] == [Standing.KEPT] * 3
    assert await state.finish(first, WeightsRef(digest="2" * 64)) is Standing.LOST
    second = Attempt(two.name, (await state.take(TUNER)).attempt)
    assert [await state.fail(second, error) for _ in range(3)] == [Standing.KEPT] * 3
    assert await kinds(state, one.name) == ["queued", "started", "ready"]
    assert await kinds(state, two.name) == ["queued", "started", "failed"]


async def test_a_lease_lasts_as_long_as_there_are_reports(state: State) -> None:
    """A report begins the lease anew. A cancelled tuning has none, and whoever waits for an attempt's end wakes."""
    made = await state.create(tuning(), None)
    attempt = Attempt(made.name, (await state.take(TUNER, lease_s=-1)).attempt)
    assert await state.report(attempt, "tuner") is Standing.KEPT
    assert await state.sweep() == []
    waiting = asyncio.create_task(state.wait_lost(attempt))
    await state.report(attempt, "tuner", progress=TuningProgress(update=1))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await state.change(made.name, becomes(Tuning.STATE_CANCELLED), lambda now: TuningEvent(cancelled=now))
    await asyncio.wait_for(waiting, 10)
    assert [standing for standing, _ in await reports(state, attempt)] == [Standing.CANCELLED] * 5
    await state.remove(made.name)
    assert [standing for standing, _ in await reports(state, attempt)] == [Standing.CANCELLED] * 5


async def test_recover_leaves_the_one_that_runs(state: State) -> None:
    """What is RUNNING and run by nobody goes back into the queue at any time, beside one that runs (R6)."""
    one, two = await state.create(tuning(key="1"), None), await state.create(tuning(key="2"), None)
    for instance, lease_s in (("one", 30), ("two", -1)):
        await state.take(Taker(instance), lease_s=lease_s)
    assert await state.sweep() == [two.name]
    states = [(await state.get(made.name)).state for made in (one, two)]
    assert states == [Tuning.STATE_RUNNING, Tuning.STATE_QUEUED]


async def test_a_tuner_takes_only_tunings_of_its_base_model(state: State) -> None:
    """Others wait for theirs, and do not keep what is behind them from being taken (F24)."""
    for number, model in enumerate("aabb"):
        made = tuning(f"t{number % 2}", f"k{number}", number)
        made.base_model = model
        await state.create(made, None)
    assert [(await state.take(Taker(f"b {n}"), base_model="b")).tuning.base_model for n in range(2)] == ["b", "b"]
    assert await state.take(Taker("b"), base_model="b") is None
    assert await state.queued_base_models() == ["a"]
    assert len(await state.fail_queued("a", Status(code=9))) == 2
    assert await state.take(Taker("a"), base_model="a") is None


async def test_the_next_attempt_gets_the_last_checkpoint(state: State) -> None:
    """It is the latest one of the attempts before, and an attempt that is over adds none."""
    made = await state.create(tuning(), None)
    taken = await state.take(TUNER, lease_s=-1)
    assert taken.checkpoint is None
    for update in (3, 7):
        checkpoint = Checkpoint(path=f"at {update}", sha256="5" * 64, update=update)
        await state.keep_checkpoint(Attempt(made.name, 1), "tuner", checkpoint, lease_s=-1)
    await state.sweep()
    again = await state.take(Taker("other"))
    assert again.checkpoint == checkpoint
    await state.keep_checkpoint(Attempt(made.name, 1), "tuner", Checkpoint(update=99))
    await state.let_go(Attempt(made.name, 2))
    assert (await state.take(TUNER)).checkpoint == checkpoint


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    """A file of the first schema keeps its tunings and events, and no death that it counted for the gateway (R5)."""
    path = tmp_path / "state.sqlite"
    old = sqlite3.connect(path)
    old.executescript(FIRST_SCHEMA)
    for key, crashes, value in (("a", 2, Tuning.STATE_RUNNING), ("b", 2, Tuning.STATE_READY)):
        message = tuning(key=key)
        message.state, message.base_model = value, "of that time"
        old.execute(
            "INSERT INTO tunings (name, tenant, key, image, state, attempt, crashes, last_event, blob)"
            " VALUES (?, 'default', ?, ?, ?, 2, ?, 1, ?)",
            (message.name, key, message.image, value, crashes, message.SerializeToString()),
        )
        event = TuningEvent(sequence=1, started=TuningEvent.Started(attempt=2))
        old.execute("INSERT INTO events SELECT MAX(number), 1, ? FROM tunings", (event.SerializeToString(),))
    old.commit()
    old.close()
    state = await State.open(path)
    assert len(await state.sweep()) == 1
    assert (await state.live("default", "b")).state == Tuning.STATE_READY
    assert await state.take(TUNER, base_model="another") is None
    taken = await state.take(TUNER, base_model="of that time")
    assert (taken.tuning.key, taken.attempt) == ("a", 3)
    assert await kinds(state, taken.tuning.name) == ["started", "queued", "started"]
    await state.know("tuner", b"what it said")
    await state.close()
    state = await State.open(path)  # which is not brought up to date a second time
    assert await state.known() == {"tuner": b"what it said"}
    await state.close()


async def test_giving_back_without_a_crash_never_fails(state: State) -> None:
    """A run that was let go of does not count."""
    made = await state.create(tuning(), None)
    for number in range(MAX_CRASHES + 2):
        taken = await state.take(Taker(f"tuner {number}"))
        await state.let_go(Attempt(made.name, taken.attempt))
    assert (await state.get(made.name)).state == Tuning.STATE_QUEUED
    await state.change(made.name, becomes(Tuning.STATE_CANCELLED))
    assert await state.let_go(Attempt(made.name, taken.attempt)) is Standing.CANCELLED
    assert (await state.get(made.name)).state == Tuning.STATE_CANCELLED


async def test_expired_lists_ready_tunings_whose_time_has_come(state: State) -> None:
    """Only READY ones with an expire_time, and only once it has come."""
    now = int(time.time())
    for number, (value, seconds) in enumerate(
        [(Tuning.STATE_READY, now - 1), (Tuning.STATE_READY, now + 99), (Tuning.STATE_RUNNING, now - 1)]
    ):
        made = await state.create(tuning(key=f"{number}"), None)
        await state.change(made.name, becomes(value))
        await state.change(made.name, lambda tuning, s=seconds: tuning.expire_time.CopyFrom(Timestamp(seconds=s)))
    forever = await state.create(tuning(key="forever"), None)
    await state.change(forever.name, becomes(Tuning.STATE_READY))
    assert await state.expired(now) == [tuning(key="0").name]


async def test_the_file_belongs_to_one_process(tmp_path: Path) -> None:
    """A second opening of the same file is refused, so that no two connections read it and then write; what another
    program tries changes nothing and loses nothing. The file is for its owner's eyes (F8)."""
    path = tmp_path / "state.sqlite"
    state = await State.open(path)
    with pytest.raises(OSError, match=r"state\.sqlite: another process has it open; end that process"):
        await State.open(path)
    assert path.stat().st_mode & 0o077 == 0
    made = []
    with contextlib.closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as other:
        for number in range(20):
            made.append((await state.create(tuning(key=f"k{number}", number=number), None)).name)
            for statement in ("SELECT max(number) FROM tunings", "UPDATE tunings SET attempt = attempt + 1"):
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute(statement)
    await state.close()
    state = await State.open(path)
    assert [(await state.get(name)).name for name in made] == made
    assert (await state.take(TUNER)).attempt == 1
    await state.close()


async def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """Neither something else than SQLite nor another schema is touched."""
    (tmp_path / "text").write_text("no database at all, but long enough to be asked what it is " * 10)
    with pytest.raises(OSError, match="not a database"):
        await State.open(tmp_path / "text")
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(OSError, match=r"it has schema 99, .* run the version of UniTune that wrote it"):
        await State.open(tmp_path / "newer")


# Of version 2, whose choices were texts: method dreambooth, mode lora.
OLD_TUNING = bytes.fromhex(
    "0a1b74656e616e74732f64656661756c742f74756e696e67732f742d31125774656e616e74732f64656661756c742f696d616765732f616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161611a406262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626222340a0a647265616d626f6f746812046c6f72611803200129fca9f1d24d62503f3203736b734a03646f67500059000000000000f03f2803324034653261613338353835373264616165656533616662333762353433663138633466393532636133653366386664396461633332353666626230636266613232524d0a016b1201641a017020032a4062626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262"
)
OLD_EVENT = bytes.fromhex(
    "08033a81030a1b74656e616e74732f64656661756c742f74756e696e67732f742d31125774656e616e74732f64656661756c742f696d616765732f616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161616161611a406262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626222340a0a647265616d626f6f746812046c6f72611803200129fca9f1d24d62503f3203736b734a03646f67500059000000000000f03f2803324034653261613338353835373264616165656533616662333762353433663138633466393532636133653366386664396461633332353666626230636266613232524d0a016b1201641a017020032a4062626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262626262"
)


async def test_a_file_of_the_version_whose_choices_were_texts_is_brought_up_to_date(tmp_path: Path) -> None:
    """Tunings are found by their keys and have method and mode, events too; a second start changes nothing."""
    path = tmp_path / "state.sqlite"
    await (await State.open(path)).close()
    old = sqlite3.connect(path)
    take_sharing_out(old)
    take_usage_out(old)
    take_leases_out(old)
    take_keys_out(old)
    told = Tuning.FromString(OLD_TUNING)
    old.execute(
        "INSERT INTO tunings (name, tenant, key, image, state, last_event, blob) VALUES (?, 'default', ?, ?, ?, 1, ?)",
        (told.name, told.key, told.image, told.state, OLD_TUNING),
    )
    old.execute("INSERT INTO events VALUES (1, 1, ?)", (OLD_EVENT,))
    old.execute("INSERT INTO services VALUES ('tuner', ?)", (b"what it said",))
    old.execute("PRAGMA user_version = 2")
    old.commit()
    old.close()

    for _ in range(2):
        state = await State.open(path)
        tuning = await state.live("default", told.key)
        assert tuning is not None and tuning.state == Tuning.STATE_READY
        found = Flat(tuning.config)
        assert ("dreambooth", "lora", 3, "dog") == (found.method, found.mode, found.updates, found.class_noun)
        kept = await state.read(told.name, 0)
        assert kept is not None and kept.events[0].ready.config == tuning.config
        assert await state.change(told.name, lambda _: None) == tuning  # whose etag is that of what it says
        assert await state.known() == {}
        await state.close()
