"""SamplerService over a real connection: the stream of a run, cancelling, damaged weights, what a replica tells."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from sampler_svc import service as service_module
from sampler_svc.engines.engine import BASE, WeightSet
from sampler_svc.model import Model
from sampler_svc.sampling.attempts import SEED_STRIDE
from sampler_svc.sampling.clip_filter import ClipFilter
from sampler_svc.service import SamplerService
from tests.configs import sampling_config
from tests.sampler_svc.pictures import mask, picture
from tests.sampler_svc.tunings import Tunings
from unitune import images, metrics, serving
from unitune.base_model import Preset
from unitune.choices import DEFAULT_RESAMPLES
from unitune.errors import DataLoss, from_rpc_error, from_status
from unitune.object_store import ObjectStore
from unitune.options import SAMPLING, Flat
from unitune.v1 import edit_pb2, sampler_pb2, sampler_pb2_grpc, tuning_pb2
from unitune.weights import WEIGHTS_FILE, TunedWeights

Event = sampler_pb2.SampleEvent
Heartbeat = edit_pb2.EditEvent.Heartbeat


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    """Where the weights lie."""
    return tmp_path / "store"


@pytest.fixture
def service(model: Model, store_folder: Path) -> SamplerService:
    """The servicer, with an engine that holds the base weights."""
    return SamplerService(model, ObjectStore(str(store_folder)))


@pytest.fixture
async def sampler(service: SamplerService) -> AsyncIterator[sampler_pb2_grpc.SamplerServiceStub]:
    """A client of a server on loopback."""
    server = await serving.start("127.0.0.1:0", service.register)
    async with serving.channel(server.address) as channel:
        yield sampler_pb2_grpc.SamplerServiceStub(channel)
    await server.stop()


@pytest.fixture
def stored(store_folder: Path, tunings: Tunings) -> Callable[[int], tuning_pb2.WeightsRef]:
    """Puts tuned weights into the store."""

    def put(seed: int, size: float = 0.3) -> tuning_pb2.WeightsRef:
        data, manifest = tunings.file(seed, size)
        path = f"tunings/default/t-{seed}-{round(1000 * size)}/1"
        ObjectStore(str(store_folder)).put_weights(path, data, manifest)
        return tuning_pb2.WeightsRef(key=manifest.key, digest=manifest.digest, path=path)

    return put


def request(weights: tuning_pb2.WeightsRef | None = None, **changes: object) -> sampler_pb2.SampleRequest:
    """A run of six steps."""
    config = {
        "method": "unitune",
        "scheduler": "ddim",
        "num_inference_steps": 8,
        "guidance_scale": 4.0,
        "strength": 0.75,
        "interpolation": 0.0,
        **{name: changes.pop(name) for name in list(changes) if name in SAMPLING},
    }
    fields = {
        "edit": "tenants/default/edits/1",
        "image": picture(),
        "rare_tokens": "beikkpic",
        "prompt": "a cat at the beach",
        "seeds": [5],
        **changes,
    }
    config = {name: value for name, value in config.items() if value is not None}
    return sampler_pb2.SampleRequest(weights=weights, config=sampling_config(**config), **fields)


async def events(sampler: sampler_pb2_grpc.SamplerServiceStub, asked: sampler_pb2.SampleRequest) -> list[Event]:
    """All events of a run."""
    return [event async for event in sampler.Sample(asked)]


def kinds(found: list[Event]) -> list[str]:
    """What the events are, runs of steps told once."""
    names = [event.WhichOneof("event") for event in found]
    return [name for index, name in enumerate(names) if name != "step" or names[index - 1 : index] != ["step"]]


def pngs(found: list[Event]) -> list[bytes]:
    """The pictures among the events."""
    return [event.image.png for event in found if event.WhichOneof("event") == "image"]


async def test_a_run_streams_its_events_in_order(sampler, stored) -> None:
    """Loading, steps with the last among them, an image for each seed, done; previews if asked."""
    found = await events(sampler, request(stored(1), seeds=[7, 8, -9], preview_every=1))

    assert kinds(found) == ["loading", "step", "image", "image", "image", "done"]
    steps = [event.step for event in found if event.WhichOneof("event") == "step"]
    assert (steps[-1].index, steps[-1].total) == (5, 6)
    assert images.decode(steps[-1].preview).shape == (48, 48, 3)
    assert [(event.image.index, event.image.seed) for event in found[-4:-1]] == [(0, 7), (1, 8), (2, -9)]
    assert len({images.decode(png).tobytes() for png in pngs(found)}) == 3


async def test_loading_tells_refit_and_proof(sampler, stored) -> None:
    """A first run refits and proves the weights, a second one is warm, and timings add up."""
    weights = stored(1)

    first, second = [await events(sampler, request(weights)) for _ in range(2)]

    cold, warm = first[0].loading, second[0].loading
    assert not cold.warm and cold.refit_s > 0 and 0 <= cold.probe_ratio < 1e-3
    assert warm.warm and warm.refit_s == 0 and warm.probe_ratio == cold.probe_ratio
    assert pngs(first) == pngs(second)
    timings = first[-1].done
    parts = (timings.queue_s, timings.refit_s, timings.encode_s, timings.denoise_s, timings.decode_s)
    assert min(parts) > 0 and sum(parts) <= timings.total_s < sum(parts) + 1
    assert timings.tune_s == 0


async def test_zero_updates_over_the_wire_are_sdedit(sampler, stored) -> None:
    """Untouched weights, no weights, and method sdedit with any weights give the same bytes (check E5)."""
    untouched = await events(sampler, request(stored(1, 0.0)))
    without = await events(sampler, request())
    sdedit = await events(sampler, request(stored(2), method="sdedit"))
    tuned = await events(sampler, request(stored(2)))

    assert pngs(untouched) == pngs(without) == pngs(sdedit) != pngs(tuned)


async def test_rare_tokens_go_before_the_prompt_once(sampler) -> None:
    """A prompt that has them already is the same prompt; without them it is another (check U4)."""
    plain = pngs(await events(sampler, request()))

    assert pngs(await events(sampler, request(prompt="beikkpic a cat at the beach"))) == plain
    assert pngs(await events(sampler, request(rare_tokens=""))) != plain


async def test_damaged_weights_fail_and_the_next_edit_works(sampler, stored, store_folder: Path) -> None:
    """A flipped byte in the store is DATA_LOSS inside `failed`; other weights go on as if nothing had been."""
    good, bad = stored(1), stored(2)
    before = pngs(await events(sampler, request(good)))
    path = store_folder / bad.path / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)

    failed = await events(sampler, request(bad))

    assert kinds(failed) == ["failed"]
    error = from_status(failed[0].failed)
    assert isinstance(error, DataLoss) and error.reason == "WEIGHTS_CORRUPT"
    assert pngs(await events(sampler, request(good))) == before


async def test_weights_that_do_not_prove_fail_and_the_next_edit_works(
    sampler, store_folder: Path, stored, tunings: Tunings, base: WeightSet
) -> None:
    """A whole file whose tensors are not those that its probe was made with never reaches a picture."""
    from unitune.weights import pack, unpack

    honest = unpack(*tunings.file(3))
    facts = {name: getattr(honest.manifest, name) for name in ("key", "base_model", "method", "rare_tokens", "updates")}
    data, manifest = pack(
        base.tensors, probe_tuned=honest.probe_tuned, probe_base=honest.probe_base, probe_seed=11, **facts
    )
    ObjectStore(str(store_folder)).put_weights("tunings/default/lying/1", data, manifest)

    failed = await events(
        sampler, request(tuning_pb2.WeightsRef(digest=manifest.digest, path="tunings/default/lying/1"))
    )

    assert kinds(failed) == ["failed"]
    assert "probe" in from_status(failed[0].failed).message
    assert kinds(await events(sampler, request(stored(1))))[-1] == "done"


async def test_missing_weights_are_told(sampler) -> None:
    """Weights that are gone are DATA_LOSS (WEIGHTS_MISSING)."""
    found = await events(sampler, request(tuning_pb2.WeightsRef(digest="00", path="tunings/default/nowhere/1")))

    assert from_status(found[-1].failed).reason == "WEIGHTS_MISSING"


@pytest.mark.parametrize("path", ["", "images/alice", "tunings/../x", "/tunings/a/t-001/1", "tunings/a/t-001\x00/1"])
async def test_weights_are_read_from_their_own_paths_alone(
    sampler: sampler_pb2_grpc.SamplerServiceStub, path: str
) -> None:
    """A path of another form is refused by name, by an edit and by loading ahead (r17)."""
    weights = tuning_pb2.WeightsRef(digest="00", path=path)
    for call in (sampler.Sample(request(weights)), sampler.Load(sampler_pb2.LoadRequest(weights=weights))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(call)) if hasattr(call, "__aiter__") else await call
        error = from_rpc_error(caught.value)
        assert (error.reason, error.field) == ("INVALID_FIELD", "weights.path")


async def test_a_picture_that_cannot_be_decoded_is_told(sampler) -> None:
    """The error inside `failed` names the field."""
    found = await events(sampler, request(image=b"no picture"))

    error = from_status(found[-1].failed)
    assert (error.reason, error.field) == ("IMAGE_UNDECODABLE", "image")


async def test_a_mask_keeps_pixels_and_comes_back(sampler) -> None:
    """A mask alone is a given one: kept pixels are the picture's, and the result's mask is the one that was sent."""
    found = await events(sampler, request(mask=mask(box=(0, 0, 48, 24)), interpolation=1.0))

    (result,) = (event.image for event in found if event.WhichOneof("event") == "image")
    edited, base_image = images.decode(result.png), images.decode(picture())
    np.testing.assert_array_equal(edited[:, 24:], base_image[:, 24:])
    assert (edited[:, :24] != base_image[:, :24]).any()
    assert images.decode_mask(result.mask, (48, 48))[:, :24].min() == 1


async def test_a_mask_that_does_not_fit_is_told(sampler) -> None:
    """The error inside `failed` names field, value and remedy."""
    found = await events(sampler, request(mask=mask(20, 30)))

    error = from_status(found[-1].failed)
    assert (error.reason, error.field, error.metadata["value"]) == ("INVALID_FIELD", "mask", "30x20 pixels")
    assert "48x48" in error.metadata["remedy"]


async def test_options_reach_the_sampling(sampler, stored) -> None:
    """Each of them makes another picture than the plain edit; none is a matter of chance."""
    weights = stored(1)
    plain = pngs(await events(sampler, request(weights)))

    for change in (
        {"negative_prompt": "snow"},
        {"prompt_guidance_scale": 3.0, "base_prompt": "snow"},
        {"unconditional_model": "base"},
        {"base_mixture": 0.5},
        {"guidance_sigma_low": 1.0},
        {"guidance_sigma_high": 1.0},
        {"repeats": 2},
        {"mask_source": "diffedit", "interpolation": 1.0},
        {"mask": mask(box=(0, 0, 24, 24)), "mask_keeps": True},
        {"mask": mask(box=(0, 0, 24, 24)), "mask_blur": 4.0},
        {"mask": mask(box=(0, 0, 24, 24)), "only_masked": True, "mask_padding": 2},
    ):
        once = pngs(await events(sampler, request(weights, **change)))
        assert once != plain, change
        assert once == pngs(await events(sampler, request(weights, **change))), change


async def test_the_base_prompt_of_a_tuned_model_has_the_rare_tokens(sampler, stored) -> None:
    """Prompt guidance from the edit's own prompt changes nothing, as both have them (check U9)."""
    weights = stored(1)
    same = {"prompt_guidance_scale": 3.0, "base_prompt": "a cat at the beach"}

    (plain,) = pngs(await events(sampler, request(weights)))
    (guided,) = pngs(await events(sampler, request(weights, **same)))

    assert np.abs(images.decode(guided).astype(int) - images.decode(plain)).max() <= 1


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("config.method", {"method": 99}),
        ("config.scheduler", {"scheduler": 99}),
        ("config.num_inference_steps", {"num_inference_steps": 0}),
        ("config.num_inference_steps", {"num_inference_steps": 1001}),
        ("config.num_inference_steps", {"num_inference_steps": None}),
        ("config.guidance_scale", {"guidance_scale": -0.1}),
        ("config.guidance_scale", {"guidance_scale": float("nan")}),
        ("config.strength", {"strength": 1.01}),
        ("config.strength", {"strength": float("nan")}),
        ("config.interpolation", {"interpolation": None}),
        ("config.interpolation", {"interpolation": 1.01}),
        ("config.prompt_guidance_scale", {"prompt_guidance_scale": 65.0}),
        ("config.unconditional_model", {"unconditional_model": 99}),
        ("config.base_mixture", {"base_mixture": float("nan")}),
        ("config.mask.source", {"mask_source": 99}),
        ("config.mask.blur", {"mask_blur": -1.0}),
        ("config.mask.padding", {"mask_padding": 1025}),
        ("config.repeats", {"repeats": 0}),
        ("config.guidance_interval.low", {"guidance_sigma_low": -0.5}),
        ("config.guidance_interval.high", {"guidance_sigma_high": float("nan")}),
        ("config.guidance_interval.high", {"guidance_sigma_low": 2.0, "guidance_sigma_high": 2.0}),
        ("mask", {"mask_source": "given"}),
        ("seeds", {"seeds": []}),
        ("seeds", {"seeds": list(range(9))}),
        ("preview_every", {"preview_every": -1}),
    ],
)
async def test_a_wrong_request_is_refused_naming_field_and_remedy(sampler, field: str, change: dict) -> None:
    """It is a status with details, before any event."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await events(sampler, request(**change))

    error = from_rpc_error(failure.value)
    assert (error.reason, error.field) == ("INVALID_FIELD", field)
    assert error.metadata["remedy"]


async def test_closing_the_stream_stops_the_run_at_its_next_step(
    sampler, service: SamplerService, model: Model
) -> None:
    """After a cancel no more than the step that was running is done, and the engine is free for the next edit."""
    passes, goes_on = [], threading.Event()
    with model.pool.lease("base", lambda: model.base) as lease:
        engine = lease.engine
    run = engine.run

    def slow_run(*arrays: np.ndarray) -> np.ndarray:
        passes.append(1)
        if len(passes) == 3:
            assert goes_on.wait(60)
        return run(*arrays)

    engine.run = slow_run
    call = sampler.Sample(request(num_inference_steps=800, strength=1.0))
    async for event in call:
        if event.WhichOneof("event") == "step":
            break
    async with asyncio.timeout(30):
        while len(passes) < 3:
            await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.sleep(1)  # time for the news to reach the server, on a slow machine too
    goes_on.set()
    await asyncio.sleep(0.2)
    stopped_after = len(passes)
    engine.run = run

    assert stopped_after == 3
    assert kinds(await events(sampler, request()))[-1] == "done"
    assert len(passes) == 3


async def test_a_slow_run_tells_the_stage_it_is_in(
    sampler, stored, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats name the stage and its seconds; from the second run on also what is left, as the last run took it."""
    monkeypatch.setattr(service_module, "HEARTBEAT_S", 0.02)
    with model.pool.lease("base", lambda: model.base) as lease:
        engine, run = lease.engine, lease.engine.run

    def slow_run(*arrays: np.ndarray) -> np.ndarray:
        time.sleep(0.3)
        return run(*arrays)

    monkeypatch.setattr(engine, "run", slow_run)
    first, second = [[event.heartbeat async for event in sampler.Sample(request()) if event.HasField("heartbeat")]
                     for _ in range(2)]  # fmt: skip

    sampling = [beat for beat in first if beat.stage == Heartbeat.STAGE_SAMPLING]
    assert sampling and not any(beat.HasField("stage_left_s") for beat in sampling)
    assert sorted(beat.stage_s for beat in sampling) == [beat.stage_s for beat in sampling]
    again = [beat for beat in second if beat.stage == Heartbeat.STAGE_SAMPLING]
    took_s = {round(beat.stage_s + beat.stage_left_s, 6) for beat in again if beat.stage_left_s}
    assert 1 == len(took_s) and sampling[-1].stage_s <= took_s.pop()


async def test_a_run_that_waits_for_an_engine_says_so(sampler, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind another run its stage is the waiting."""
    monkeypatch.setattr(service_module, "HEARTBEAT_S", 0.02)
    go_on = threading.Event()
    with model.pool.lease("base", lambda: model.base) as lease:
        engine, run = lease.engine, lease.engine.run
    monkeypatch.setattr(engine, "run", lambda *arrays: go_on.wait(60) and run(*arrays))
    first = sampler.Sample(request())
    async for event in first:
        if event.heartbeat.stage == Heartbeat.STAGE_PREPARING:
            break

    second = sampler.Sample(request(seeds=[6]))
    beat = (await anext(aiter(second))).heartbeat

    go_on.set()
    assert Heartbeat.STAGE_WAITING == beat.stage and not beat.HasField("stage_left_s")
    assert ["done", "done"] == [kinds([event async for event in call])[-1] for call in (first, second)]


async def test_a_run_that_waits_is_withdrawn_when_its_client_goes(
    sampler, service: SamplerService, model: Model
) -> None:
    """A cancelled call never reaches the engine, and is not counted as waiting any more."""
    with model.pool.lease("base", lambda: model.base) as lease:
        engine, run, goes_on, passes = lease.engine, lease.engine.run, threading.Event(), []

    def blocked(*arrays: np.ndarray) -> np.ndarray:
        passes.append(1)
        assert goes_on.wait(60)
        return run(*arrays)

    engine.run = blocked
    first = asyncio.create_task(events(sampler, request()))
    async with asyncio.timeout(30):
        while not passes:
            await asyncio.sleep(0.01)
    second = sampler.Sample(request(seeds=[6]))
    watch = sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())

    async def until(waiting: int) -> None:
        async for state in watch:
            if state.waiting == waiting:
                return

    await asyncio.wait_for(until(1), 30)
    second.cancel()
    await asyncio.wait_for(until(0), 30)
    watch.cancel()
    goes_on.set()

    assert kinds(await first)[-1] == "done"
    assert len(passes) == 6


async def test_many_edits_of_several_tunings_at_once_all_end_right(sampler, stored) -> None:
    """Calls wait for the one engine in turn; each gets the pictures of its own weights."""
    asked = [request(stored(seed), seeds=[seed]) for seed in (1, 2, 3)] * 2

    alone = [pngs(await events(sampler, one)) for one in asked[:3]]
    together = await asyncio.gather(*(events(sampler, one) for one in asked))

    assert [pngs(found) for found in together] == alone * 2


async def test_load_makes_the_next_edit_warm_and_evict_cold(sampler, stored) -> None:
    """Loading in advance saves the refit; evicted weights are refitted again."""
    weights = stored(1)

    loaded = await sampler.Load(sampler_pb2.LoadRequest(weights=weights))
    warm = (await events(sampler, request(weights)))[0].loading
    await sampler.Evict(sampler_pb2.EvictRequest(digest=weights.digest))
    cold = (await events(sampler, request(weights)))[0].loading

    assert not loaded.loading.warm and loaded.loading.refit_s > 0
    assert warm.warm and not cold.warm


async def test_loading_ahead_is_never_in_the_way_of_an_edit(sampler, stored) -> None:
    """While an edit runs, Load answers at once that it loaded nothing, and the engine keeps the edit's weights."""
    mine, other = stored(1), stored(2)
    stream = sampler.Sample(request(mine, num_inference_steps=200))
    told = aiter(stream)
    assert (await anext(told)).HasField("loading")

    busy = await sampler.Load(sampler_pb2.LoadRequest(weights=other))
    stream.cancel()

    assert not busy.HasField("loading")
    assert (await events(sampler, request(mine)))[0].loading.warm


async def test_loading_what_was_used_takes_no_other_edits_engine(sampler, stored) -> None:
    """The weights of an edit that came before its Load are in memory, and the engine stays with the edit after it."""
    mine, other = stored(1), stored(2)
    await events(sampler, request(mine))
    await events(sampler, request(other))

    late = await sampler.Load(sampler_pb2.LoadRequest(weights=mine))

    assert not late.HasField("loading")
    assert (await events(sampler, request(other)))[0].loading.warm


async def test_loading_what_is_not_there_fails(sampler) -> None:
    """As a status, since there is no stream."""
    for weights, reason in (
        (tuning_pb2.WeightsRef(digest="00", path="tunings/default/nowhere/1"), "WEIGHTS_MISSING"),
        (tuning_pb2.WeightsRef(), "INVALID_FIELD"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await sampler.Load(sampler_pb2.LoadRequest(weights=weights))
        assert from_rpc_error(failure.value).reason == reason


async def test_a_replica_tells_what_it_holds(sampler, stored) -> None:
    """At once, on every change, and once a second without one."""
    weights = stored(1)
    watch = sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())
    states = aiter(watch)

    first = await anext(states)
    await sampler.Load(sampler_pb2.LoadRequest(weights=weights))
    loaded = await asyncio.wait_for(_first(states, lambda state: state.resident), 30)
    await asyncio.wait_for(_count(states, 2), 30)
    watch.cancel()

    assert (list(first.resident), first.engines, first.waiting, first.draining) == ([], 1, 0, False)
    assert list(loaded.resident) == [weights.digest]


async def _first(states, is_right) -> sampler_pb2.ReplicaState:
    async for state in states:
        if is_right(state):
            return state
    raise AssertionError("the stream ended")


async def _count(states, count: int) -> None:
    for _ in range(count):
        await anext(states)


async def test_a_replica_tells_what_routing_needs(sampler, service: SamplerService, stored) -> None:
    """Its process, the weights that are coming, how long an edit and a refit took, and at the begin of a watch all that
    it holds; and it says so at most ten times a second."""
    weights = stored(1)
    watch = sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())
    states = aiter(watch)
    first = await anext(states)
    assert first.epoch and (first.running, first.edit_s, first.refit_s, len(first.held)) == (0, 0, 0, 0)

    running = asyncio.create_task(events(sampler, request(weights, num_inference_steps=600)))
    coming = await asyncio.wait_for(_first(states, lambda state: state.running), 30)
    assert list(coming.loading) in ([weights.digest], []) and coming.epoch == first.epoch
    assert kinds(await running)[-1] == "done"
    done = await asyncio.wait_for(_first(states, lambda state: state.edit_s and not state.running), 30)
    assert list(done.resident) == [weights.digest] and not done.loading and done.refit_s > 0 == done.kept_refit_s
    assert not done.held
    watch.cancel()

    async def change() -> None:
        while True:
            service._notify_watchers()
            await asyncio.sleep(0.001)

    changing, again = asyncio.create_task(change()), sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())
    assert [(held.digest, held.path) for held in (await again.read()).held] == [(weights.digest, weights.path)]
    began_s = time.monotonic()
    for _ in range(7):
        await again.read()
    assert time.monotonic() > began_s + 0.5
    again.cancel()
    changing.cancel()


async def test_pickers_of_endpoints_find_their_metrics(sampler, stored) -> None:
    """Who waits and runs, the share of engines with weights, and which these are by their digests (docs/routing.md)."""
    one, two = stored(1), stored(2)

    def adapters() -> dict[str, str]:
        (sample,) = [sample for family in metrics.ADAPTERS.collect() for sample in family.samples]
        assert abs(sample.value - time.time()) < 60
        return sample.labels

    await events(sampler, request(one))
    assert adapters() == {"max_lora": "1", "running_lora_adapters": one.digest, "waiting_lora_adapters": ""}
    assert metrics.ENGINE_USAGE.collect()[0].samples[0].value == 1
    first = sampler.Sample(request(one, num_inference_steps=400))
    assert (await first.read()).HasField("loading")
    second = sampler.Sample(request(two))
    await _eventually(lambda: adapters()["waiting_lora_adapters"] == two.digest)
    assert metrics.RUNS.labels("running")._value.get() == metrics.RUNS.labels("waiting")._value.get() == 1
    first.cancel()
    assert [event async for event in second][-1].HasField("done")
    await _eventually(lambda: metrics.RUNS.labels("running")._value.get() == 0)
    assert adapters() == {"max_lora": "1", "running_lora_adapters": two.digest, "waiting_lora_adapters": ""}


async def _eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_weights_that_a_run_reads_while_they_are_evicted_are_forgotten(
    sampler, service: SamplerService, stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that just reads them ends well, and nothing of them is left after it."""
    weights, reads, goes_on = stored(1), threading.Event(), threading.Event()
    read = service._weights.read

    def slow(path: str, digest: str) -> TunedWeights:
        tuned = read(path, digest)
        reads.set()
        goes_on.wait(30)
        return tuned

    monkeypatch.setattr(service._weights, "read", slow)
    running = asyncio.create_task(events(sampler, request(weights)))
    await asyncio.to_thread(reads.wait, 30)
    await sampler.Evict(sampler_pb2.EvictRequest(digest=weights.digest))
    goes_on.set()
    assert kinds(await running)[-1] == "done"
    await _eventually(lambda: not service._held())


async def test_a_draining_replica_says_so_and_takes_no_more(sampler, service: SamplerService) -> None:
    """Watchers hear it and their streams end; new runs are UNAVAILABLE, to be retried elsewhere."""
    watch = sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())
    states = aiter(watch)
    await anext(states)

    await service.drain()

    assert [state.draining async for state in states][-1]
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await events(sampler, request())
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_info_tells_base_model_and_defaults(sampler, model: Model) -> None:
    """What the gateway fills in and shows."""
    info = await sampler.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())

    assert (info.base_model.digest, info.base_model.width, info.base_model.height) == (model.spec.digest, 48, 48)
    assert Flat(info.sampling_defaults).method == "unitune"
    assert info.sampling_defaults.strength == model.spec.preset.strength
    assert info.engine.startswith("onnxruntime ")


async def test_info_tells_the_presets_own_values_for_prompt_to_prompt(model: Model, store_folder: Path) -> None:
    """What its section holds is a default, and published values are the rest; other methods have no such option."""
    own = {"prompt_to_prompt": {"cross_replace": 0.8, "guidance_scale": 5.0}}
    preset = replace(model.spec.preset, methods=own)
    service = SamplerService(replace(model, spec=replace(model.spec, preset=preset)), ObjectStore(str(store_folder)))

    info = await service.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest(), None)

    defaults = {Flat(one).method: Flat(one) for one in info.method_defaults}
    beside = defaults["prompt_to_prompt"]
    assert (0.8, 0.6, 5.0) == (beside.cross_replace, beside.self_replace, beside.guidance_scale)
    assert ("direct", "ddim", 1.0) == (beside.inversion, beside.scheduler, beside.strength)
    assert not defaults["sdedit"].has("cross_replace")


async def test_a_mistake_of_ours_is_internal_and_tells_nothing(
    sampler, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected exception ends the stream with INTERNAL and no detail of it."""
    monkeypatch.setattr(model.graphs, "encode", lambda image: 1 / 0)

    found = await events(sampler, request())

    error = from_status(found[-1].failed)
    assert error.reason == "INTERNAL" and "division" not in error.message
    monkeypatch.undo()
    assert kinds(await events(sampler, request()))[-1] == "done"


@pytest.fixture
async def filtered(model, store_folder, clip_folder) -> AsyncIterator[sampler_pb2_grpc.SamplerServiceStub]:
    """A client of a sampler whose base model brings a CLIP; its thresholds let no picture pass."""
    nothing_passes = replace(model.spec.preset, clip_filter_gain=3.0)
    clip_filter = ClipFilter(clip_folder[1], nothing_passes, lambda picture: 0.0, threads=1)
    service = SamplerService(replace(model, clip_filter=clip_filter), ObjectStore(str(store_folder)))
    server = await serving.start("127.0.0.1:0", service.register)
    async with serving.channel(server.address) as channel:
        yield sampler_pb2_grpc.SamplerServiceStub(channel)
    await server.stop()


async def test_automatic_returns_the_point_that_it_chose(filtered) -> None:
    """Strength and guidance need not be set; every point is tried, and the answer tells which one it is from."""
    asked = request(automatic=True)
    asked.config.ClearField("strength")
    asked.config.ClearField("guidance_scale")

    found = await events(filtered, asked)
    (image,) = (event.image for event in found if event.WhichOneof("event") == "image")

    points = Preset().automatic_points
    assert (image.strength, image.guidance_scale) in points
    assert image.HasField("scores") and not image.scores.passed
    steps = [event.step for event in found if event.WhichOneof("event") == "step"]
    ends = [step for step in steps if step.index + 1 == step.total]
    assert [(step.attempt, step.attempts) for step in ends] == [
        (number + 1, len(points)) for number in range(len(points))
    ]
    assert [step.total for step in ends] == [int(8 * strength) for strength, _ in points]
    (point,) = (point for point in points if point == (image.strength, image.guidance_scale))
    alone = await events(filtered, request(strength=point[0], guidance_scale=point[1]))
    assert pngs(alone) == [image.png]


@pytest.mark.parametrize("option", ["automatic", "clip_filter"])
async def test_all_attempts_have_the_encoded_picture_in_common(
    filtered, model: Model, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """It is encoded once, however many points or seeds are tried."""
    encoded, encode = [], model.graphs.encode
    monkeypatch.setattr(model.graphs, "encode", lambda image: encoded.append(image) or encode(image))

    found = await events(filtered, request(**{option: True}))

    assert kinds(found)[-1] == "done" and len(encoded) == 1


@pytest.mark.parametrize("option", ["automatic", "clip_filter"])
@pytest.mark.parametrize("source", [{"mask_source": "diffedit"}, {"mask_source": "word", "mask_text": "the cat"}])
async def test_all_attempts_have_a_mask_known_before_in_common(
    filtered, model: Model, monkeypatch: pytest.MonkeyPatch, option: str, source: dict[str, str]
) -> None:
    """It is estimated once, by as many passes as for one edit alone, and is the mask of that."""
    passes: list[int] = []
    with model.pool.lease(BASE, lambda: model.base) as lease:
        engine, run = lease.engine, lease.engine.run
    monkeypatch.setattr(engine, "run", lambda latents, *rest: passes.append(len(latents)) or run(latents, *rest))

    async def estimated(steps: int, **changes: object) -> tuple[int, sampler_pb2.SampleEvent]:
        """How many passes beside its steps an edit makes, and its result."""
        passes.clear()
        found = await events(filtered, request(**source, **changes))
        assert kinds(found)[-2:] == ["image", "done"]
        return len(passes) - steps, found[-2].image

    strengths = [strength for strength, _ in Preset().automatic_points]
    strengths = strengths if option == "automatic" else [0.75] * (1 + DEFAULT_RESAMPLES)
    others, image = await estimated(sum(int(8 * strength) for strength in strengths), **{option: True})
    chosen = {"strength": image.strength, "guidance_scale": image.guidance_scale} if option == "automatic" else {}
    steps_alone = int(8 * (image.strength if option == "automatic" else 0.75))
    others_alone, alone = await estimated(steps_alone, seeds=[image.seed], **chosen)

    assert others == others_alone > 0
    assert (image.mask, image.png) == (alone.mask, alone.png)


async def test_the_gate_resamples_within_bounds_and_scores_the_answer(filtered) -> None:
    """The answer has scores and the seed that it came from, which gives the same picture alone."""
    found = await events(filtered, request(clip_filter=True, resamples=2))
    (image,) = (event.image for event in found if event.WhichOneof("event") == "image")

    assert kinds(found) == ["loading", "step", "image", "done"]
    assert image.HasField("scores") and image.strength == 0
    assert image.seed in [5 + attempt * SEED_STRIDE for attempt in range(3)]
    assert pngs(await events(filtered, request(seeds=[image.seed]))) == [image.png]


async def test_a_run_that_tries_again_can_be_cancelled_between_attempts(filtered) -> None:
    """Closing the stream during a later attempt stops the work, and the engine is free for the next run."""
    call = filtered.Sample(request(clip_filter=True, resamples=8, num_inference_steps=40))
    async for event in call:
        if event.WhichOneof("event") == "step" and event.step.attempt > 1:
            break
    call.cancel()

    assert kinds(await events(filtered, request()))[-1] == "done"


async def test_a_clip_filter_is_refused_where_there_is_none(sampler) -> None:
    """The field is named."""
    for option in ("automatic", "clip_filter"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await events(sampler, request(**{option: True}))
        assert from_rpc_error(caught.value).metadata["field"] == f"config.{option}"
