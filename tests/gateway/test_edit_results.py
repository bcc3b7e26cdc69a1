"""What is kept of edits that ended: in the store, bounded by bytes, number and time, the oldest forgotten first."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from gateway import edit_results, stored_edits
from gateway.edit_results import EditResults, OpenEdit, new_edit
from gateway.stored_edits import StoredEdits
from tests.configs import sampling_config
from tests.gateway.conftest import World, edit, eventually, picture, refused
from unitune.errors import Internal, NotFound, to_status
from unitune.object_store import ObjectStore
from unitune.v1.edit_pb2 import Edit, EditEvent, EditRequest, GetEditRequest, Timings
from unitune.v1.tuning_pb2 import DeleteTuningRequest


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """An empty store."""
    return ObjectStore(str(tmp_path / "store"))


async def ended(results: EditResults, size_bytes: int) -> OpenEdit:
    """An edit that is done, with a picture of so many bytes."""
    opened = results.begin(new_edit("default"))
    await done(results, opened, size_bytes)
    return opened


async def done(results: EditResults, opened: OpenEdit, size_bytes: int) -> None:
    """End an edit with a picture."""
    image = EditEvent.EditedImage(png=bytes(size_bytes), size_bytes=size_bytes)
    await opened.pictures.keep(EditEvent(image=image))
    await results.finish(opened, Timings(total_s=1))
    opened.done(Timings(total_s=1))


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


def stored(store: ObjectStore) -> set[str]:
    """The ids of the edits that the store has something of."""
    return {path.split("/")[2] for path in store.list("edits")}


async def _as(store: ObjectStore, edits: list[OpenEdit]) -> bool:
    return stored(store) == {opened.edit.name.rpartition("/")[2] for opened in edits}


async def test_pictures_are_bounded_by_bytes_at_once(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment that an edit ends, the oldest beyond the bound are forgotten and leave the store; no further call
    is needed (R9)."""
    monkeypatch.setattr(edit_results, "MAX_BYTES", 10_000)
    results = EditResults(StoredEdits(store))
    running = results.begin(new_edit("default"))
    slow = results.begin(new_edit("default"))  # begun first, ends last
    edits = [await ended(results, 3_000) for _ in range(5)]
    await done(results, slow, 3_000)
    assert results.size_bytes <= 10_000
    assert names(results, [running, *edits, slow]) == [True, False, False, False, True, True, True]
    await eventually(lambda: _as(store, [*edits[3:], slow]))
    found = await results.read(slow.edit.name)
    assert found.state == Edit.STATE_DONE and len(found.images[0].png) == 3_000 and found.timings.total_s == 1


async def test_ends_are_bounded_by_number_and_time(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are forgotten when there are many, and all of them in time, though nobody asks (R9)."""
    monkeypatch.setattr(edit_results, "MAX_EDITS", 3)
    monkeypatch.setattr(edit_results, "KEPT_S", 0.5)
    results = EditResults(StoredEdits(store))
    edits = [await ended(results, 10) for _ in range(5)]
    assert names(results, edits) == [False, False, True, True, True]
    async with asyncio.timeout(10):
        while results.size_bytes:
            await asyncio.sleep(0.02)
    assert names(results, edits) == [False] * 5
    await eventually(lambda: _as(store, []))


async def test_one_that_ends_twice_counts_once(store: ObjectStore) -> None:
    """Cancelled in the moment in which it fails, it is kept once, with its last state."""
    results = EditResults(StoredEdits(store))
    opened = results.begin(new_edit("default"))
    opened.cancelled()
    opened.failed(to_status(Internal("x", reason="INTERNAL")))
    assert results.size_bytes == opened.edit.ByteSize() and opened.edit.state == Edit.STATE_FAILED
    assert results.cancel(opened.edit.name).state == Edit.STATE_FAILED


async def test_a_restarted_gateway_has_the_pictures_of_before(world: World) -> None:
    """GetEdit answers with what an earlier process has done, until its time is over; a sweep deletes that alone."""
    config = sampling_config(method="sdedit", num_inference_steps=2)
    events = await edit(world, image_data=picture(), seeds=[7, 8], config=config)
    asked = GetEditRequest(name=events[0].accepted.edit)
    before = await world.edits.GetEdit(asked)
    await world.close()
    await world.open()
    after = await world.edits.GetEdit(asked)
    assert [image.png for image in after.images] == [image.png for image in before.images] and len(after.images) == 2
    assert after.state == Edit.STATE_DONE and after.timings == before.timings

    later = (await edit(world, image_data=picture(), config=config))[0].accepted.edit
    for path in (world.folder / "store" / "edits").rglob("*"):
        if path.is_file():
            os.utime(path, (0, path.stat().st_mtime - 2 * stored_edits.KEPT_S))
    await refused(world.edits.GetEdit(asked), grpc.StatusCode.NOT_FOUND, "EDIT_NOT_FOUND")
    assert world.gateway is not None
    await world.gateway.retention.sweep()
    left = {path.split("/")[2] for path in world.stored() if path.startswith("edits/")}
    assert left == {later.rpartition("/")[2]}


async def test_results_go_with_their_tuning(world: World) -> None:
    """DeleteTuning leaves no picture of its edits in the store, of this process or one before; others' stay."""
    tuning = await world.tuned()
    other = await world.tuned(picture("red"))
    names = [(await edit(world, tuning=one.name))[0].accepted.edit for one in (tuning, other)]
    await world.close()
    await world.open()
    names.append((await edit(world, tuning=tuning.name))[0].accepted.edit)
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    left = {path.split("/")[2] for path in world.stored() if path.startswith("edits/")}
    assert left == {names[1].rpartition("/")[2]}
    await refused(world.edits.GetEdit(GetEditRequest(name=names[0])), grpc.StatusCode.NOT_FOUND, "EDIT_NOT_FOUND")


async def test_an_edit_whose_tuning_is_deleted_meanwhile_leaves_nothing(world: World) -> None:
    """An edit that runs goes on, and its caller gets the pictures; they are kept nowhere."""
    tuning = await world.tuned()
    world.sampler.turns = asyncio.Semaphore(0)
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
    while not (event := await call.read()).HasField("loading"):
        name = event.accepted.edit
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    for _ in range(100):
        world.sampler.turns.release()
    while not event.HasField("done"):
        event = await call.read()
        assert not event.HasField("failed"), event
    assert world.stored() == []
    await refused(world.edits.GetEdit(GetEditRequest(name=name)), grpc.StatusCode.NOT_FOUND, "EDIT_NOT_FOUND")


async def test_a_slow_reader_has_its_pictures_from_the_store(world: World) -> None:
    """Pictures that wait for a reader wait in the store, each event once, and come in order and whole (R9)."""
    await world.close()
    world.config = replace(world.config, heartbeat_s=0.2)
    await world.open()
    large = picture() + os.urandom(5 << 20)
    world.sampler.png = large
    config = sampling_config(method="sdedit", num_inference_steps=2)
    call = world.edits.Edit(EditRequest(image_data=picture(), seeds=[1, 2, 3], config=config, prompt="a dog"))
    first = await call.read()

    async def is_done() -> bool:
        assert world.gateway is not None
        opened = world.gateway._results.get(first.accepted.edit)
        return opened.edit.state == Edit.STATE_DONE

    await eventually(is_done)  # though nobody reads
    events = [first]
    while (event := await call.read()) is not grpc.aio.EOF:
        if not event.HasField("heartbeat"):
            events.append(event)
    assert events[-1].HasField("done") and [event.sequence for event in events] == list(range(1, len(events) + 1))
    size = sum(len(event.image.png) + len(event.image_part.png) for event in events)
    assert size >= 3 * len(large)
