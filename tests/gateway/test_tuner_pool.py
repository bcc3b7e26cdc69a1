"""Tunings given to tuners: what happens when one is away, crashes, reports twice or late, or does not keep its word."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
from sqlalchemy import update

from gateway import tuner_pool
from gateway.state_schema import tunings
from tests.configs import sampling_config, tuning_config
from tests.gateway.conftest import World, edit, eventually, picture, refused
from tests.gateway.test_state import tuning
from tests.gateway.upstream_servers import Tuner, serve_tuner
from unitune import serving
from unitune.errors import Internal, ResourceExhausted, Unavailable, UniTuneError, from_status
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuner_pb2 import AnnounceRequest, ReportTuningRequest, TakeTuningRequest
from unitune.v1.tuner_pb2_grpc import TunerPoolServiceStub
from unitune.v1.tuning_pb2 import CreateTuningRequest, GetTuningRequest, Tuning, WatchTuningRequest, WeightsRef
from unitune.weights import WEIGHTS_FILE


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


async def test_a_tuning_is_taken_as_soon_as_it_is_made(world: World) -> None:
    """A tuner that waits for work gets it when it comes, not at its next question."""
    assert world.gateway is not None and world.tuner_server is not None
    await world.tuner_server.stop()
    async with serving.channel(world.gateway.internal_address) as channel:
        request = TakeTuningRequest(tuner=world.tuner.process, base_model=world.tuner.base_model.digest)
        request.wait.FromSeconds(30)
        waiting = asyncio.ensure_future(TunerPoolServiceStub(channel).TakeTuning(request, timeout=60))
        tuning = await world.tune()
        assert (await asyncio.wait_for(waiting, 20)).assignment.name == tuning.name


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


async def test_a_gateway_that_stops_leaves_its_tuner_at_work(world: World) -> None:
    """The run goes on while no gateway is there, and is told to the next one; watchers resume (R5)."""
    world.tuner.go_on.clear()
    tuning = await world.tune()
    await world.running(tuning.name)
    call = world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name))
    seen = [await call.read() for _ in range(3)]
    await world.close()
    world.tuner.go_on.set()
    await asyncio.sleep(0.2)  # it ends while nobody is there to hear of it
    await world.open()
    rest = await world.watch(tuning.name, after=seen[-1].sequence)
    sequences = [event.sequence for event in [*seen, *rest]]
    assert sequences == list(range(1, len(sequences) + 1))
    assert rest[-1].ready.state == Tuning.STATE_READY
    assert await world.attempts(tuning.name) == [1] and world.tuner.stopped == []


async def test_done_may_be_reported_twice(world: World) -> None:
    """A tuner that lost the answer to `done` reports it again: it is noted, and the tuning has one last event (F19)."""
    world.tuner.repeats_done = 2
    tuning = await world.tuned()

    async def reported() -> bool:
        return len(world.tuner.orders) == 3

    await eventually(reported)
    assert world.tuner.orders == ["noted"] * 3
    assert [event.WhichOneof("event") for event in await world.watch(tuning.name)].count("ready") == 1
    assert world.stored_weights() == [
        f"{tuning.weights.path}/manifest.json",
        f"{tuning.weights.path}/weights.safetensors",
    ]


async def queued_for_another(world: World, *, lease_s: float) -> tuple[Tuner, Tuning]:
    """A gateway with such leases, without its tuner; another tuner, and a tuning for it to take."""
    await world.close()
    world.config = replace(world.config, lease_s=lease_s)
    await world.open()
    assert world.tuner_server is not None
    another = Tuner(world.tuner.store)
    await world.tuner_server.stop()
    return another, await world.tune()


async def test_a_lease_runs_out_and_the_late_tuner_is_told(world: World) -> None:
    """A tuning whose tuner reports nothing is given to another one. When the first reports after all, it is told that
    its lease is lost, nothing changes, and of its weights nothing is left."""
    late, tuning = await queued_for_another(world, lease_s=1.0)
    assert world.gateway is not None
    async with serving.channel(world.gateway.internal_address) as channel:
        pool = TunerPoolServiceStub(channel)
        request = TakeTuningRequest(tuner=late.process, base_model=late.base_model.digest)
        taken = (await pool.TakeTuning(request, timeout=5)).assignment
        assert (taken.name, taken.attempt) == (tuning.name, 1)
        await world.until(tuning.name, Tuning.STATE_QUEUED)
        world.tuner_server = await serve_tuner(world.tuner, world.gateway.internal_address)
        await world.until(tuning.name, Tuning.STATE_READY)
        events = await world.watch(tuning.name)
        assert not await late._updates(pool, taken)  # which is stopped by the answer to its first report
        assert await late._report(pool, taken, done=WeightsRef(path=taken.path, digest="0" * 64)) == "lease_lost"
    assert await world.watch(tuning.name) == events
    assert [event.started.attempt for event in events if event.HasField("started")] == [1, 2]
    ready = events[-1].ready
    assert world.stored_weights() == [f"{ready.weights.path}/{part}" for part in ("manifest.json", WEIGHTS_FILE)]


@pytest.mark.parametrize("by_s", [3600.0, -3600.0])
async def test_a_clock_that_is_set_takes_no_lease_and_lengthens_none(
    world: World, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    """The machine's clock is set an hour forward, as after it was asleep, or back. A tuner has the time of a lease to
    report, and one that is gone loses its tuning when that is over."""
    gone, tuning = await queued_for_another(world, lease_s=3.0)
    assert world.gateway is not None
    async with serving.channel(world.gateway.internal_address) as channel:
        request = TakeTuningRequest(tuner=gone.process, base_model=gone.base_model.digest)
        await TunerPoolServiceStub(channel).TakeTuning(request, timeout=5)
    world.gateway._pool._no_sweep_until_s = 0.0  # as if it had run for long
    # What was stored before is as much older, or newer.
    stored = update(tunings).values(lease_s=tunings.c.lease_s - by_s)
    clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + by_s)
    monkeypatch.setattr(tuner_pool, "time", clock)
    await world.gateway._state.database.run(lambda tx: tx.run(stored))
    if by_s > 0:
        await asyncio.sleep(1.5)  # three sweeps, for what must not happen
        found = await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))
        assert found.state == Tuning.STATE_RUNNING
    await world.until_not(tuning.name, Tuning.STATE_RUNNING)
    assert (await world.tunings.GetTuning(GetTuningRequest(name=tuning.name))).state == Tuning.STATE_QUEUED


async def test_weights_of_an_attempt_lie_under_its_own_path(world: World) -> None:
    """A tuner that announces weights under another path, such as another tenant's, makes its tuning fail (r17)."""
    world.tuner.go_on.clear()
    tuning = await world.tune()
    await world.running(tuning.name)
    (taken,) = world.tuner.requests
    assert world.gateway is not None
    async with serving.channel(world.gateway.internal_address) as channel:
        done = WeightsRef(key=taken.key, base_model=tuning.base_model, path="tunings/other/t-0001/1", digest="0" * 64)
        order = await world.tuner._report(TunerPoolServiceStub(channel), taken, done=done)
    assert order == "lease_lost"
    assert from_status((await world.watch(tuning.name))[-1].failed).reason == "WRONG_WEIGHTS"


async def test_a_wrong_report_is_refused_by_field(world: World) -> None:
    """Name, tuner, base model and what happened must be there."""
    assert world.gateway is not None
    process, name = world.tuner.process, "tenants/default/tunings/t-0000"
    async with serving.channel(world.gateway.internal_address) as channel:
        pool = TunerPoolServiceStub(channel)
        for call, field in (
            (pool.Announce(AnnounceRequest()), "info.base_model.digest"),
            (pool.TakeTuning(TakeTuningRequest(base_model="b")), "tuner.place"),
            (pool.TakeTuning(TakeTuningRequest(tuner=process)), "base_model"),
            (pool.ReportTuning(ReportTuningRequest(name="x", tuner=process)), "name"),
            (pool.ReportTuning(ReportTuningRequest(name=name)), "tuner.place"),
            (pool.ReportTuning(ReportTuningRequest(name=name, tuner=process)), "report"),
        ):
            await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)


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


async def test_what_begins_in_a_drain_waits_for_nothing(world: World) -> None:
    """An edit that was being checked when the drain began, and now would wait for its tuning or its turn, and a watch
    end at once with what says to ask elsewhere; an edit that need not wait is done."""
    assert world.gateway is not None
    world.tuner.go_on.clear()
    tuning = await world.tune()
    await world.running(tuning.name)
    await world.gateway.drain()
    watch = world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name), timeout=20)
    await refused(watch, grpc.StatusCode.UNAVAILABLE, "DRAINING")
    waits = await edit(world, image=tuning.image)
    assert from_status(waits[-1].failed).reason == "DRAINING"

    sdedit = sampling_config(method="sdedit", num_inference_steps=2)
    assert (await edit(world, image_data=picture(), config=sdedit))[-1].HasField("done")
    world.sampler.go_on.clear()
    calls = [world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=sdedit)) for _ in range(2)]

    async def is_full() -> bool:
        return len(world.sampler.requests) == 3

    await eventually(is_full)
    late = await edit(world, image_data=picture(), config=sdedit)
    assert from_status(late[-1].failed).reason == "DRAINING"
    world.sampler.go_on.set()
    for call in calls:
        assert [event async for event in call][-1].HasField("done")


async def test_ready_needs_a_manifest_that_agrees(world: World) -> None:
    """A tuner that announces other weights than it stored gets no READY, and what it stored is deleted."""
    world.tuner.spoil_manifest = True
    tuning = await world.tune()
    events = await world.watch(tuning.name)
    assert from_status(events[-1].failed).reason == "WEIGHTS_CORRUPT"
    assert all(path.startswith("images/") for path in world.stored())


async def test_base_model_that_changes_under_the_queue(world: World) -> None:
    """A tuning is never run on another base model than the one its key names; it waits for a tuner of that one, and
    fails once there was none for long while others were there."""
    await world.close()
    world.config = replace(world.config, lease_s=1.0, model_gone_s=1.0)
    await world.open()
    world.tuner.go_on.clear()
    first, second = await world.tune(seed=1), await world.tune(seed=2)
    await world.running(first.name)
    world.tuner.base_model = BaseModel(name="other", digest="e" * 64)
    world.tuner.go_on.set()
    for made, reason in ((first, "WRONG_WEIGHTS"), (second, "BASE_MODEL_MISMATCH")):
        assert from_status((await world.watch(made.name))[-1].failed).reason == reason
    assert [request.name for request in world.tuner.requests] == [first.name]
    assert all(path.startswith("images/") for path in world.stored())


async def test_tuners_of_two_base_models_take_their_own(world: World) -> None:
    """Both work for one gateway, and each runs the tunings of its own base model alone, in whatever order they were
    made (F24)."""
    state, other = world.gateway._state, Tuner(world.tuner.store)
    other.base_model = BaseModel(name="other", digest="e" * 64)
    image = await world.upload(picture())
    running = await serve_tuner(other, world.gateway.internal_address)
    names: dict[str, list[str]] = {}
    for number, tuner in enumerate((world.tuner, other, other, world.tuner, other)):
        made = tuning(key=f"k{number}", number=number)
        made.image, made.base_model = image.name, tuner.base_model.digest
        made.config.CopyFrom(tuning_config(updates=1))
        names.setdefault(made.base_model, []).append((await state.create(made, None)).name)
    for tuner in (world.tuner, other):
        for name in names[tuner.base_model.digest]:
            assert (await world.watch(name))[-1].HasField("ready")
        assert [request.name for request in tuner.requests] == names[tuner.base_model.digest]
    await running.stop()


async def test_a_tenant_does_not_take_all_tuners(world: World) -> None:
    """With one running tuning allowed, a tenant's second waits although a tuner is free, which works for another
    tenant; once the first has ended, the second runs (F5)."""
    await world.close()
    world.config = replace(world.config, tenant_running_tunings=1)
    await world.open()
    world.tuner.go_on.clear()
    first = await world.tune()
    await world.running(first.name)
    free = Tuner(world.tuner.store)
    running = await serve_tuner(free, world.gateway.internal_address)
    second = await world.tune(picture("red"))
    image = await world.upload(picture("blue"), parent="tenants/other")
    other = await world.tunings.CreateTuning(CreateTuningRequest(image=image.name, config=tuning_config()))
    assert (await world.watch(other.name))[-1].HasField("ready")
    assert [request.name for request in free.requests] == [other.name]
    assert (await world.tunings.GetTuning(GetTuningRequest(name=second.name))).state == Tuning.STATE_QUEUED
    world.tuner.go_on.set()
    for name in (first.name, second.name):
        assert (await world.watch(name))[-1].HasField("ready")
    await running.stop()


async def test_picture_that_is_gone_fails_its_tuning(world: World) -> None:
    """A picture deleted from the store under a queued tuning is its error, and the next one runs."""
    world.tuner.go_on.clear()
    first, second = await world.tune(seed=1), await world.tune(picture("red"), seed=2)
    await world.until(first.name, Tuning.STATE_RUNNING)
    (world.folder / "store" / second.image.replace("tenants/default/images", "images/default") / "file").unlink()
    world.tuner.go_on.set()
    assert from_status((await world.watch(second.name))[-1].failed).reason == "IMAGE_NOT_FOUND"
    assert (await world.tuned(seed=3)).state == Tuning.STATE_READY


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
