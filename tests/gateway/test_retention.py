"""What the store keeps: nothing that nobody owns for longer than is said, and everything that somebody owns."""

import asyncio
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from tests.gateway.conftest import World, eventually, picture, refused
from unitune.errors import Aborted, FailedPrecondition, InvalidField, NotFound
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.image_pb2 import DeleteImageRequest
from unitune.v1.tuning_pb2 import CreateTuningRequest, DeleteTuningRequest, Tuning
from unitune_client import AsyncClient

DAY_S = 24 * 3600.0


def age(world: World, under: str, seconds: float) -> None:
    """Make all files there older."""
    for path in (world.folder / "store" / under).rglob("*"):
        if path.is_file():
            moment = time.time() - seconds
            os.utime(path, (moment, moment))


async def sweep(world: World) -> None:
    """Look through the store once."""
    assert world.gateway is not None
    await world.gateway.retention.sweep()


def put(world: World, path: str, data: bytes = b"x") -> Path:
    """Write a file into the store's folder, as somebody else would."""
    file = world.folder / "store" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


async def test_a_picture_that_no_tuning_uses_goes_after_a_day(world: World) -> None:
    """The gateway deletes it by itself; a younger one, and one that a tuning was made from, stay (R10)."""
    old, young = await world.upload(picture("red")), await world.upload(picture("blue"))
    used = await world.tuned(picture("green"))
    age(world, f"images/default/{old.sha256}", DAY_S + 60)
    age(world, used.image.replace("tenants/default/images", "images/default"), 9 * DAY_S)
    age(world, f"images/default/{young.sha256}", DAY_S - 600)
    await world.close()
    world.config = replace(world.config, store_sweep_s=0.05)
    await world.open()

    async def is_gone() -> bool:
        return not any(old.sha256 in path for path in world.stored())

    await eventually(is_gone)
    await asyncio.sleep(0.2)
    assert sum(young.sha256 in path for path in world.stored()) == 2
    assert sum(used.image[-64:] in path for path in world.stored()) == 2
    await refused(
        world.edits.Edit(EditRequest(image=old.name, prompt="a dog")), grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND"
    )


async def test_a_picture_is_kept_for_ever_if_told_so(world: World) -> None:
    """With a time of 0 the store is not looked through for pictures (R10)."""
    image = await world.upload(picture())
    age(world, "images", 99 * DAY_S)
    await world.close()
    world.config = replace(world.config, store_sweep_s=0.02, keep_unused_s=0.0)
    await world.open()
    await asyncio.sleep(0.2)
    assert sum(image.sha256 in path for path in world.stored()) == 2


async def test_uploading_again_renews_a_picture(world: World) -> None:
    """The upload changes nothing else, and a tuning that is then made has its picture (R10)."""
    image = await world.upload(picture())
    age(world, "images", 2 * DAY_S)
    assert await world.upload(picture()) == image
    await sweep(world)
    tuning = await world.tunings.CreateTuning(CreateTuningRequest(image=image.name))
    age(world, "images", 2 * DAY_S)
    await sweep(world)
    assert (await world.until(tuning.name, Tuning.STATE_READY)).image == image.name
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    assert world.stored() == []


async def test_no_tuning_is_made_of_a_picture_that_is_going(world: World) -> None:
    """Sweep, deletion and creation at the same time: a tuning is refused, or it has its picture (R10)."""
    image = await world.upload(picture())
    for _ in range(15):
        await world.upload(picture())
        age(world, "images", 2 * DAY_S)
        create = world.tunings.CreateTuning(CreateTuningRequest(image=image.name))
        delete = world.images.DeleteImage(DeleteImageRequest(name=image.name, allow_missing=True))
        made, _, _ = await asyncio.gather(create, sweep(world), delete, return_exceptions=True)
        if isinstance(made, Tuning):
            assert (await world.until(made.name, Tuning.STATE_READY)).error.code == 0
            assert sum(image.sha256 in path for path in world.stored()) >= 2
            await world.tunings.DeleteTuning(DeleteTuningRequest(name=made.name))
        else:
            assert isinstance(made, grpc.aio.AioRpcError) and made.code() is grpc.StatusCode.NOT_FOUND
    assert world.stored() == []


async def test_a_deletion_that_was_killed_half_way_is_done_again(world: World) -> None:
    """What a killed gateway left of a picture can be deleted; afterwards there is none."""
    image = await world.upload(picture())
    (world.folder / "store" / "images" / "default" / image.sha256 / "image.json").unlink()
    request = DeleteImageRequest(name=image.name)
    await world.images.DeleteImage(request)
    assert world.stored() == []
    await refused(world.images.DeleteImage(request), grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")


async def test_a_picture_is_deleted_on_request(world: World) -> None:
    """At once, and nothing is left; deleting what is not there is refused unless it may be missing (R10)."""
    image = await world.upload(picture())
    await world.upload(picture())
    await world.images.DeleteImage(DeleteImageRequest(name=image.name))
    assert world.stored() == []
    again = DeleteImageRequest(name=image.name)
    await refused(world.images.DeleteImage(again), grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
    await world.images.DeleteImage(DeleteImageRequest(name=image.name, allow_missing=True))
    wrong = DeleteImageRequest(name="tenants/default/images/../x", allow_missing=True)
    await refused(world.images.DeleteImage(wrong), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "name")


async def test_a_picture_in_use_is_not_deleted(world: World) -> None:
    """While a tuning is live; one that failed does not hold its picture (R10)."""
    world.tuner.go_on.clear()
    tuning = await world.tune()
    await world.running(tuning.name)
    request = DeleteImageRequest(name=tuning.image)
    error = await refused(world.images.DeleteImage(request), grpc.StatusCode.FAILED_PRECONDITION, "IMAGE_IN_USE")
    assert error.metadata["tuning"] == tuning.name and tuning.name in error.message
    world.tuner.spoil_manifest = True
    world.tuner.go_on.set()
    await world.until(tuning.name, Tuning.STATE_FAILED)
    await world.images.DeleteImage(request)
    assert world.stored() == []


async def test_what_nobody_owns_goes_after_a_day(world: World) -> None:
    """Halves of uploads, weights of tunings or attempts that are gone, unfinished files; all else stays (R10)."""
    tuning = await world.tuned()
    own = tuning.weights.path
    orphans = [
        f"images/default/{'0' * 64}/file",
        "tunings/default/t-0123/1/weights.safetensors",
        "tunings/default/t-0123/1/manifest.json",
        f"{own.rpartition('/')[0]}/7/weights.safetensors",
        f"{own}/weights.safetensors#3",
    ]
    foreign = ["tunings/README", "notes/#1/x", "images/default/x"]
    before = world.stored()
    for path in (*orphans, *foreign):
        put(world, path)
    await sweep(world)
    assert set(orphans) <= set(world.stored())
    age(world, "", 2 * DAY_S)
    young = "tunings/default/t-0124/1/weights.safetensors"
    put(world, young)
    await sweep(world)
    assert world.stored() == sorted((*before, *foreign, young))
    again = [event async for event in world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))]
    assert again[-1].HasField("done")


async def test_the_sdk_deletes_pictures(world: World) -> None:
    """`delete_image` deletes an upload, says why one stays, and is content with a missing one if told so (R10)."""
    assert world.server is not None
    async with AsyncClient(world.server.address) as client:
        image = await client.upload_image(picture())
        await client.delete_image(image.name)
        assert world.stored() == []
        with pytest.raises(NotFound):
            await client.delete_image(image.name)
        await client.delete_image(image.name, allow_missing=True)
        tuning = await client.tune(picture())
        with pytest.raises(FailedPrecondition) as caught:
            await client.delete_image(tuning.image)
        assert caught.value.reason == "IMAGE_IN_USE" and tuning.name in caught.value.message


async def test_a_store_of_another_state_is_left_alone(world: World) -> None:
    """A new state beside an old store knows nothing of what is in it, and deletes none of it (R10)."""
    tuning = await world.tuned()
    await world.upload(picture("red"))
    before, weights = world.stored(), world.stored_weights()
    age(world, "", 9 * DAY_S)
    await world.close()
    old = world.config.state
    for state, left in ((old.with_name("new.sqlite"), before), (old, weights)):
        world.config = replace(world.config, state=state, store_sweep_s=0.05)
        await world.open()
        await asyncio.sleep(0.5)
        assert set(left) <= set(world.stored())
        await world.close()
    await world.open()
    assert (await world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog")).read()).HasField("accepted")


async def test_a_damaged_picture_can_be_deleted(world: World) -> None:
    """Its owner need not upload it again to be rid of it."""
    image = await world.upload(picture("red"))
    (world.folder / "store" / "images" / "default" / image.sha256 / "image.json").write_bytes(b"{")
    await world.images.DeleteImage(DeleteImageRequest(name=image.name))
    assert world.stored() == []


async def test_the_sdk_says_when_weights_are_discarded(world: World) -> None:
    """`update_tuning` replaces labels and expiry, keeps to an etag, and refuses a time that is past."""
    assert world.server is not None
    async with AsyncClient(world.server.address) as client:
        tuning = await client.tune(picture())
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        kept = await client.update_tuning(tuning.name, labels={"order": "7"}, expire_time=tomorrow, etag=tuning.etag)
        assert kept == await client.get_tuning(tuning.name)
        assert (dict(kept.labels), kept.expire_time) == ({"order": "7"}, tomorrow)
        with pytest.raises(Aborted) as stale:
            await client.update_tuning(tuning.name, labels={}, expire_time=None, etag=tuning.etag)
        assert stale.value.reason == "ETAG_MISMATCH"
        with pytest.raises(InvalidField, match="expire_time"):
            await client.update_tuning(tuning.name, labels={}, expire_time=datetime.now(UTC) - timedelta(days=1))
        never = await client.update_tuning(tuning.name, labels={}, expire_time=None)
        assert (dict(never.labels), never.expire_time) == ({}, None)
