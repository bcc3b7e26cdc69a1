"""The state of several gateways on one PostgreSQL server: together, and when the server or a connection is lost."""

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import MetaData

from gateway import postgres, state_of_services
from gateway.database import Transaction
from gateway.postgres import PostgresServer as Database
from gateway.postgres import payloads
from gateway.shared_edits import SharedEdits
from gateway.state import State
from gateway.state_schema import SCHEMA_VERSION
from gateway.tuning_records import Attempt, CreateRequest, Standing, Taker
from tests.gateway.test_state import becomes, kinds, tuning
from tests.postgres_server import PostgresServer
from unitune.errors import Unavailable
from unitune.v1.edit_pb2 import Edit
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress, WeightsRef

pytestmark = pytest.mark.slow  # a real server

# A wait that nothing but a notification ends.
NEVER_S = 600.0


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    """An empty database."""
    return postgres_server.new_database()


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Callable[[], Awaitable[State]]]:
    """Opens the state of another gateway on the same database, each time."""
    async with contextlib.AsyncExitStack() as stack:

        async def another() -> State:
            state = await State.open(url)
            stack.push_async_callback(state.close)
            return state

        yield another


def rows(url: str, query: str) -> list[tuple]:
    """What a query answers, on a connection of its own."""
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


async def test_creations_of_two_gateways_make_one(opened: Callable[[], Awaitable[State]]) -> None:
    """Forty at once of one key and one request_id get the same tuning; so do thirty in turn on one connection, whose
    statements the server plans anew after some (F2)."""
    states = [await opened(), await opened()]
    request = CreateRequest("id", "body")
    made = await asyncio.gather(
        *(states[number % 2].create(tuning(number=number), request if number % 4 else None) for number in range(40))
    )
    assert len({answer.name for answer in made}) == 1
    with pytest.MonkeyPatch.context() as one:
        one.setattr(postgres, "CONNECTIONS", 1)
        state = await opened()
    for number in range(30):
        assert (await state.create(tuning(number=100 + number), None)).name == made[0].name
    for number in range(15):
        await state.create(tuning(key=f"k{number}", number=200 + number), CreateRequest(f"r{number}", "body"))
    assert len((await states[0].page("default", 0, 0, 99)).tunings) == 16


async def test_many_takers_take_each_tuning_once(url: str, opened: Callable[[], Awaitable[State]]) -> None:
    """Eight takers of two gateways, and creations beside them: each tuning is taken once, and its events have no gap
    (F3)."""
    states = [await opened(), await opened()]
    names = [f"t{number % 5}" for number in range(60)]
    for number, tenant in enumerate(names[:40]):
        await states[0].create(tuning(tenant, f"k{number}", number), None)
    taken = list[tuple[str, int]]()

    async def take(number: int) -> None:
        state = states[number % 2]
        while len(taken) < len(names):
            one = await state.take(Taker(f"tuner {number}", f"place {number}"))
            if one is None:
                await asyncio.sleep(0.01)
                continue
            taken.append((one.tuning.name, one.attempt))
            attempt = Attempt(one.tuning.name, one.attempt)
            assert await states[(number + 1) % 2].finish(attempt, WeightsRef(digest="1" * 64)) is Standing.KEPT

    takers = [asyncio.create_task(take(number)) for number in range(8)]
    for number, tenant in enumerate(names[40:], start=40):
        await states[1].create(tuning(tenant, f"k{number}", number), None)
    await asyncio.wait_for(asyncio.gather(*takers), 60)
    assert len(taken) == len(set(taken)) == len(names) and {attempt for _, attempt in taken} == {1}
    for name, _ in taken:
        kept = await states[0].read(name, 0)
        assert [event.sequence for event in kept.events] == [1, 2, 3] and kept.last == 3
    assert (await states[0].queue_now())[:2] == (0, 0)


async def test_a_tenant_runs_no_more_than_it_may_anywhere(url: str, opened: Callable[[], Awaitable[State]]) -> None:
    """Eight takers of two gateways at once get two of a tenant that may run two, and all of one that runs fewer. While
    they go on taking and ending, nobody ever sees three run (F5)."""
    states = [await opened(), await opened()]
    for number in range(16):
        await states[0].create(tuning("acme", f"a{number:02d}", number), None)

    takers = itertools.count()  # one that asks again has given back what it had

    async def take(number: int) -> Attempt | None:
        taken = await states[number % 2].take(Taker(f"tuner {next(takers)}"), most_running=2)
        return None if taken is None else Attempt(taken.tuning.name, taken.attempt)

    held = list[Attempt]()
    while len(held) < 2:  # a tenant that another taker just looks at is passed over
        held += [attempt for attempt in await asyncio.gather(*map(take, range(8))) if attempt]
    assert len(held) == 2 and await asyncio.gather(*map(take, range(8))) == [None] * 8
    await states[1].create(tuning("bee", "b", 99), None)
    assert (await take(8)).name == tuning("bee", "b", 99).name
    seen, ended = list[int](), list(held)
    for attempt in held:
        await states[0].finish(attempt, WeightsRef(digest="1" * 64))

    async def look() -> None:
        query = "SELECT count(*) FROM tunings WHERE state = 2 AND tenant = 'acme'"
        while True:
            seen.append((await asyncio.to_thread(rows, url, query))[0][0])
            await asyncio.sleep(0.005)

    async def work(number: int) -> None:
        while len(ended) < 16:
            attempt = await take(number)
            await asyncio.sleep(0.01)
            if attempt:
                await states[1 - number % 2].finish(attempt, WeightsRef(digest="1" * 64))
                ended.append(attempt)

    looking = asyncio.create_task(look())
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(10, 14):
            group.create_task(work(number))
    looking.cancel()
    assert len(set(ended)) == 16 and max(seen) == 2


async def test_a_taker_that_counted_too_early_counts_again(
    opened: Callable[[], Awaitable[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway takes the last tuning that a tenant may run, between a taker's look and its lock (F5)."""
    slow, other = await opened(), await opened()
    for number in range(2):
        await slow.create(tuning("acme", f"a{number}", number), None)
    looked, goes_on, count = threading.Event(), threading.Event(), slow._running

    def looking(tx: Transaction) -> dict[str, int]:
        found = count(tx)
        if not looked.is_set():
            looked.set()
            goes_on.wait(30)
        return found

    monkeypatch.setattr(slow, "_running", looking)
    taking = asyncio.create_task(slow.take(Taker("tuner 1"), most_running=1))
    await asyncio.to_thread(looked.wait, 30)
    assert await other.take(Taker("tuner 2"), most_running=1) is not None
    goes_on.set()
    assert await taking is None


async def test_another_tenant_is_next_but_one_at_most(opened: Callable[[], Awaitable[State]]) -> None:
    """One tenant has queued twenty, another one: of two gateways that take in turn, the first takes that one (F4)."""
    states = [await opened(), await opened()]
    for number in range(20):
        await states[0].create(tuning("acme", f"a{number:02d}"), None)
    await states[0].take(Taker("the first"))
    await states[1].create(tuning("bee", "b"), None)
    order = [(await states[n % 2].take(Taker(f"tuner {n}"))).tuning.key for n in range(4)]
    assert order == ["b", "a01", "a02", "a03"]


async def test_a_gateway_that_begins_leaves_others_their_tunings(opened: Callable[[], Awaitable[State]]) -> None:
    """Its sweep takes nothing whose lease lasts, and a tuner may go on with it as the same attempt (F16)."""
    first = await opened()
    made = await first.create(tuning(), None)
    attempt = Attempt(made.name, (await first.take(Taker("tuner", "place"))).attempt)
    second = await opened()
    assert await second.sweep() == []
    assert await second.report(attempt, "tuner", progress=TuningProgress(update=1)) is Standing.KEPT
    assert await second.finish(attempt, WeightsRef(digest="1" * 64)) is Standing.KEPT
    assert await kinds(first, made.name) == ["queued", "started", "progress", "ready"]


async def test_sweeps_at_once_give_back_once(opened: Callable[[], Awaitable[State]]) -> None:
    """Ten sweeps of two gateways find each lost tuning once."""
    states = [await opened(), await opened()]
    names = [(await states[0].create(tuning(key=f"k{number}", number=number), None)).name for number in range(12)]
    for number in range(12):
        await states[0].take(Taker(f"tuner {number}"), lease_s=-1)
    swept = await asyncio.gather(*(states[number % 2].sweep() for number in range(10)))
    assert sorted(name for found in swept for name in found) == sorted(names)
    for name in names:
        assert await kinds(states[0], name) == ["queued", "started", "queued"]


async def test_callers_that_leave_hold_nothing(opened: Callable[[], Awaitable[State]]) -> None:
    """A caller that goes away at any moment leaves no picture held, and no edit that seems to run."""
    state = await opened()
    shared = SharedEdits(state)
    draws = random.Random(1)

    async def hold(number: int) -> None:
        async with state.holding(f"image{number}"):
            await asyncio.sleep(0.001)

    for number in range(40):
        edit = Edit(name=f"tenants/default/edits/e-{number:032x}", state=Edit.STATE_RUNNING)
        leaving = [asyncio.create_task(hold(number)), asyncio.create_task(shared.begin(edit))]
        await asyncio.sleep(0.006 * draws.random())
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        edit.state = Edit.STATE_CANCELLED
        shared.end(edit)
    await asyncio.gather(*shared._tasks)

    async with asyncio.timeout(20):
        for number in range(40):
            await hold(number)
    for number in range(40):
        found = await shared.find(f"tenants/default/edits/e-{number:032x}")
        assert found is None or found.state == Edit.STATE_CANCELLED, number


async def test_many_who_wait_look_as_one(
    url: str, opened: Callable[[], Awaitable[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty watches of one gateway ask the database no oftener than one does, and all of them find an event of which
    no notification came."""
    monkeypatch.setattr(Database, "look_s", 0.2)
    state = await opened()
    name = (await state.create(tuning(), None)).name
    run, statements = Transaction.run, [0]

    def counting(self: Transaction, *args: Any, **values: Any) -> Any:
        statements[0] += 1
        return run(self, *args, **values)

    async def watch() -> None:
        while (kept := await state.read(name, 1)) is not None and kept.last == 1:
            await state.wait(name, 1)

    watches = [asyncio.create_task(watch()) for _ in range(40)]
    await asyncio.sleep(1)  # in which all begin to wait
    monkeypatch.setattr(Transaction, "run", counting)
    await asyncio.sleep(2)
    assert statements[0] < 40 and not any(watch.done() for watch in watches)
    assert rows(url, f"UPDATE tunings SET last_event = 2 WHERE name = '{name}' RETURNING 1")
    async with asyncio.timeout(20):
        await asyncio.gather(*watches)


async def test_who_lives_holds_on_and_who_ends_does_not(
    opened: Callable[[], Awaitable[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture is held for as long as its block lasts, however long that is. One whose gateway was killed in the block
    is free some seconds later, so that nobody who needs it waits for a minute (F10)."""
    monkeypatch.setattr(state_of_services, "HELD_S", 1.0)
    monkeypatch.setattr(state_of_services, "HOLD_ON_S", 0.2)
    first, second = await opened(), await opened()

    async def hold() -> float:
        async with second.holding("image"):
            return time.monotonic()

    async with first.holding("image"):
        waiting = asyncio.create_task(hold())
        await asyncio.sleep(2.5)
        assert not waiting.done()
        ended_s = time.monotonic()
    assert 0 <= await asyncio.wait_for(waiting, 5) - ended_s < 1
    assert await first._hold("image")  # and then it is killed
    began_s = time.monotonic()
    assert await asyncio.wait_for(hold(), 5) - began_s > 0.5


async def test_notifications_cross_gateways(
    opened: Callable[[], Awaitable[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a tuning, for work or for the end of an attempt wakes by what another gateway does, not by a look
    of its own (F20)."""
    monkeypatch.setattr(Database, "look_s", NEVER_S)
    first, second = await opened(), await opened()
    queued = asyncio.create_task(second.wait_queued())
    await asyncio.sleep(0.1)
    made = await first.create(tuning(), None)
    await asyncio.wait_for(queued, 10)
    attempt = Attempt(made.name, (await second.take(Taker("tuner"))).attempt)
    waits = [asyncio.create_task(first.wait(made.name, 2)), asyncio.create_task(first.wait_lost(attempt))]
    await asyncio.sleep(0.1)
    assert await second.report(attempt, "tuner", progress=TuningProgress(update=1)) is Standing.KEPT
    await asyncio.wait_for(waits[0], 10)
    waits[0] = asyncio.create_task(second.wait(made.name, 3))
    await asyncio.sleep(0.1)
    assert not waits[0].done() and not waits[1].done()
    await first.change(made.name, becomes(Tuning.STATE_CANCELLED), lambda now: TuningEvent(cancelled=now))
    await asyncio.wait_for(asyncio.gather(*waits), 10)


async def test_two_hundred_tuners_are_few_commits(url: str, opened: Callable[[], Awaitable[State]]) -> None:
    """Each reports five times a second, and a gateway commits all of it twice a second; nothing of it is lost (F13)."""
    state, most = await opened(), 200
    attempts = list[Attempt]()
    for number in range(most):
        await state.create(tuning(key=f"k{number}", number=number), None)
        one = await state.take(Taker(f"tuner {number}"))
        attempts.append(Attempt(one.tuning.name, one.attempt))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(f"LISTEN {postgres.CHANNEL}")
        began, reports = time.monotonic(), list[asyncio.Task[Standing]]()
        for update in range(1, 6):
            for number, attempt in enumerate(attempts):
                progress = TuningProgress(update=update)
                reports.append(asyncio.create_task(state.report(attempt, f"tuner {number}", progress=progress)))
            await asyncio.sleep(0.2)
        assert set(await asyncio.gather(*reports)) == {Standing.KEPT}
        lasted_s = time.monotonic() - began
        senders = [one.payload.split()[1] async for one in connection.notifies(timeout=0.5)]
    # A commit's notification is split where it names many tunings, in their order.
    commits = senders.count(min(attempt.name for attempt in attempts))
    assert 0 < commits <= 1 + lasted_s / state.database.gathers_s
    last = [(await state.get(attempt.name)).progress.update for attempt in attempts]
    assert last == [5] * most


async def test_progress_is_written_in_one_transaction(url: str, opened: Callable[[], Awaitable[State]]) -> None:
    """Reports of twenty tuners within half a second are one notification; one of an attempt that is over is LOST, and
    the others are kept (F13)."""
    state = await opened()
    taken = list[Attempt]()
    for number in range(20):
        await state.create(tuning(key=f"k{number}", number=number), None)
        one = await state.take(Taker(f"tuner {number}"))
        taken.append(Attempt(one.tuning.name, one.attempt))
    taken[3] = Attempt(taken[3].name, 7)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(f"LISTEN {postgres.CHANNEL}")
        reports = [
            state.report(attempt, f"tuner {number}", progress=TuningProgress(update=update))
            for update in (1, 2)
            for number, attempt in enumerate(taken)
        ]
        standings = await asyncio.gather(*reports)
        heard = [notification.payload async for notification in connection.notifies(timeout=0.5)]
    assert [number for number, standing in enumerate(standings) if standing is not Standing.KEPT] == [3, 23]
    assert len(heard) == 1 and set(heard[0].split()[1:]) == {attempt.name for attempt in taken} - {taken[3].name}
    kept = await state.read(taken[0].name, 0)
    assert [event.sequence for event in kept.events] == [1, 2, 3, 4] and kept.tuning.progress.update == 2


def test_long_lists_of_topics_are_split() -> None:
    """No notification is longer than the server takes, and no topic is left out."""
    topics = [f"tenants/acme/tunings/t{number:060d}" for number in range(400)]
    told = list(payloads("sender", topics))
    assert len(told) > 2 and max(map(len, told)) <= 7999
    assert [topic for payload in told for topic in payload.split()[1:]] == topics
    assert list(payloads("sender", [])) == []


async def test_a_lost_listener_listens_again(
    postgres_server: PostgresServer, opened: Callable[[], Awaitable[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is ended ten times while tunings change: every wait ends, by notifications alone (F11)."""
    monkeypatch.setattr(Database, "look_s", NEVER_S)
    first, second = await opened(), await opened()
    made = await first.create(tuning(), None)
    ended = 0
    for number in range(10):
        waiting = asyncio.create_task(second.wait(made.name, number + 1))
        ended += await asyncio.to_thread(postgres_server.end_backends, f"LISTEN {postgres.CHANNEL}")
        await first.change(
            made.name,
            lambda now, number=number: now.labels.update({"number": str(number)}),
            lambda _: TuningEvent(progress=TuningProgress()),
        )
        await asyncio.wait_for(waiting, 10)
    assert ended >= 10


async def test_cancelled_callers_leave_whole_changes(url: str, opened: Callable[[], Awaitable[State]]) -> None:
    """Two hundred calls are cancelled at random moments: each change is whole or was never begun, no transaction stays
    open, and all connections can be used again (F9)."""
    state = await opened()
    chance = random.Random(3)
    for number in range(200):
        call = asyncio.ensure_future(state.create(tuning(key=f"k{number}", number=number), None))
        await asyncio.sleep(chance.random() * 0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await asyncio.wait_for(asyncio.gather(*(state.get("tenants/a/tunings/t-a-0000") for _ in range(40))), 20)
    found = rows(url, "SELECT (SELECT count(*) FROM events e WHERE e.tuning = t.number), last_event FROM tunings t")
    assert 0 < len(found) and set(found) == {(1, 1)}
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
    await until(lambda: rows(url, query) == [(0,)])  # once the last of them has ended


async def test_a_pooler_that_drops_notifications_is_refused(postgres_server: PostgresServer, url: str) -> None:
    """UNITUNE_STATE_LISTEN leads to where LISTEN is accepted and nothing arrives, as behind a pooler: the error names
    the setting (F12)."""
    elsewhere = postgres_server.new_database()
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(postgres, "PROOF_S", 0.2)
        with pytest.raises(OSError, match="UNITUNE_STATE_LISTEN must be the URL of the server itself"):
            await State.open(url, elsewhere)
    state = await State.open(url, url)
    assert await state.known() == {}
    await state.close()


@contextlib.asynccontextmanager
async def deaf(url: str) -> AsyncIterator[str]:
    """A URL that leads to the same database, but takes no options, and no notification comes back: so does pgbouncer
    in transaction mode. It stands for one, since none is a package that tests can install."""
    parts, tasks = urlsplit(url), set[asyncio.Task[None]]()

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        # https://www.postgresql.org/docs/current/protocol-message-formats.html
        size = await reader.readexactly(4)
        startup = await reader.readexactly(int.from_bytes(size) - 4)
        if b"\0options\0" in startup:
            refusal = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            writer.write(b"E" + (len(refusal) + 4).to_bytes(4) + refusal)
            writer.close()
            return
        answers, there = await asyncio.open_connection(parts.hostname, parts.port)
        there.write(size + startup)

        async def ask() -> None:
            while data := await reader.read(1 << 16):
                there.write(data)
            there.close()

        asking = asyncio.create_task(ask())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await answers.readexactly(5)
                body = await answers.readexactly(int.from_bytes(head[1:]) - 4)
                if head[:1] != b"A":  # NotificationResponse
                    writer.write(head + body)
                    await writer.drain()
        writer.close()
        await asking

    server = await asyncio.start_server(lead, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    yield f"postgresql://{parts.username}@{address}{parts.path}?sslmode=disable&gssencmode=disable"
    server.close()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)


async def test_behind_a_pooler_the_server_itself_has_to_be_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where LISTEN is accepted and nothing comes, a gateway refuses to start within seconds, and says which setting it
    lacks; with the server's own URL there it runs, and hears what others change (F12)."""
    monkeypatch.setattr(Database, "look_s", NEVER_S)
    async with deaf(url) as pooler:
        with pytest.raises(OSError, match=r"options; UNITUNE_STATE is a pooler's URL, so UNITUNE_STATE_LISTEN must be"):
            await State.open(pooler)
        began_s = time.monotonic()
        with pytest.raises(OSError, match="UNITUNE_STATE_LISTEN must be the URL of the server itself"):
            await State.open(pooler, pooler)
        assert time.monotonic() - began_s >= postgres.PROOF_S
        first, second = await State.open(pooler, url), await State.open(url)
        try:
            queued = asyncio.create_task(first.wait_queued())
            await asyncio.sleep(0.1)
            await second.create(tuning(), None)
            await asyncio.wait_for(queued, 10)
        finally:
            await first.close()
            await second.close()


async def test_a_database_that_cannot_be_used_is_refused(postgres_server: PostgresServer, url: str) -> None:
    """One line names place and remedy, and no password: nobody answers, no such database, another program's tables,
    a newer schema."""
    with pytest.raises(OSError, match=r"cannot use 127.0.0.1:1/none: .*; check UNITUNE_STATE") as nobody:
        await State.open("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(nobody.value)
    with pytest.raises(OSError, match="does not exist; check UNITUNE_STATE"):
        await State.open(postgres_server.url("missing"))
    with pytest.raises(OSError, match="UNITUNE_STATE is no URL of a PostgreSQL database"):
        await State.open("postgresql://me:secret@[half/none")

    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("CREATE TABLE events (what text)")
    with pytest.raises(OSError, match="has tables of another program"):
        await State.open(url)
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("DROP TABLE events")
    await (await State.open(url)).close()
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("UPDATE schema_version SET version = 99, readable_from = 99")
    with pytest.raises(OSError, match=r"has schema 99, .* run the version of UniTune that wrote it"):
        await State.open(url)


async def test_a_migration_runs_once(url: str) -> None:
    """Four gateways of the next version begin at once on a database of this one: its tables are changed once, and what
    was there is there."""
    state = await State.open(url)
    made = await state.create(tuning(), None)
    await state.close()
    steps = {SCHEMA_VERSION: "CREATE TABLE notes (what text); INSERT INTO notes VALUES ('migrated')"}
    arguments = (url, "", MetaData(), SCHEMA_VERSION + 1, steps)
    databases = await asyncio.gather(*(Database.open(*arguments) for _ in range(4)))
    for database in databases:
        await database.close()
    assert rows(url, "SELECT what FROM notes") == [("migrated",)]
    assert rows(url, "SELECT name FROM tunings") == [(made.name,)]
    with pytest.raises(OSError, match=f"has schema {SCHEMA_VERSION + 1}"):
        await State.open(url)


async def test_gateways_of_two_versions_share_a_queue(url: str) -> None:
    """The next version has added a column and a table. A gateway of this one goes on, another of it begins, and tunings
    of either are taken and ended by the other; what neither knows stays as it is (F15)."""
    old = await State.open(url)
    before = await old.create(tuning(key="before", number=1), None)
    added = """ALTER TABLE tunings ADD COLUMN note TEXT NOT NULL DEFAULT 'none';
        CREATE TABLE notes (what TEXT); INSERT INTO notes VALUES ('kept')"""
    arguments = (url, "", MetaData(), SCHEMA_VERSION + 1, {SCHEMA_VERSION: added}, SCHEMA_VERSION)
    new, another = State(await Database.open(*arguments)), await State.open(url)
    after = await new.create(tuning(key="after", number=2), CreateRequest("id", "body"))
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("UPDATE tunings SET note = 'mine'")
    ended = list[str]()
    for number, (taker, ender) in enumerate(((new, old), (another, new))):
        taken = await taker.take(Taker(f"tuner {number}"))
        attempt = Attempt(taken.tuning.name, taken.attempt)
        assert await ender.report(attempt, f"tuner {number}", progress=TuningProgress(update=1)) is Standing.KEPT
        assert await ender.finish(attempt, WeightsRef(digest="1" * 64)) is Standing.KEPT
        ended.append(attempt.name)
    assert ended == [before.name, after.name]
    assert (await old.recall("default", CreateRequest("id", "body"))).name == after.name
    for state in (old, new, another):
        assert await kinds(state, after.name) == ["queued", "started", "progress", "ready"]
        await state.close()
    assert rows(url, "SELECT version, readable_from FROM schema_version") == [(SCHEMA_VERSION + 1, SCHEMA_VERSION)]
    assert rows(url, "SELECT note FROM tunings") == [("mine",), ("mine",)]
    assert rows(url, "SELECT what FROM notes") == [("kept",)]


async def test_tables_that_an_older_version_cannot_go_on_with_are_refused(url: str) -> None:
    """A version later, what this one reads is taken away: it refuses to begin, says both versions, and changes nothing
    (F15)."""
    await (await State.open(url)).close()
    steps = {SCHEMA_VERSION: "CREATE TABLE notes (what TEXT)", SCHEMA_VERSION + 1: "DROP TABLE holds"}
    await (await Database.open(url, "", MetaData(), SCHEMA_VERSION + 2, steps, SCHEMA_VERSION + 1)).close()
    with pytest.raises(OSError, match=rf"has schema {SCHEMA_VERSION + 2}, .* reads {SCHEMA_VERSION}; run the version"):
        await State.open(url)
    assert rows(url, "SELECT version, readable_from FROM schema_version") == [(SCHEMA_VERSION + 2, SCHEMA_VERSION + 1)]


async def test_tables_of_the_version_before_are_brought_up_to_date(url: str, postgres_server: PostgresServer) -> None:
    """A database of version 7 has all that a new one has, and its tunings are as they were."""
    state = await State.open(url)
    made = await state.create(tuning(), None)
    await state.close()
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("ALTER TABLE tunings DROP COLUMN trim_s")
        connection.execute("DROP TABLE edit_requests")
        connection.execute("ALTER TABLE schema_version DROP COLUMN readable_from")
        connection.execute("UPDATE schema_version SET version = 7")
    state = await State.open(url)
    assert await state.get(made.name) == made
    await state.close()
    new = postgres_server.new_database()
    await (await State.open(new)).close()
    columns = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    indexes = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    for query in (columns, indexes):
        assert set(rows(url, query)) == set(rows(new, query)) and len(rows(new, query)) > 20


async def test_a_killed_server_loses_nothing(own_server: PostgresServer) -> None:
    """SIGKILL under load, and started again: every creation that was acknowledged is there, no attempt was given out
    twice, no event is missing, and waiters and calls go on by themselves (F10)."""
    states = [await State.open(own_server.new_database())]
    url = own_server.url("test_0")
    states.append(await State.open(url))
    acknowledged, taken, done = list[str](), Counter[tuple[str, int]](), list[str]()
    refusals, is_over = 0, asyncio.Event()

    async def create(state: State, tenant: str) -> None:
        nonlocal refusals
        number = 0
        while not is_over.is_set():
            number += 1
            try:
                acknowledged.append((await state.create(tuning(tenant, f"k{number}", number), None)).name)
            except Unavailable:
                refusals += 1
                await asyncio.sleep(0.05)

    async def take(state: State, number: int) -> None:
        nonlocal refusals
        while not is_over.is_set():
            try:
                one = await state.take(Taker(f"tuner {number}", f"place {number}"))
                if one is None:
                    await asyncio.sleep(0.01)
                    continue
                taken[one.tuning.name, one.attempt] += 1
                if await state.finish(Attempt(one.tuning.name, one.attempt), WeightsRef()) is Standing.KEPT:
                    done.append(one.tuning.name)
            except Unavailable:
                refusals += 1
                await asyncio.sleep(0.05)

    load = [asyncio.create_task(create(states[n % 2], f"t{n}")) for n in range(3)]
    load += [asyncio.create_task(take(states[n % 2], n)) for n in range(4)]
    await until(lambda: len(done) > 20)
    own_server.kill()
    await until(lambda: refusals > 5)
    before = len(done)
    await asyncio.to_thread(own_server.start)
    began = time.monotonic()
    await until(lambda: len(done) > before + 20)
    assert time.monotonic() - began < 30
    is_over.set()
    await asyncio.gather(*load)

    stored = dict(rows(url, "SELECT name, last_event FROM tunings"))
    assert set(acknowledged) <= stored.keys()
    assert set(taken.values()) == {1}
    for name in done:
        assert (await states[0].get(name)).state == Tuning.STATE_READY
    for name, last in stored.items():
        kept = await states[1].read(name, 0)
        assert [event.sequence for event in kept.events] == list(range(1, last + 1)), name
    for state in states:
        await state.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Return once it is so."""
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.02)
