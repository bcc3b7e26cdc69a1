"""The state file under attack: full disks, damage, other programs' files. What is refused names file and remedy."""

import asyncio
import json
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.api_keys import ApiKeys
from gateway.sqlite_file import RESERVE_BYTES
from gateway.state import State
from gateway.state_schema import SCHEMA_VERSION
from gateway.tuning_records import Attempt, CreateRequest, Standing, Taker, etag_of
from tests.configs import sampling_config
from tests.full_disk import fill, mounted, read_only
from tests.gateway.conftest import World, picture, refused
from tests.gateway.older_state import FIFTH_SCHEMA, take_joining_out
from tests.gateway.test_lives import NoFileMayGrow, end
from tests.gateway.test_main import start
from tests.gateway.test_state import becomes, tuning
from unitune import serving
from unitune.errors import DataLoss, FailedPrecondition, ResourceExhausted
from unitune.v1 import server_pb2, server_pb2_grpc
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.edit_pb2_grpc import EditServiceStub
from unitune.v1.tuning_pb2 import (
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    Tuning,
    TuningEvent,
    TuningProgress,
    UpdateTuningRequest,
    WatchTuningRequest,
)
from unitune.v1.tuning_pb2_grpc import TuningServiceStub

SECRET = "grandmother-in-hospital"


async def many(path: Path, number: int = 60) -> list[str]:
    """A state with so many tunings, each with a label and a few events; their names."""
    state = await State.open(path)
    names = []
    for index in range(number):
        wanted = tuning(key=f"k{index}", number=index)
        wanted.labels["who"] = f"{SECRET}-{index}-{'x' * (index % 40)}"
        names.append((await state.create(wanted, None)).name)
        await state.change(names[-1], becomes(Tuning.STATE_READY), lambda now: TuningEvent(ready=now))
    await state.close()
    return names


def bytes_of(path: Path) -> bytes:
    """All that the state has on the disk."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


async def test_nothing_of_a_deleted_tuning_is_left_in_the_files(tmp_path: Path) -> None:
    """Its labels are in neither the state file nor its journal, whether they were replaced before or not (r9)."""
    path = tmp_path / "state.sqlite"
    names = await many(path)
    state = await State.open(path)
    assert SECRET.encode() in bytes_of(path)
    for number, name in enumerate(names):

        def relabel(now: Tuning, number: int = number) -> None:
            now.labels["who"] = f"{SECRET}-again-{'y' * (number % 37)}"

        if number % 3 == 0:
            await state.change(name, relabel)
    for name in names[1::2] + names[::2]:
        await state.remove(name)
        gone = [f"{SECRET}-{names.index(name)}-".encode(), name.encode()]
        assert not [word for word in gone if word in bytes_of(path)]
    assert SECRET.encode() not in bytes_of(path)
    await state.close()


async def test_a_deleted_tuning_leaves_no_label_at_a_gateway(world: World) -> None:
    """DeleteTuning over the wire, with the gateway still running: no byte of the label is left on its disk (r9)."""
    made = await world.tuned()
    wanted = Tuning(name=made.name, labels={"who": SECRET})
    await world.tunings.UpdateTuning(UpdateTuningRequest(tuning=wanted))
    assert SECRET.encode() in bytes_of(world.config.state)
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=made.name))
    left = [path for path in world.folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert left == []


async def refusal(world: World, path: Path) -> str:
    """The one line with which a gateway process refuses to start on this state."""
    process, line = await start(world, UNITUNE_STATE=str(path))
    _, log = await asyncio.wait_for(process.communicate(), 60)
    lines = log.decode().splitlines()
    assert line == "" and process.returncode == 1 and len(lines) == 1, lines
    assert str(path.parent) in lines[0] and "Traceback" not in lines[0]
    return lines[0]


async def test_a_state_file_with_a_hole_stops_the_start(world: World) -> None:
    """8 KiB of zeros in its middle: one line that names file and remedy, and nothing is changed (r15)."""
    path = world.folder / "damaged" / "state.sqlite"
    await many(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(bytes(8192))
    before = path.read_bytes()
    line = await refusal(world, path)
    assert "it is damaged" in line and "put a copy in its place, or move it away to begin anew" in line
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "it is not a database of SQLite; move it away, or give another path"),
        ("foreign", "it is a database of another program; name another file"),
        ("cut", "it is damaged"),
        ("newer", "it has schema 99"),
        ("folder", "it cannot be opened"),
        ("below a file", "it exists already"),
    ],
)
async def test_a_state_file_that_cannot_be_used_stops_the_start(world: World, kind: str, words: str) -> None:
    """Each in one line that names the file and what is wrong with it (r15)."""
    path = world.folder / "odd" / "state.sqlite"
    await many(path)
    if kind == "text":
        path.write_text("no database " * 2000)
    elif kind == "foreign":
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.close()
        before = path.read_bytes()
    elif kind == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "newer":
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    elif kind == "folder":
        shutil.rmtree(path.parent)
        path.mkdir(parents=True)
    elif kind == "below a file":
        path = path / "state.sqlite"
    assert words in await refusal(world, path)
    if kind == "foreign":
        assert path.read_bytes() == before


async def test_a_journal_that_cannot_be_read_is_told_and_the_state_before_it_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal of a killed process without its beginning: what was in the file is there, the log says so (r15)."""
    path, copy = tmp_path / "state.sqlite", tmp_path / "copy" / "state.sqlite"
    names = await many(path, 3)
    state = await State.open(path)
    await state.create(tuning(key="journal", number=99), None)
    copy.parent.mkdir()
    for name in ("state.sqlite", "state.sqlite-wal"):  # as SIGKILL leaves them
        shutil.copy(tmp_path / name, copy.parent / name)
    await state.close()
    with (copy.parent / "state.sqlite-wal").open("r+b") as journal:
        assert len(journal.read()) > 4096
        journal.seek(0)
        journal.write(bytes(32))
    state = await State.open(copy)
    assert {found.name for found in (await state.page("default", 0, 0, 99)).tunings} == set(names)
    await state.close()
    assert any(record.message == "state journal damaged" for record in caplog.records)


async def test_the_file_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """Tunings in every state with their events, leases, turns, requests, keys, what services said and what the sampler
    must forget are as they were, and the file goes on as a new one does (F48)."""
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript(FIFTH_SCHEMA)
        for number, value in enumerate((1, 1, 2, 3, 4, 5, 6), start=1):
            told = tuning("acme" if number < 2 else "bee", f"k{number}", number)
            told.state, told.labels["was"] = value, f"{number}"
            told.etag = etag_of(told)
            old.execute(
                "INSERT INTO tunings (name, tenant, key, image, state, attempt, tuner, lease_s, last_event, blob)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 2, ?)",
                (
                    *(told.name, told.name.split("/")[1], told.key, told.image, value),
                    *(int(value > 1), "tuner" if value == 2 else "", 4e9 if value == 2 else None),
                    told.SerializeToString(),
                ),
            )
            for sequence in (1, 2):
                event = TuningEvent(sequence=sequence, progress=TuningProgress(update=sequence))
                old.execute("INSERT INTO events VALUES (?, ?, ?)", (number, sequence, event.SerializeToString()))
        old.execute("INSERT INTO turns VALUES ('bee', 7)")
        old.execute(
            "INSERT INTO requests VALUES ('bee', 'id', 'body', ?, ?)", (tuning("bee", "k2", 2).name, time.time())
        )
        old.execute("INSERT INTO services VALUES ('sampler', x'01')")
        old.execute("INSERT INTO evictions (digest) VALUES ('gone')")
        old.execute("INSERT INTO api_keys VALUES ('k0123456789ab', 'acme', x'02', 'read', 1.0, NULL, NULL)")
    old.close()

    for _ in range(2):  # the second time it is a file of this version
        state = await State.open(path)
        found = {one.key: one for one in (await state.page("bee", 0, 0, 99)).tunings}
        assert [(key, one.state, one.labels["was"]) for key, one in found.items()] == [
            (f"k{number}", number - 1, f"{number}") for number in (7, 6, 5, 4, 3, 2)
        ]
        for one in found.values():
            kept = await state.read(one.name, 0)
            assert [event.progress.update for event in kept.events] == [1, 2] and not kept.gap
        assert await state.sweep() == []
        assert (await state.recall("bee", CreateRequest("id", "body"))).key == "k2"
        assert await state.evictions() == ["gone"] and (await state.known())["sampler"] == b"\x01"
        keys = await ApiKeys.open(state.database)
        assert [key.tenant for key in keys.page(None, "", 9)] == ["acme"]
        await state.close()

    state = await State.open(path)
    assert await state.report(Attempt(found["k3"].name, 1), "tuner") is Standing.KEPT
    assert [(await state.take(Taker(f"{number}"))).tuning.key for number in range(2)] == [
        "k1",
        "k2",
    ]  # never served first
    await state.change(found["k3"].name, becomes(Tuning.STATE_READY), lambda now: TuningEvent(ready=now))
    assert (await state.read(found["k3"].name, 2)).events[0].sequence == 3
    new = await state.create(tuning("cow", "new", 99), CreateRequest("id2", "body"))
    assert new.queue_position == 0
    await state.close()
    assert columns_of(path) == columns_of(await made(tmp_path / "new.sqlite"))


async def made(path: Path) -> Path:
    """A new state file."""
    await (await State.open(path)).close()
    return path


def columns_of(path: Path) -> dict[str, set[str]]:
    """The columns of each table of a file, and its indexes."""
    with sqlite3.connect(path) as file:
        names = file.execute("SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
        found = {name: {row[1] for row in file.execute(f"PRAGMA table_info({name})")} for name, _ in names}
    file.close()
    return found


async def test_a_row_that_is_damaged_is_data_loss(tmp_path: Path) -> None:
    """Bytes of a tuning that SQLite finds nothing wrong with, but that are no tuning (r16)."""
    path = tmp_path / "state.sqlite"
    (name,) = await many(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE tunings SET blob = ?", (b"\xff\xff\xff",))
    connection.close()
    state = await State.open(path)
    with pytest.raises(DataLoss) as damaged:
        await state.get(name)
    assert damaged.value.reason == "STATE_CORRUPT"
    await state.close()


@pytest.mark.parametrize("version", [SCHEMA_VERSION, SCHEMA_VERSION - 1])
async def test_a_state_that_can_only_be_read_is_read(tmp_path: Path, version: int) -> None:
    """All that a killed process had written is there, its journal and older versions too; what would write is refused
    with the remedy, what would change nothing is not; and the files stay as they are (r6)."""
    path, copy = tmp_path / "state.sqlite", tmp_path / "copy" / "state.sqlite"
    names = await many(path, 3)
    if version != SCHEMA_VERSION:
        with sqlite3.connect(path) as old:
            take_joining_out(old)
            old.execute(f"PRAGMA user_version = {version}")
        old.close()
    else:
        state = await State.open(path)
        names.append((await state.create(tuning(key="journal", number=99), None)).name)
    copy.parent.mkdir()
    for file in tmp_path.glob("state.sqlite*"):  # as SIGKILL leaves them
        shutil.copy(file, copy.parent / file.name)
    before = bytes_of(copy)
    with read_only(copy.parent):
        state = await State.open(copy)
        assert state.is_read_only
        assert {found.name for found in (await state.page("default", 0, 0, 99)).tunings} == set(names)
        assert (await state.create(tuning(key="k0", number=50), None)).name == names[0]  # found, not made
        for call in (
            state.create(tuning(key="new", number=100), None),
            state.change(names[0], becomes(Tuning.STATE_EXPIRED)),
            state.remove(names[0]),
            state.take(Taker("tuner")),
        ):
            with pytest.raises(FailedPrecondition, match="its operator must make") as refused_call:
                await call
            assert refused_call.value.reason == "STATE_READ_ONLY" and str(tmp_path) not in refused_call.value.message
        await state.close()
    assert bytes_of(copy) == before
    state = await State.open(copy)
    assert not state.is_read_only
    await state.remove(names[0])
    assert await state.get(names[0]) is None
    await state.close()


async def test_a_gateway_on_a_state_that_can_only_be_read_answers(world: World) -> None:
    """It says so in log, health and description; what is there is told, watched and edited with; what would be made,
    changed or deleted is refused, and all is as before once it can write (r6)."""
    await world.close()
    folder = world.folder / "disk"
    folder.mkdir()
    world.config = replace(world.config, state=folder / "state.sqlite")
    await world.open()
    made = await world.tuned()
    await world.close()
    with read_only(folder):
        process, address = await start(world, UNITUNE_STATE=str(world.config.state))
        async with serving.channel(address) as channel:
            tunings, edits = TuningServiceStub(channel), EditServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            told = {}
            for name in ("", "readiness", "writing"):
                told[name] = (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
            serves, does_not = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
            assert told == {"": serves, "readiness": serves, "writing": does_not}
            info = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(server_pb2.GetServerInfoRequest())
            assert info.is_read_only
            assert (await tunings.GetTuning(GetTuningRequest(name=made.name), timeout=20)) == made
            assert list((await tunings.ListTunings(ListTuningsRequest(), timeout=20)).tunings) == [made]
            events = [event async for event in tunings.WatchTuning(WatchTuningRequest(name=made.name), timeout=20)]
            assert events[-1].HasField("ready")
            for request in (
                EditRequest(tuning=made.name, prompt="a dog"),
                EditRequest(image=made.image, prompt="a dog"),  # whose tuning is found
                EditRequest(image_data=picture("red"), prompt="a dog", config=sampling_config(method="sdedit")),
            ):
                assert [event async for event in edits.Edit(request, timeout=20)][-1].HasField("done"), request
            again = CreateTuningRequest(image=made.image, config=made.config, request_id=str(uuid.uuid4()))
            assert (await tunings.CreateTuning(again, timeout=20)).name == made.name
            wanted = Tuning(name=made.name, labels={"a": "b"})
            for call in (
                edits.Edit(EditRequest(image_data=picture("blue"), prompt="a dog"), timeout=20),
                tunings.UpdateTuning(UpdateTuningRequest(tuning=wanted), timeout=20),
                tunings.DeleteTuning(DeleteTuningRequest(name=made.name), timeout=20),
            ):
                await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "STATE_READ_ONLY")
        process.terminate()
        _, log = await asyncio.wait_for(process.communicate(), 60)
    lines = [json.loads(line) for line in log.decode().splitlines()]
    (told_once,) = [line for line in lines if line["event"] == "state can only be read"]
    assert "writable" in told_once["detail"]
    assert [] == [line for line in lines if line.get("level") == "error"]
    await world.open()
    assert not (await world.info.GetServerInfo(server_pb2.GetServerInfoRequest())).is_read_only
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=made.name))
    assert world.stored_weights() == []


async def test_a_state_that_is_emptied_under_its_gateway_is_state_corrupt(tmp_path: Path) -> None:
    """DATA_LOSS for what reads and writes it, and no path in the error (r16)."""
    path = tmp_path / "folder" / "state.sqlite"
    names = await many(path, 2)
    state = await State.open(path)
    os.truncate(path, 0)  # under the open file: SQLite cannot read its pages
    for call in (state.get(names[0]), state.create(tuning(key="new", number=1000), None)):
        with pytest.raises(DataLoss) as damaged:
            await call
        assert damaged.value.reason == "STATE_CORRUPT" and str(tmp_path) not in damaged.value.message
    await state.close()


async def test_a_state_that_cannot_be_written_is_state_down(world: World) -> None:
    """A disk that fails under a running gateway: UNAVAILABLE with RetryInfo for what writes, until it is well (r6)."""
    process, address = await start(world)
    async with serving.channel(address) as channel:
        tunings = TuningServiceStub(channel)
        image = (await world.upload(picture())).name
        disk = NoFileMayGrow(world.folder)
        disk.fill(process)
        call = tunings.CreateTuning(CreateTuningRequest(image=image), timeout=30)
        error = await refused(call, grpc.StatusCode.UNAVAILABLE, "STATE_DOWN")
        assert error.retry_after_s
        disk.free(process)
        assert (await tunings.CreateTuning(CreateTuningRequest(image=image), timeout=30)).name
    await end(process)


@pytest.fixture
async def small(world: World, tmp_path: Path) -> AsyncIterator[World]:
    """The world with a gateway whose state is on a disk of 3 MB."""
    with mounted(tmp_path / "disk", "3m") as disk:
        await world.close()
        world.config = replace(world.config, state=disk / "state.sqlite")
        await world.open()
        yield world
        await world.close()


async def test_a_full_state_is_state_full_and_passes(small: World) -> None:
    """Writing calls are RESOURCE_EXHAUSTED with RetryInfo, reading goes on, and all is well when space is back (r6)."""
    made = await small.tuned()
    image = (await small.upload(picture("navy"))).name
    ballast = fill(small.config.state.parent)
    for _ in range(3):
        call = small.tunings.CreateTuning(CreateTuningRequest(image=image))
        error = await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "STATE_FULL")
        assert error.retry_after_s
    assert (await small.tunings.GetTuning(GetTuningRequest(name=made.name))).state == Tuning.STATE_READY
    ballast.unlink()
    assert (await small.tuned(picture("navy"))).state == Tuning.STATE_READY


async def test_deleting_works_on_a_full_disk(small: World) -> None:
    """DeleteTuning of every tuning of a full state succeeds, discards the weights, and gives the space back (N11)."""
    names = [(await small.tuned(picture(colour))).name for colour in ("red", "green", "blue")]
    disk = small.config.state.parent
    fill(disk)
    for name in names:
        await small.tunings.DeleteTuning(DeleteTuningRequest(name=name))
    assert list((await small.tunings.ListTunings(ListTuningsRequest())).tunings) == []
    assert small.stored() == []
    assert not [name for name in names if name.encode() in small.config.state.read_bytes()]


async def test_the_reserve_is_there_again_when_there_is_space(small: World) -> None:
    """What a deletion on a full disk used up is put back by the next one, so that it helps the next time, too (N11)."""
    reserve = small.config.state.with_name("state.sqlite-reserve")
    names = [(await small.tuned(picture(colour))).name for colour in ("red", "green")]
    assert reserve.stat().st_size == RESERVE_BYTES
    ballast = fill(small.config.state.parent)
    await small.tunings.DeleteTuning(DeleteTuningRequest(name=names[0]))
    ballast.unlink()
    await small.tunings.DeleteTuning(DeleteTuningRequest(name=names[1]))
    assert reserve.stat().st_size == RESERVE_BYTES and len(set(reserve.read_bytes())) == 256


async def test_a_gateway_starts_on_a_full_disk_and_deletes(small: World) -> None:
    """A restart while the disk is full does not stand in the way of deleting (N11)."""
    name = (await small.tuned()).name
    await small.close()
    fill(small.config.state.parent)
    await small.open()
    await small.tunings.DeleteTuning(DeleteTuningRequest(name=name))
    await refused(small.tunings.GetTuning(GetTuningRequest(name=name)), grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")


async def test_full_state_is_told_by_the_state_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error has no path, the log has SQLite's words (r6)."""
    caplog.set_level(logging.INFO)
    with mounted(tmp_path / "disk", "2m") as disk:
        state = await State.open(disk / "state.sqlite")
        await state.create(tuning(), None)
        fill(disk)
        with pytest.raises(ResourceExhausted) as full:
            for number in range(100):
                await state.create(tuning(key=f"k{number}", number=number + 1), None)
        await state.close()
    assert full.value.reason == "STATE_FULL" and str(tmp_path) not in full.value.message
    assert any("disk is full" in record.__dict__.get("fields", {}).get("detail", "") for record in caplog.records)
