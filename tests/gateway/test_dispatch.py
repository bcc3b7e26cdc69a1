"""Running tunings: what happens when the tuner or the gateway is away, crashes, or does not keep its word."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from tests.gateway.conftest import World, eventually, picture, refused
from tests.gateway.upstream_servers import serve_tuner
from unitune.errors import Internal, ResourceExhausted, Unavailable, UniTuneError, from_status
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import CreateTuningRequest, GetTuningRequest, Tuning, WatchTuningRequest


async def test_tuner_that_is_away_leaves_the_queue(world: World) -> None:
    """While no tuner answers, tunings are accepted and wait; when it is back they run as if nothing had been."""
    await world.tuned(seed=1)
    address = world.tuner_server.address
    await world.tuner_server.stop()
    tuning = await world.tune(seed=2)
    await asyncio.sleep(0.3)
    assert (await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))).state == Tuning.STATE_QUEUED
    world.tuner_server = await serve_tuner(world.tuner, address)
    await world.until(tuning.name, Tuning.STATE_READY)
    assert await world.attempts(tuning.name) == [1]


async def test_create_needs_to_have_known_a_tuner_once(world: World) -> None:
    """A gateway that has never seen its tuner cannot fill in defaults: UNAVAILABLE, to be retried."""
    await world.close()
    await world.tuner_server.stop()
    world.config = replace(world.config, state=world.folder / "empty.sqlite")
    await world.open()
    image = await world.upload(picture())
    call = world.tunings.CreateTuning(CreateTuningRequest(image=image.name))
    error = await refused(call, grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
    assert error.retry_after_s is not None and error.metadata == {"upstream": "tuner"}


async def test_lost_run_is_tried_again(world: World) -> None:
    """A tuner that breaks off is asked again, under another path, and only whole weights remain."""
    world.tuner.crashes = 2
    tuning = await world.tuned()
    assert tuning.state == Tuning.STATE_READY and await world.attempts(tuning.name) == [1, 2, 3]
    assert len({request.path for request in world.tuner.requests}) == 3
    assert world.stored_weights() == [
        f"{tuning.weights.path}/manifest.json",
        f"{tuning.weights.path}/weights.safetensors",
    ]


async def test_run_that_is_always_lost_fails(world: World) -> None:
    """After three losses a tuning is FAILED, nothing of gRPC's text is in its error, and the next one runs."""
    world.tuner.crashes = 3
    poison, healthy = await world.tune(seed=1), await world.tune(seed=2)
    events = await world.watch(poison.name)
    error = from_status(events[-1].failed)
    assert error.reason == "WORKER_CRASHED" and "secret" not in str(events)
    assert await world.attempts(poison.name) == [1, 2, 3]
    await world.until(healthy.name, Tuning.STATE_READY)
    assert await world.attempts(healthy.name) == [1]


async def test_run_that_the_tuner_lets_go_does_not_count(world: World) -> None:
    """A tuner that is drained ends its run itself; the tuning is queued again, as often as that happens."""
    world.tuner.lets_go = 4
    tuning = await world.tuned()
    assert tuning.state == Tuning.STATE_READY and len(world.tuner.requests) == 5


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("the weight store does not take the weights", reason="STORE_DOWN"),
        ResourceExhausted("the weight store is full", reason="STORE_FULL", retry_after_s=1.0),
    ],
)
async def test_tuner_that_says_it_is_unavailable_is_asked_again(world: World, failure: UniTuneError) -> None:
    """A tuner whose store is down or full counts for nothing against the tuning, however long that lasts (R6)."""
    world.tuner.failure = failure
    tuning = await world.tune()

    async def asked_often() -> bool:
        return len(world.tuner.requests) > 4

    await eventually(asked_often)
    world.tuner.failure = None
    await world.until(tuning.name, Tuning.STATE_READY)


async def test_gateway_that_stops_puts_its_run_back(world: World) -> None:
    """A gateway that is stopped cancels its run at the tuner; the next one runs it again, and watchers resume."""
    world.tuner.go_on.clear()
    tuning = await world.tune()
    await world.until(tuning.name, Tuning.STATE_RUNNING)
    call = world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name))
    seen = [await call.read() for _ in range(3)]
    await world.close()

    async def stopped() -> bool:
        return world.tuner.stopped == [tuning.name]

    await eventually(stopped)
    world.tuner.go_on.set()
    await world.open()
    rest = await world.watch(tuning.name, after=seen[-1].sequence)
    sequences = [event.sequence for event in [*seen, *rest]]
    assert sequences == list(range(1, len(sequences) + 1))
    assert rest[-1].ready.state == Tuning.STATE_READY
    assert await world.attempts(tuning.name) == [1, 2]


async def test_drain_ends_watches_and_takes_no_more(world: World) -> None:
    """A gateway that drains tells watchers to come back, and leaves what is queued to the next."""
    world.tuner.go_on.clear()
    first, second = await world.tune(seed=1), await world.tune(seed=2)
    await world.until(first.name, Tuning.STATE_RUNNING)
    call = world.tunings.WatchTuning(WatchTuningRequest(name=second.name))
    assert (await call.read()).HasField("queued")
    await world.gateway.drain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    world.tuner.go_on.set()
    await world.until(first.name, Tuning.STATE_READY)
    await asyncio.sleep(0.1)
    assert (await world.tunings.GetTuning(GetTuningRequest(name=second.name))).state == Tuning.STATE_QUEUED


async def test_ready_needs_a_manifest_that_agrees(world: World) -> None:
    """A tuner that announces other weights than it stored gets no READY, and what it stored is deleted."""
    world.tuner.spoil_manifest = True
    tuning = await world.tune()
    events = await world.watch(tuning.name)
    assert from_status(events[-1].failed).reason == "WEIGHTS_CORRUPT"
    assert all(path.startswith("images/") for path in world.stored())


async def test_base_model_that_changes_under_the_queue(world: World) -> None:
    """A tuning is never run on another base model than the one its key names."""
    world.tuner.go_on.clear()
    first, second = await world.tune(seed=1), await world.tune(seed=2)
    await world.until(first.name, Tuning.STATE_RUNNING)
    world.tuner.base_model = BaseModel(name="other", digest="e" * 64)
    world.tuner.go_on.set()
    for tuning, reason in ((first, "WRONG_WEIGHTS"), (second, "BASE_MODEL_MISMATCH")):
        assert from_status((await world.watch(tuning.name))[-1].failed).reason == reason
    assert [request.name for request in world.tuner.requests] == [first.name]
    assert all(path.startswith("images/") for path in world.stored())


async def test_picture_that_is_gone_fails_its_tuning(world: World) -> None:
    """A picture deleted from the store under a queued tuning is its error, not the dispatcher's end."""
    world.tuner.go_on.clear()
    first, second = await world.tune(seed=1), await world.tune(picture("red"), seed=2)
    await world.until(first.name, Tuning.STATE_RUNNING)
    (world.folder / "store" / second.image.replace("tenants/default/images", "images/default") / "file").unlink()
    world.tuner.go_on.set()
    assert from_status((await world.watch(second.name))[-1].failed).reason == "IMAGE_NOT_FOUND"
    assert (await world.tuned(seed=3)).state == Tuning.STATE_READY


async def test_a_run_is_read_to_its_end(world: World) -> None:
    """The stream of a run that ended well is not cut after its last event: it would be logged as cancelled (r18)."""
    world.tuner.update_s = 0.1
    tuning = await world.tuned()

    async def has_ended() -> bool:
        return world.tuner.ended == [tuning.name]

    await eventually(has_ended)


async def test_weights_of_a_tuning_that_is_ready_are_loaded_ahead(world: World) -> None:
    """The sampler is asked once for each READY tuning, and never for one that failed."""
    world.tuner.failure = Internal("it diverged", reason="TUNING_DIVERGED")
    failed = await world.tune(seed=1)
    await world.until(failed.name, Tuning.STATE_FAILED)
    world.tuner.failure = None
    first, second = await world.tuned(seed=2), await world.tuned(seed=3)

    async def two_loaded() -> bool:
        return len(world.sampler.loaded) == 2

    await eventually(two_loaded)

    assert [first.weights.digest, second.weights.digest] == world.sampler.loaded


async def test_a_sampler_that_cannot_load_ahead_changes_nothing(world: World) -> None:
    """The tuning is READY and the next one runs, though the sampler is away."""
    await world.sampler_server.stop()

    for seed in (1, 2):
        assert (await world.tuned(seed=seed)).state == Tuning.STATE_READY
    await asyncio.sleep(0.8)

    assert (await world.tuned(seed=3)).state == Tuning.STATE_READY
