"""What a tuning is to its owner: made once, watched without gaps, cancelled, changed, deleted without trace."""

import asyncio
import random
import time
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gateway import state as state_module
from gateway.state import KEPT_EVENTS
from gateway.tunings import tuning_key
from tests.configs import sampling_config, tuning_config
from tests.full_disk import read_only
from tests.gateway.conftest import World, edit, eventually, picture, refused, sha256
from tests.gateway.upstream_servers import BASE_MODEL, TUNING_DEFAULTS
from unitune.errors import Internal, from_status
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.tuning_pb2 import (
    CancelTuningRequest,
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    Tuning,
    TuningConfig,
    TuningEvent,
    UpdateTuningRequest,
    WatchTuningRequest,
)

TERMINAL = {"ready", "failed", "cancelled"}


def kinds(events: list[TuningEvent]) -> list[str]:
    """What happened."""
    return [event.WhichOneof("event") or "" for event in events]


async def test_created_tuning_has_all_that_goes_in(world: World) -> None:
    """A new tuning is QUEUED with every default filled in, and its key names the weights by what goes in."""
    world.tuner.go_on.clear()
    tuning = await world.tune(seed=4)
    assert tuning.state == Tuning.STATE_QUEUED and not tuning.HasField("weights") and not tuning.HasField("error")
    assert tuning.base_model == BASE_MODEL.digest and tuning.image.endswith(sha256(picture()))
    wanted = tuning_config()
    wanted.CopyFrom(TUNING_DEFAULTS)
    wanted.seed = 4
    assert tuning.config == wanted
    assert tuning.key == tuning_key(sha256(picture()), BASE_MODEL.digest, wanted)
    world.tuner.go_on.set()
    ready = await world.until(tuning.name, Tuning.STATE_READY)
    assert ready.weights.key == tuning.key and ready.weights.base_model == BASE_MODEL.digest
    assert ready.create_time.ToDatetime() <= ready.start_time.ToDatetime() <= ready.end_time.ToDatetime()
    assert ready.etag != tuning.etag and ready.progress.update == 5


@pytest.mark.parametrize(
    ("config", "further", "key"),
    [
        (
            {
                "method": "unitune",
                "mode": "attn_out",
                "updates": 128,
                "batch": 4,
                "learning_rate": 1e-4,
                "rare_tokens": "beikkpic",
                "seed": 7,
                "stop_loss_ratio": 0.5,
            },
            [],
            "a06bfa72795c8aa45485640d8c3941d73a7638bafed7c20638f71f3812e46723",
        ),
        (
            {
                "method": "null_text",
                "updates": 10,
                "learning_rate": 0.01,
                "base_prompt": "a cat on a beach",
                "num_inference_steps": 20,
                "guidance_scale": 7.5,
            },
            [],
            "908b72097cb0b9da2b23d283230685d205cfc72c06184d8537219041aebbcb0a",
        ),
        (
            {
                "method": "textual_inversion",
                "updates": 3,
                "batch": 1,
                "learning_rate": 1e-3,
                "rare_tokens": "sks",
                "initial_word": "dog",
                "num_vectors": 2,
                "scale_learning_rate": False,
            },
            [],
            "0a29c40ae92509e8c57bf82df904f101c76e1d1890a88a3a7b77959f8240f961",
        ),
        (
            {
                "method": "dreambooth",
                "mode": "lora",
                "updates": 3,
                "batch": 1,
                "learning_rate": 1e-3,
                "rare_tokens": "sks",
                "class_noun": "dog",
                "num_class_images": 0,
                "prior_weight": 1.0,
            },
            ["c" * 64],
            "d789bb96b1abcb9c0cef4b2c3d77a311cf9e75ab91e0b1515f0f85794d4daf74",
        ),
    ],
    ids=lambda value: value.get("method") if isinstance(value, dict) else None,
)
def test_the_key_is_that_of_the_versions_before(config: dict[str, Any], further: list[str], key: str) -> None:
    """The same options have the key that versions wrote whose choices were texts, so their weights are found."""
    assert key == tuning_key("a" * 64, "b" * 64, tuning_config(**config), further)


def test_every_setting_is_in_the_key() -> None:
    """A change of any input changes the key; the same inputs give the same key."""
    keys = {tuning_key("a", "b", TUNING_DEFAULTS), tuning_key("x", "b", TUNING_DEFAULTS)}
    keys.add(tuning_key("a", "x", TUNING_DEFAULTS))
    changes = {
        "method": TuningConfig.METHOD_IMAGIC,
        "mode": TuningConfig.MODE_LORA,
        "updates": 9,
        "batch": 9,
        "learning_rate": 9.0,
        "rare_tokens": "x",
        "seed": 9,
        "prompt": "x",
        "class_noun": "x",
        "num_class_images": 9,
        "prior_weight": 9.0,
        "initial_word": "x",
        "num_vectors": 9,
        "embedding_updates": 9,
        "embedding_learning_rate": 9.0,
        "scale_learning_rate": False,
        "stop_loss_ratio": 0.5,
        "base_prompt": "x",
        "num_inference_steps": 9,
        "guidance_scale": 9.0,
        "super_resolution_updates": 9,
        "super_resolution_2_updates": 9,
        "warm_start": True,
    }
    assert changes.keys() == {field.name for field in TuningConfig.DESCRIPTOR.fields}
    for name, value in changes.items():
        other = tuning_config()
        other.CopyFrom(TUNING_DEFAULTS)
        setattr(other, name, value)
        keys.add(tuning_key("a", "b", other))
    keys.add(tuning_key("a", "b", TUNING_DEFAULTS, ["c"]))
    keys.add(tuning_key("a", "b", TUNING_DEFAULTS, ["c", "d"]))
    keys.add(tuning_key("a", "b", TUNING_DEFAULTS, working_size=(448, 576)))
    keys.add(tuning_key("a", "b", TUNING_DEFAULTS, working_size=(576, 448)))
    assert len(keys) == 7 + len(changes)
    assert tuning_key("a", "b", TUNING_DEFAULTS) in keys


async def test_another_mode_gets_the_papers_learning_rate(world: World) -> None:
    """The preset's learning rate belongs to the preset's mode."""
    assert (await world.tune()).config.learning_rate == 2e-4
    assert (await world.tune(mode="full")).config.learning_rate == 1e-4
    assert (await world.tune(mode="full", learning_rate=3e-4)).config.learning_rate == 3e-4


async def test_same_key_is_the_same_tuning_while_it_lives(world: World) -> None:
    """Defaults written out make no difference; a failed tuning is made anew, and another tenant's is never found."""
    first = await world.tuned()
    assert (await world.tune(updates=5, mode="attn_out")).name == first.name
    image = await world.upload(picture(), parent="tenants/acme")
    foreign = await world.tunings.CreateTuning(CreateTuningRequest(image=image.name))
    assert foreign.name.startswith("tenants/acme/tunings/") and foreign.key == first.key
    world.tuner.failure = Internal("the loss was not finite at update 1", reason="TUNING_DIVERGED")
    failed = await world.tune(seed=1)
    await world.until(failed.name, Tuning.STATE_FAILED)
    world.tuner.failure = None
    again = await world.tuned(seed=1)
    assert again.name != failed.name and again.state == Tuning.STATE_READY


async def test_diverged_tuning_is_failed_with_its_error(world: World) -> None:
    """A tuner's `failed` becomes the tuning's error and its last event; nothing is left in the store."""
    world.tuner.failure = Internal("diverged", reason="TUNING_DIVERGED", metadata={"update": "3"})
    tuning = await world.tune()
    events = await world.watch(tuning.name)
    assert kinds(events)[-1] == "failed" and from_status(events[-1].failed).metadata == {"update": "3"}
    failed = await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))
    assert failed.state == Tuning.STATE_FAILED and failed.error == events[-1].failed
    assert all(path.startswith("images/") for path in world.stored())


async def test_request_id_makes_a_retry_harmless(world: World) -> None:
    """Ten creations at once with one id are one tuning and one run, and so is one after a restart."""
    image = await world.upload(picture())
    request = CreateTuningRequest(image=image.name, request_id=str(uuid.uuid4()))
    answers = await asyncio.gather(*(world.tunings.CreateTuning(request) for _ in range(10)))
    (name,) = {answer.name for answer in answers}
    await world.watch(name)
    await world.close()
    await world.open()
    assert (await world.tunings.CreateTuning(request)).name == name
    assert len(world.tuner.requests) == 1


async def test_request_id_answers_with_its_failed_tuning(world: World) -> None:
    """A retry is not a second try: the same id answers with the tuning that failed."""
    world.tuner.failure = Internal("diverged", reason="TUNING_DIVERGED")
    image = await world.upload(picture())
    request = CreateTuningRequest(image=image.name, request_id=str(uuid.uuid4()))
    name = (await world.tunings.CreateTuning(request)).name
    await world.until(name, Tuning.STATE_FAILED)
    assert (await world.tunings.CreateTuning(request)).state == Tuning.STATE_FAILED


async def test_request_id_with_another_body_is_refused(world: World) -> None:
    """One id cannot mean two things, and after the tuning's deletion it does not make it again."""
    image = await world.upload(picture())
    request = CreateTuningRequest(image=image.name, request_id=str(uuid.uuid4()))
    tuning = await world.tunings.CreateTuning(request)
    other = CreateTuningRequest(image=image.name, request_id=request.request_id, config=tuning_config(seed=1))
    call = world.tunings.CreateTuning(other)
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED", "request_id")
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    await refused(world.tunings.CreateTuning(request), grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")


async def test_a_tuning_that_is_only_validated_is_not_made(world: World) -> None:
    """The answer is what would be made, without a name, or the tuning that is there; what is wrong is refused alike."""
    image = await world.upload(picture())
    asked = CreateTuningRequest(image=image.name, config=tuning_config(updates=3), validate_only=True, request_id="x")
    planned = await world.tunings.CreateTuning(asked)
    assert ("", 3, TUNING_DEFAULTS.batch) == (planned.name, planned.config.updates, planned.config.batch)
    assert not (await world.tunings.ListTunings(ListTuningsRequest())).tunings and not world.tuner.requests

    made = await world.tune(updates=3)
    found = await world.tunings.CreateTuning(asked)
    assert (made.name, made.key) == (found.name, planned.key)
    asked.config.updates = 9999
    await refused(
        world.tunings.CreateTuning(asked), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "config.updates"
    )


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("unitune", {}),
        ("imagic", {}),
        ("prompt_to_prompt", {"inversion": "null_text", "base_prompt": "a cat"}),
        ("sdedit", {}),
    ],
)
async def test_an_edit_tells_the_tuning_that_it_needs(world: World, method: str, more: dict[str, str]) -> None:
    """CreateTuning with that config makes the one that the edit finds; a method without a tuning tells none."""
    image = await world.upload(picture())
    request = EditRequest(image=image.name, prompt="a dog", config=sampling_config(method=method, **more))
    request.validate_only = True
    checked, _ = [event async for event in world.edits.Edit(request, timeout=20)]
    accepted = checked.accepted
    request.validate_only = False
    made = None
    if accepted.HasField("tuning_config"):
        made = await world.tunings.CreateTuning(CreateTuningRequest(image=image.name, config=accepted.tuning_config))
    events = [event async for event in world.edits.Edit(request, timeout=20)]

    assert accepted.HasField("tuning_config") == (method != "sdedit")
    assert events[-1].done.tuning == (made.name if made is not None else "")
    assert events[0].accepted.tuning_config == accepted.tuning_config


async def test_watch_tells_everything_once(world: World) -> None:
    """From the first event to the last: queued, started, each progress, ready, numbered without a gap."""
    tuning = await world.tune()
    events = await world.watch(tuning.name)
    assert kinds(events) == ["queued", "started", *["progress"] * 5, "ready"]
    assert [event.sequence for event in events] == list(range(1, 9))
    assert [event.progress.update for event in events if event.HasField("progress")] == [1, 2, 3, 4, 5]
    assert events[1].started.attempt == 1 and events[-1].ready.weights.size_bytes > 0
    assert events[-1].ready == await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))


async def test_watch_resumes_anywhere(world: World) -> None:
    """Dropped at a random event and resumed after it, again and again: no event is missing and none comes twice."""
    draw = random.Random(5)
    tuning = await world.tune(updates=40)
    seen: list[TuningEvent] = []
    while not seen or kinds(seen)[-1] not in TERMINAL:
        after = seen[-1].sequence if seen else 0
        call = world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name, after_sequence=after))
        for _ in range(draw.randint(1, 9)):
            event = await call.read()
            if event is grpc.aio.EOF:
                break
            seen += [event] if event.sequence else []  # a place in the queue has none
        call.cancel()
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1)) and len(seen) == 43
    assert seen == await world.watch(tuning.name)
    assert await world.watch(tuning.name, after=43) == []


async def test_watch_after_pruning_starts_with_a_snapshot(world: World) -> None:
    """When the asked events are no longer kept, a snapshot stands for them, and the last event still comes."""
    tuning = await world.tuned(updates=KEPT_EVENTS + 20)
    last = KEPT_EVENTS + 23
    events = await world.watch(tuning.name, after=3)
    assert kinds(events) == ["snapshot", "ready"]
    assert [event.sequence for event in events] == [last - 1, last]
    assert events[0].snapshot == tuning
    kept = await world.watch(tuning.name, after=last - KEPT_EVENTS)
    assert [event.sequence for event in kept] == list(range(last - KEPT_EVENTS + 1, last + 1))


async def test_watch_of_what_ended_an_hour_ago(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the beginning it has a snapshot and the event that ended the tuning; after that event, nothing (F14)."""
    monkeypatch.setattr(state_module, "EVENTS_KEPT_S", -1.0)
    tuning = await world.tuned()
    last = (await world.watch(tuning.name))[-1].sequence
    assert await world.gateway._state.trim_events() == 1
    events = await world.watch(tuning.name)
    assert kinds(events) == ["snapshot", "ready"] and [event.sequence for event in events] == [last - 1, last]
    assert events[0].snapshot == tuning and await world.watch(tuning.name, after=last) == []
    assert kinds(await world.watch(tuning.name, after=2)) == ["snapshot", "ready"]


async def test_watch_of_a_running_tuning_after_pruning(world: World) -> None:
    """While it runs the snapshot is as of now, and what follows is live."""
    world.tuner.go_on.clear()
    tuning = await world.tune(updates=6)
    running = await world.until(tuning.name, Tuning.STATE_RUNNING)
    state = world.gateway._state  # there is no other way to have many events from a tuning that still runs
    for loss in range(KEPT_EVENTS + 5):
        await state.change(
            running.name,
            lambda tuning, loss=loss: setattr(tuning.progress, "loss", loss + 0.5),
            lambda tuning: TuningEvent(progress=tuning.progress),
        )
    call = world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name, after_sequence=1))
    first = await call.read()
    assert first.snapshot.state == Tuning.STATE_RUNNING and first.snapshot.progress.loss == KEPT_EVENTS + 4.5
    world.tuner.go_on.set()
    assert (await call.read()).sequence == first.sequence + 1
    call.cancel()


async def test_watch_after_an_event_that_never_was(world: World) -> None:
    """A number beyond the last event is refused rather than waited for."""
    tuning = await world.tuned()
    call = world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name, after_sequence=99))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "after_sequence")


async def test_cancel_stops_a_running_tuning(world: World) -> None:
    """The run is stopped at the tuner, its watcher told once, nothing is stored; a second cancel changes nothing."""
    world.tuner.go_on.clear()
    tuning = await world.tune()
    watching = asyncio.create_task(world.watch(tuning.name))
    await world.running(tuning.name)
    cancelled = await world.tunings.CancelTuning(CancelTuningRequest(name=tuning.name))
    assert cancelled.state == Tuning.STATE_CANCELLED and cancelled.HasField("end_time")
    assert await world.tunings.CancelTuning(CancelTuningRequest(name=tuning.name)) == cancelled
    events = await watching
    assert kinds(events)[-1] == "cancelled" and sum(kind in TERMINAL for kind in kinds(events)) == 1

    async def stopped() -> bool:
        return world.tuner.stopped == [tuning.name]

    await eventually(stopped)
    assert all(path.startswith("images/") for path in world.stored())
    world.tuner.go_on.set()
    assert (await world.tuned(seed=8)).state == Tuning.STATE_READY


async def test_cancel_of_a_queued_tuning_moves_the_others_up(world: World) -> None:
    """A tuning that waits is cancelled without a run; those behind it are told of their new place."""
    world.tuner.go_on.clear()
    first, second, third = [await world.tune(seed=seed) for seed in (1, 2, 3)]
    await world.until(first.name, Tuning.STATE_RUNNING)
    assert (await world.until(third.name, Tuning.STATE_QUEUED)).queue_position == 1
    call = world.tunings.WatchTuning(WatchTuningRequest(name=third.name))
    last = await call.read()
    assert last.sequence == 1
    async with asyncio.timeout(20):
        while last.queued.position != 1:
            last = await call.read()
    await world.tunings.CancelTuning(CancelTuningRequest(name=second.name))
    assert (await world.tunings.GetTuning(GetTuningRequest(name=third.name))).queue_position == 0
    async with asyncio.timeout(20):
        while last.queued.position != 0:
            last = await call.read()
    assert (last.WhichOneof("event"), last.sequence) == ("queued", 0)
    world.tuner.go_on.set()
    kept = await world.watch(third.name)
    assert kinds(kept)[:2] == ["queued", "started"] and [event.sequence for event in kept] == list(
        range(1, len(kept) + 1)
    )
    assert [request.name for request in world.tuner.requests] == [first.name, third.name]
    assert kinds(await world.watch(second.name))[-1] == "cancelled"


async def test_delete_leaves_nothing(world: World) -> None:
    """Weights, picture and name are gone, the sampler has forgotten them, and a later edit finds nothing."""
    tuning = await world.tuned()
    assert world.stored_weights()
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    assert world.stored() == [] and world.sampler.evicted == [tuning.weights.digest]
    for call in (
        world.tunings.GetTuning(GetTuningRequest(name=tuning.name)),
        world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name)),
        world.tunings.CancelTuning(CancelTuningRequest(name=tuning.name)),
        world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name)),
        world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog")),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name, allow_missing=True))


async def test_delete_keeps_the_picture_of_another_tuning(world: World) -> None:
    """A picture goes with the last tuning that was made from it."""
    one, two = await world.tuned(seed=1), await world.tuned(seed=2)
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=one.name))
    assert sum(path.startswith("images/") for path in world.stored()) == 2
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=two.name))
    assert world.stored() == []


async def test_delete_of_a_running_tuning_ends_its_watch(world: World) -> None:
    """Deleting stops the run; whoever watches is told `cancelled`, once."""
    world.tuner.go_on.clear()
    tuning = await world.tune()
    watching = asyncio.create_task(world.watch(tuning.name))
    await world.until(tuning.name, Tuning.STATE_RUNNING)
    await asyncio.sleep(0.05)
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    assert kinds(await watching)[-1] == "cancelled"
    assert world.stored() == []


async def test_delete_works_without_a_sampler(world: World) -> None:
    """A sampler that is down holds no picture in its engine; the deletion goes on without it."""
    tuning = await world.tuned()
    await world.sampler_server.stop()
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    assert world.stored() == []


@pytest.mark.parametrize("part", ["images", "edits", "tunings"])
async def test_a_deletion_that_failed_half_way_is_done_again(world: World, part: str) -> None:
    """While a part of the store cannot be written the call fails. Sent again later it leaves nothing, and the sampler
    has forgotten the weights without being asked for another reason."""
    tuning = await world.tuned()
    assert (await edit(world, tuning=tuning.name))[-1].HasField("done")
    request = DeleteTuningRequest(name=tuning.name)
    with read_only(world.folder / "store" / part):
        await refused(world.tunings.DeleteTuning(request), grpc.StatusCode.UNAVAILABLE, "STORE_DOWN")

        async def is_told() -> bool:
            return world.sampler.evicted == [tuning.weights.digest]

        await eventually(is_told)
    await world.tunings.DeleteTuning(request)
    assert world.stored() == []
    await refused(world.tunings.DeleteTuning(request), grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")


async def test_two_deletions_at_once_leave_no_picture(world: World) -> None:
    """Of two tunings of one picture that are deleted at the same moment, one takes it along."""
    for seed in range(1, 9, 2):
        pair = [await world.tuned(seed=seed), await world.tuned(seed=seed + 1)]
        await asyncio.gather(*(world.tunings.DeleteTuning(DeleteTuningRequest(name=one.name)) for one in pair))
        assert world.stored() == []


async def test_list_pages_through_one_tenant(world: World) -> None:
    """Pages are the newest first, complete, without repetition, of one tenant, and of one state if asked."""
    names = [(await world.tuned(seed=seed)).name for seed in range(5)]
    image = await world.upload(picture(), parent="tenants/acme")
    await world.tunings.CreateTuning(CreateTuningRequest(image=image.name))
    found, token = [], ""
    while True:
        page = await world.tunings.ListTunings(ListTuningsRequest(page_size=2, page_token=token))
        assert len(page.tunings) <= 2
        found += [tuning.name for tuning in page.tunings]
        if not (token := page.next_page_token):
            break
    assert found == names[::-1]
    queued = await world.tunings.ListTunings(ListTuningsRequest(state=Tuning.STATE_QUEUED))
    assert list(queued.tunings) == []
    all_of_them = await world.tunings.ListTunings(ListTuningsRequest(page_size=1000, state=Tuning.STATE_READY))
    assert len(all_of_them.tunings) == 5 and all_of_them.next_page_token == ""


async def test_page_token_of_another_list_is_refused(world: World) -> None:
    """A token continues the list it came from, and no other."""
    for seed in range(2):
        await world.tune(seed=seed)
    page = await world.tunings.ListTunings(ListTuningsRequest(page_size=1))
    for request in (
        ListTuningsRequest(page_token=page.next_page_token, parent="tenants/acme"),
        ListTuningsRequest(page_token=page.next_page_token, state=Tuning.STATE_READY),
        ListTuningsRequest(page_token="bm90IGpzb24="),
        ListTuningsRequest(page_token="é"),
    ):
        call = world.tunings.ListTunings(request)
        await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "page_token")


async def test_update_changes_labels_and_expiry(world: World) -> None:
    """Labels and expiry are replaced, the etag moves with them, and a stale etag changes nothing."""
    tuning = await world.tuned()
    later = Timestamp(seconds=int(time.time()) + 3600)
    wanted = Tuning(name=tuning.name, labels={"for": "shop"}, expire_time=later, etag=tuning.etag)
    updated = await world.tunings.UpdateTuning(UpdateTuningRequest(tuning=wanted))
    assert dict(updated.labels) == {"for": "shop"} and updated.expire_time == later and updated.etag != tuning.etag
    assert updated.state == Tuning.STATE_READY and updated.weights == tuning.weights
    wanted.labels["for"] = "nobody"
    call = world.tunings.UpdateTuning(UpdateTuningRequest(tuning=wanted))
    await refused(call, grpc.StatusCode.ABORTED, "ETAG_MISMATCH", "tuning.etag")
    assert dict((await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))).labels) == {"for": "shop"}


async def test_expired_tuning_has_no_weights_and_is_made_anew(world: World) -> None:
    """When its time has come the weights are discarded, edits are refused, and the same key tunes again."""
    tuning = await world.tuned()
    soon = Timestamp()
    soon.FromMicroseconds(int((time.time() + 1.0) * 1e6))
    wanted = Tuning(name=tuning.name, expire_time=soon)
    await world.tunings.UpdateTuning(UpdateTuningRequest(tuning=wanted))
    await asyncio.sleep(1.1)
    again = await world.tuned()
    assert again.name != tuning.name
    expired = await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))
    assert expired.state == Tuning.STATE_EXPIRED and not expired.HasField("weights")
    assert world.sampler.evicted == [tuning.weights.digest]
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
    await refused(call, grpc.StatusCode.NOT_FOUND, "TUNING_EXPIRED")
    assert kinds(await world.watch(tuning.name))[-1] == "ready"


async def test_nobody_waits_for_the_expired_tunings_of_others(world: World) -> None:
    """Tunings whose time has come are discarded by the sweep, not by the next caller, whoever that is; only one that
    the caller would find is discarded first."""
    others = [await world.tuned(seed=seed) for seed in range(1, 5)]
    own = await world.tuned(picture("red"))
    soon = Timestamp()
    soon.FromMicroseconds(int((time.time() + 1.0) * 1e6))
    for tuning in (*others, own):
        await world.tunings.UpdateTuning(UpdateTuningRequest(tuning=Tuning(name=tuning.name, expire_time=soon)))
    await asyncio.sleep(1.1)
    again = await world.tunings.CreateTuning(CreateTuningRequest(image=own.image))
    assert again.name != own.name

    async def state_of(name: str) -> Tuning.State:
        return (await world.tunings.GetTuning(GetTuningRequest(name=name))).state

    assert await state_of(own.name) == Tuning.STATE_EXPIRED
    assert [await state_of(tuning.name) for tuning in others] == [Tuning.STATE_READY] * 4
    assert world.gateway is not None
    await world.gateway._tuning_service._tunings.expire()
    assert [await state_of(tuning.name) for tuning in others] == [Tuning.STATE_EXPIRED] * 4


async def test_weights_that_could_not_be_discarded_are_discarded_later(world: World) -> None:
    """A store that fails when a tuning expires does not keep its weights for ever: the next look tries again."""
    tuning = await world.tuned()
    soon = Timestamp()
    soon.FromMicroseconds(int((time.time() + 1.0) * 1e6))
    await world.tunings.UpdateTuning(UpdateTuningRequest(tuning=Tuning(name=tuning.name, expire_time=soon)))
    await asyncio.sleep(1.1)

    with read_only(world.folder / "store" / tuning.weights.path):
        call = world.tunings.CreateTuning(CreateTuningRequest(image=tuning.image))
        await refused(call, grpc.StatusCode.UNAVAILABLE, "STORE_DOWN")
    assert (await world.tuned()).name != tuning.name
    assert not any(path.startswith(tuning.weights.path) for path in world.stored())


async def test_other_tenants_names_look_like_missing_ones(world: World) -> None:
    """Under a foreign parent a tuning and an image answer as if they did not exist."""
    tuning = await world.tuned()
    call = world.edits.Edit(EditRequest(parent="tenants/acme", tuning=tuning.name, prompt="a dog"))
    foreign = await refused(call, grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")
    missing = tuning.name[:-1] + ("0" if tuning.name[-1] != "0" else "1")
    call = world.edits.Edit(EditRequest(parent="tenants/acme", tuning=missing, prompt="a dog"))
    assert (await refused(call, grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")).message == foreign.message.replace(
        tuning.name, missing
    )
    for call in (
        world.edits.Edit(EditRequest(parent="tenants/acme", image=tuning.image, prompt="a dog")),
        world.tunings.CreateTuning(CreateTuningRequest(parent="tenants/acme", image=tuning.image)),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")


async def test_edit_of_a_tuning_that_is_not_ready(world: World) -> None:
    """A tuning that still runs serves no edit, and the error says in which state it is."""
    world.tuner.go_on.clear()
    tuning = await world.tune()
    await world.until(tuning.name, Tuning.STATE_RUNNING)
    call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
    error = await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "TUNING_NOT_READY")
    assert error.metadata["state"] == "STATE_RUNNING"
