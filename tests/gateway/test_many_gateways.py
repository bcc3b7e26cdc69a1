"""Two whole gateways on one PostgreSQL database, one store and one sampler. Tuners call the first."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import psycopg
import pytest

from gateway import postgres, shared_edits
from gateway import state_statements as statements
from gateway.database import Transaction
from gateway.joined_edits import LOOKS_EVERY_S
from gateway.postgres import CHANNEL
from gateway.postgres import PostgresServer as Database
from tests.configs import tuning_config
from tests.gateway.callers import EDIT, READ, Caller, make
from tests.gateway.conftest import World, edit, eventually, picture, refused
from tests.gateway.test_joined_edits import all_of, asked, at_once, compared_by, joined_by, pngs
from tests.gateway.test_lives import upload
from tests.gateway.test_main import start
from tests.gateway.test_postgres import NEVER_S
from tests.postgres_server import PostgresServer
from unitune import serving
from unitune.errors import Internal, from_status
from unitune.v1.edit_pb2 import CancelEditRequest, Edit, EditEvent, EditRequest, GetEditRequest
from unitune.v1.image_pb2 import DeleteImageRequest
from unitune.v1.key_pb2 import RevokeKeyRequest
from unitune.v1.tuning_pb2 import (
    CancelTuningRequest,
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    Tuning,
    WatchTuningRequest,
)
from unitune.v1.tuning_pb2_grpc import TuningServiceStub


@pytest.fixture
async def pair(
    world: World, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[World, World]]:
    """Both gateways. Nobody looks by itself for what the other one does: it has to be told."""
    monkeypatch.setattr(Database, "look_s", NEVER_S)
    await world.close()
    world.config = replace(world.config, state=postgres_server.new_database())
    await world.open()
    second = World(
        world.folder,
        None,
        world.sampler,
        replace(world.config, internal_address="127.0.0.1:0", position_s=NEVER_S),
        world.sampler_server,
    )
    await second.open()
    yield world, second
    await second.close()


async def test_any_gateway_answers_for_a_tuning(pair: tuple[World, World]) -> None:
    """Made at one, watched at the other to its end without a gap; found again, listed and deleted at either."""
    first, second = pair
    first.tuner.go_on.clear()
    image = await second.upload(picture())
    request = CreateTuningRequest(image=image.name, config=tuning_config())
    made = await second.tunings.CreateTuning(request)
    watching = asyncio.create_task(second.watch(made.name))
    await asyncio.wait_for(first.running(made.name), 20)
    first.tuner.go_on.set()
    events = await asyncio.wait_for(watching, 20)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.started.attempt for event in events if event.HasField("started")] == [1]
    assert events[-1].HasField("ready") and events == await first.watch(made.name)
    assert (await first.tunings.CreateTuning(request)).name == made.name
    assert [one.name for one in (await first.tunings.ListTunings(ListTuningsRequest())).tunings] == [made.name]
    await first.tunings.DeleteTuning(DeleteTuningRequest(name=made.name))
    call = second.tunings.GetTuning(GetTuningRequest(name=made.name))
    await refused(call, grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")
    assert first.stored() == []


async def test_a_cancellation_stops_the_run_of_the_other_gateway(pair: tuple[World, World]) -> None:
    """CancelTuning where the tuner is not: the run stops, and a watch there ends (F20)."""
    first, second = pair
    first.tuner.go_on.clear()
    made = await first.tune()
    await asyncio.wait_for(second.running(made.name), 20)
    watching = asyncio.create_task(first.watch(made.name))
    await second.tunings.CancelTuning(CancelTuningRequest(name=made.name))
    assert (await asyncio.wait_for(watching, 20))[-1].HasField("cancelled")
    await eventually(lambda: _true(made.name in first.tuner.stopped))
    assert (await first.tunings.GetTuning(GetTuningRequest(name=made.name))).state == Tuning.STATE_CANCELLED


async def _true(is_so: bool) -> bool:
    return is_so


async def test_an_edit_at_a_gateway_without_tuners_is_tuned(pair: tuple[World, World]) -> None:
    """A gateway knows the tuners of the others, and hands its edit's tuning to them; the tunings of a base model whose
    tuners another gateway has do not fail for want of any (F23, F24)."""
    first, second = pair
    await eventually(lambda: _true(second.gateway._tuners.is_any_there))
    events = await edit(second, image_data=picture())
    assert events[-1].HasField("done") and len(first.tuner.requests) == 1
    assert second.gateway._tuners.seen_s(first.tuner.base_model.digest) > 0


async def test_a_gateway_that_ends_leaves_the_run_to_the_others(pair: tuple[World, World]) -> None:
    """The tuner's gateway ends in the middle of a run. Another one takes its reports: the same attempt is READY, once
    (F16)."""
    first, second = pair
    first.tuner.go_on.clear()
    made = await first.tune()
    await asyncio.wait_for(second.running(made.name), 20)
    internal = first.gateway.internal_address
    await first.close()
    await second.close()
    second.config = replace(second.config, internal_address=internal)  # where the tuner looks for a gateway
    await second.open()
    first.tuner.go_on.set()
    events = await second.watch(made.name)
    assert events[-1].HasField("ready") and [1] == [e.started.attempt for e in events if e.HasField("started")]
    assert len([path for path in first.stored_weights() if path.endswith(".safetensors")]) == 1


async def test_keys_are_known_to_every_gateway(pair: tuple[World, World]) -> None:
    """A key that is made at one gateway is taken by the other, and refused there once it is revoked (F40)."""
    first, second = pair
    for world in pair:
        await world.close()
        world.config = replace(world.config, admin_key_file=first.folder / "admin.key")
    await asyncio.gather(first.open(), second.open())
    admin = Caller(first, (first.folder / "admin.key").read_text().strip())
    caller = await make(admin, "acme", READ, EDIT)
    there = Caller(second, caller.credential)

    async def is_taken() -> bool:
        try:
            await there("tunings.ListTunings", ListTuningsRequest())
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False
        return True

    await eventually(is_taken)
    name = f"tenants/acme/keys/{caller.credential.split('_')[1]}"
    await admin("keys.RevokeKey", RevokeKeyRequest(name=name))

    async def is_refused() -> bool:
        return not await is_taken()

    await eventually(is_refused)


async def test_a_picture_is_not_deleted_under_a_tuning_of_another_gateway(pair: tuple[World, World]) -> None:
    """DeleteImage at one and CreateTuning at the other, at once and again and again: whoever is told that the tuning is
    made has its picture."""
    first, second = pair
    first.tuner.go_on.clear()
    for number in range(8):
        image = await first.upload(picture("teal", (40 + number, 30)))
        create = second.tunings.CreateTuning(CreateTuningRequest(image=image.name, config=tuning_config()))
        delete = first.images.DeleteImage(DeleteImageRequest(name=image.name))
        made, deleted = await asyncio.gather(_code(create), _code(delete))
        stored = any(image.sha256 in path for path in first.stored())
        if made is grpc.StatusCode.OK:
            assert deleted is grpc.StatusCode.FAILED_PRECONDITION and stored
        else:
            assert (made, deleted) == (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OK) and not stored


async def _code(call: grpc.aio.Call) -> grpc.StatusCode:
    return await call.code()


async def begun(world: World) -> tuple[grpc.aio.Call, str]:
    """An edit that waits at the sampler, and its name."""
    world.sampler.go_on.clear()
    world.sampler.stopped.clear()
    before = len(world.sampler.requests)
    call = world.edits.Edit(EditRequest(prompt="a dog", image_data=picture()), timeout=60)
    name = ""
    async for event in call:
        name = event.accepted.edit or name
        if event.tuning.HasField("ready"):
            break
    await eventually(lambda: _true(len(world.sampler.requests) > before))
    return call, name


async def test_any_gateway_tells_of_an_edit(pair: tuple[World, World]) -> None:
    """GetEdit at the other gateway while it runs, when it is done, and when it has failed (F30)."""
    first, second = pair
    call, name = await begun(first)
    assert (await second.edits.GetEdit(GetEditRequest(name=name))).state == Edit.STATE_RUNNING
    first.sampler.go_on.set()
    assert [event async for event in call][-1].HasField("done")
    done = await second.edits.GetEdit(GetEditRequest(name=name))
    assert done == await first.edits.GetEdit(GetEditRequest(name=name)) and len(done.images) == 1

    first.sampler.failure = Internal("no", reason="INTERNAL")
    events = await edit(first, image_data=picture())
    failed = next(event.accepted.edit for event in events if event.HasField("accepted"))

    async def has_failed() -> bool:
        return (await second.edits.GetEdit(GetEditRequest(name=failed))).state == Edit.STATE_FAILED

    await eventually(has_failed)
    unknown = second.edits.GetEdit(GetEditRequest(name="tenants/default/edits/e000000000000"))
    await refused(unknown, grpc.StatusCode.NOT_FOUND, "EDIT_NOT_FOUND")


@pytest.mark.parametrize("is_deaf", [False, True])
async def test_an_edit_is_cancelled_at_the_other_gateway(
    pair: tuple[World, World], postgres_server: PostgresServer, is_deaf: bool
) -> None:
    """CancelEdit where it does not run stops the sampler, also if its gateway did not hear of it at first (F30)."""
    first, second = pair
    call, name = await begun(first)
    await eventually(lambda: _true(bool(first.sampler.requests)))
    if is_deaf:
        await asyncio.to_thread(postgres_server.end_backends, f"LISTEN {CHANNEL}")
    assert (await second.edits.CancelEdit(CancelEditRequest(name=name))).state == Edit.STATE_CANCELLED
    assert [event async for event in call][-1].HasField("cancelled")
    await asyncio.wait_for(first.sampler.stopped.wait(), 20)
    for world in pair:
        assert (await world.edits.GetEdit(GetEditRequest(name=name))).state == Edit.STATE_CANCELLED


async def test_one_request_at_two_gateways_is_one_edit(pair: tuple[World, World]) -> None:
    """Sent to both while it runs, and again when it is done: sampled once, counted once, and all have its pictures
    (F33)."""
    await joined_by(*pair)
    for _ in range(3):
        await at_once(pair)


async def test_one_comparison_at_two_gateways_is_one_edit_of_each_method(pair: tuple[World, World]) -> None:
    """Sent to both while it runs, and again when it is done: each method is sampled once and counted once (F33)."""
    await compared_by(*pair)


async def held_edit(world: World) -> tuple[EditRequest, "asyncio.Task[list[EditEvent]]"]:
    """A request whose edit runs until the sampler may go on, and its events to come."""
    world.sampler.go_on.clear()
    await world.tuned()
    request = asked()
    running = asyncio.create_task(all_of(world, request))
    await eventually(lambda: _true(len(world.sampler.requests) == 1))
    return request, running


async def test_a_drain_ends_who_waits_for_an_edit_elsewhere(pair: tuple[World, World]) -> None:
    """A request that has joined an edit of another gateway is told to ask elsewhere; the edit goes on."""
    first, second = pair
    request, running = await held_edit(first)
    call = second.edits.Edit(request, timeout=60)
    assert (await call.read()).HasField("accepted")
    await second.gateway.drain()
    async with asyncio.timeout(20):
        while not (event := await call.read()).HasField("failed"):
            pass
    assert from_status(event.failed).reason == "DRAINING"
    first.sampler.go_on.set()
    assert (await running)[-1].HasField("done") and len(first.sampler.requests) == 1


async def test_many_that_join_an_edit_ask_the_state_as_one(
    pair: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty requests at another gateway wait for one edit: the database has no more to do than for one of them, and
    each has its pictures."""
    first, second = pair
    request, running = await held_edit(first)
    joined = [second.edits.Edit(request, timeout=60) for _ in range(30)]
    for call in joined:
        assert (await call.read()).HasField("accepted")
    run, looks = Transaction.run, [0]

    def counting(self: Transaction, statement: Any, **values: Any) -> Any:
        looks[0] += statement is statements.FIND_EDIT
        return run(self, statement, **values)

    monkeypatch.setattr(Transaction, "run", counting)
    began_s = time.monotonic()
    await asyncio.sleep(2)
    of_one = (time.monotonic() - began_s) / LOOKS_EVERY_S + 1
    assert 0 < looks[0] < 3 * of_one
    first.sampler.go_on.set()
    assert (await running)[-1].HasField("done")
    for call in joined:
        events = []
        while (event := await call.read()) is not grpc.aio.EOF:
            events.append(event)
        assert events[-1].HasField("done") and len(pngs(events)) == 2


@contextlib.asynccontextmanager
async def losing_a_commit(url: str, words: bytes) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A URL of the same database. Once the event is set, the next transaction with these words in its statements is
    committed, and its connection is cut before the answer."""
    server, losing = urlsplit(url), asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(server.hostname, server.port)

        async def answers() -> None:
            while data := await there.read(1 << 16):
                writer.write(data)

        answering, has_words = asyncio.create_task(answers()), False
        while data := await reader.read(1 << 16):
            has_words = has_words or words in data
            back.write(data)
            if b"COMMIT" in data:
                if has_words and losing.is_set():
                    losing.clear()
                    answering.cancel()
                    await asyncio.gather(answering, return_exceptions=True)
                    await there.read(1)  # it is committed
                    break
                has_words = False
        writer.transport.abort()
        back.transport.abort()

    proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    try:
        yield urlunsplit(server._replace(netloc=f"{server.username}@127.0.0.1:{port}")), losing
    finally:
        proxy.close()


async def test_a_commit_whose_answer_is_lost_leaves_no_edit_that_seems_to_run(
    world: World, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database keeps an edit's begin, and the gateway does not hear of it: the call fails. The same request, sent
    again, does not wait for that edit for ever."""
    monkeypatch.setattr(shared_edits, "ALIVE_S", 0.2)
    await world.close()
    async with losing_a_commit(postgres_server.new_database(), b"edit_requests") as (url, losing):
        world.config = replace(world.config, state=url)
        await world.open()
        await world.tuned()
        request = asked()
        losing.set()
        await refused(world.edits.Edit(request), grpc.StatusCode.UNAVAILABLE, "STATE_DOWN")

        async def is_done() -> bool:
            return (await all_of(world, request))[-1].HasField("done")

        await eventually(is_done, within_s=20)
        await world.close()


async def test_an_edit_that_died_with_its_gateway_has_failed(pair: tuple[World, World]) -> None:
    """A gateway that shows no sign of life any more: its edits are FAILED with GATEWAY_LOST elsewhere, and
    are forgotten with it (F32)."""
    first, second = pair
    call, name = await begun(first)
    first.gateway._shared_edits._tasks.clear()
    with contextlib.closing(psycopg.connect(first.config.state, autocommit=True)) as database:
        # As if the gateway had been killed, and its last sign of life were old.
        for task in first.gateway._tasks:
            task.cancel()
        await asyncio.gather(*first.gateway._tasks, return_exceptions=True)
        database.execute("UPDATE gateways SET seen_s = seen_s - 20")
        lost = await second.edits.GetEdit(GetEditRequest(name=name))
        assert lost.state == Edit.STATE_FAILED and from_status(lost.error).reason == "GATEWAY_LOST"
        database.execute("UPDATE gateways SET seen_s = seen_s - 1000")
        await second.gateway._state.sweep_edits()
    again = second.edits.GetEdit(GetEditRequest(name=name))
    await refused(again, grpc.StatusCode.NOT_FOUND, "EDIT_NOT_FOUND")
    call.cancel()


async def test_results_go_after_ten_minutes(pair: tuple[World, World]) -> None:
    """Row and objects, and then no gateway knows the edit (F31)."""
    first, second = pair
    events = await edit(first, image_data=picture())
    name = next(event.accepted.edit for event in events if event.HasField("accepted"))
    with contextlib.closing(psycopg.connect(first.config.state, autocommit=True)) as database:

        def rows() -> int:
            query = "SELECT count(*) FROM edits WHERE name = %s AND end_s IS NOT NULL"
            return database.execute(query, [name]).fetchone()[0]  # type: ignore[index]

        await eventually(lambda: _true(rows() == 1))
        database.execute("UPDATE edits SET end_s = end_s - 601")
        await second.gateway._state.sweep_edits()
        assert rows() == 0
    for path in (first.folder / "store" / "edits").rglob("*"):
        os.utime(path, (time.time() - 601,) * 2)
    first.gateway._results._edits.clear()
    first.gateway._results._ended.clear()
    await second.gateway.retention.sweep()
    assert not [path for path in second.stored() if path.startswith("edits/")]
    for world in pair:
        call = world.edits.GetEdit(GetEditRequest(name=name))
        await refused(call, grpc.StatusCode.NOT_FOUND, "EDIT_NOT_FOUND")


async def test_a_tuning_that_is_deleted_at_any_gateway_leaves_nothing(pair: tuple[World, World]) -> None:
    """No object and no row, and the sampler forgets its weights once it answers again, whichever gateway asks (F34)."""
    first, second = pair
    events = await edit(first, image_data=picture())
    (name,) = [event.tuning.ready.name for event in events if event.tuning.HasField("ready")]
    digest = (await first.tunings.GetTuning(GetTuningRequest(name=name))).weights.digest
    first.sampler.answers.clear()
    await second.tunings.DeleteTuning(DeleteTuningRequest(name=name))
    assert first.stored() == []
    with contextlib.closing(psycopg.connect(first.config.state, autocommit=True)) as database:
        for table in ("tunings", "events"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # type: ignore[arg-type]
        first.sampler.answers.set()
        await eventually(lambda: _true(digest in first.sampler.evicted))
        left = "SELECT count(*) FROM evictions"
        await eventually(lambda: _true(database.execute(left).fetchone() == (0,)))


async def test_a_gateway_that_others_evict_for_keeps_no_list(pair: tuple[World, World]) -> None:
    """Weights that one gateway noted and another had forgotten are waited for no more."""
    evictions, others = (world.gateway._tuning_service._tunings._evictions for world in pair)
    for number in range(5):
        await evictions.note(f"{number:064x}")
    assert await others._evict_all()
    evictions.start()
    await eventually(lambda: _true(not evictions._done))


async def test_no_lease_ends_with_an_outage(world: World, own_server: PostgresServer) -> None:
    """While the database was away no tuner could report. Afterwards each has the time of a lease to do so, though its
    lease has run out meanwhile (F10)."""
    await world.close()
    world.config = replace(world.config, state=own_server.new_database(), lease_s=6.0)
    await world.open()
    world.tuner.go_on.clear()
    made = await world.tune()
    await asyncio.wait_for(world.running(made.name), 20)
    await world.tuner_server.stop()
    own_server.kill()
    pool = world.gateway._pool
    pool._no_sweep_until_s = 0.0
    await eventually(lambda: _true(pool._no_sweep_until_s > 0))  # a sweep has failed
    await asyncio.to_thread(own_server.start)
    with contextlib.closing(psycopg.connect(world.config.state, autocommit=True)) as database:
        database.execute("UPDATE tunings SET lease_s = 0")
    for _ in range(2):
        await pool._sweep()
    assert (await world.gateway._state.get(made.name)).state == Tuning.STATE_RUNNING
    pool._no_sweep_until_s = 0.0
    await eventually(lambda: _is_queued(world, made.name))


async def test_a_database_that_stands_still_is_told_as_away(
    world: World, own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes are stopped, and its connections live on. Calls end with STATE_DOWN and are answered when it goes
    on; other gateways' news are heard again, too."""
    monkeypatch.setattr(postgres, "HUNG_S", 2.0)
    await world.close()
    world.config = replace(world.config, state=own_server.new_database())
    await world.open()
    tuning = await world.tuned()
    request = GetTuningRequest(name=tuning.name)
    with own_server.frozen():
        for _ in range(3):  # also of connections that were cut
            call = world.tunings.GetTuning(request, timeout=30)
            await refused(call, grpc.StatusCode.UNAVAILABLE, "STATE_DOWN")

    async def is_answered() -> bool:
        try:
            return (await world.tunings.GetTuning(request, timeout=30)) == tuning
        except grpc.aio.AioRpcError:
            return False

    await eventually(is_answered, within_s=30)
    heard: list[str] = []
    world.gateway._state.database.listen(heard.append)
    with contextlib.closing(psycopg.connect(world.config.state, autocommit=True)) as other:

        async def is_heard() -> bool:
            other.execute(f"NOTIFY {CHANNEL}, 'other news'")
            return "news" in heard

        await eventually(is_heard, within_s=30)


async def test_a_gateway_that_is_killed_with_its_database_loses_nothing(
    world: World, own_server: PostgresServer
) -> None:
    """SIGKILL to both while tunings are made and run, and started again: whatever was acknowledged is there and ends
    READY, once, by as many attempts as its events tell of (F10)."""
    settings = {"UNITUNE_STATE": own_server.new_database()}
    process, address = await start(world, **settings)
    acknowledged = list[str]()

    async def create(address: str, most: int) -> None:
        async with serving.channel(address) as channel:
            image = await upload(channel)
            for seed in range(len(acknowledged), most):
                request = CreateTuningRequest(image=image, config=tuning_config(seed=seed, updates=2))
                try:
                    acknowledged.append((await TuningServiceStub(channel).CreateTuning(request, timeout=20)).name)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # from here on
                    return

    creating = asyncio.create_task(create(address, 1000))
    await eventually(lambda: _true(len(acknowledged) >= 12), within_s=60)
    own_server.kill()
    process.kill()
    await asyncio.gather(process.wait(), creating)
    await asyncio.to_thread(own_server.start)
    process, address = await start(world, **settings)
    await create(address, len(acknowledged) + 1)
    async with serving.channel(address) as channel:
        for name in acknowledged:
            call = TuningServiceStub(channel).WatchTuning(WatchTuningRequest(name=name), timeout=60)
            events = [event async for event in call if event.sequence]
            assert events[-1].HasField("ready") and events[-1].ready.state == Tuning.STATE_READY
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            attempts = [event.started.attempt for event in events if event.HasField("started")]
            assert attempts == list(range(1, len(attempts) + 1))
    assert len(acknowledged) == len(set(acknowledged))
    assert len([path for path in world.stored_weights() if path.endswith(".safetensors")]) == len(acknowledged)
    process.terminate()
    assert await process.wait() == 0


async def _is_queued(world: World, name: str) -> bool:
    return (await world.gateway._state.get(name)).state == Tuning.STATE_QUEUED
