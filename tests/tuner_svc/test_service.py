"""TunerService over real gRPC on loopback, with a real store: how a run goes, ends, fails and stops."""

import asyncio
import copy
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.configs import tuning_config
from tests.full_disk import fill, mounted
from tests.gateway.conftest import sha256
from tests.tuner_svc.scripted_pool import TERMINAL, Pool, Run, serve_pool
from tuner_svc import service as module
from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import Checkpoints
from tuner_svc.gateways import Gateways
from tuner_svc.service import TunerService
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.codecs import decode
from unitune.errors import Internal, InvalidArgument, ResourceExhausted, Unavailable, from_status
from unitune.images import ModelImage
from unitune.object_store import ObjectStore
from unitune.options import Flat
from unitune.v1.tuner_pb2 import Assignment, Checkpoint, ReportTuningRequest, StoredImage, TunerInfo
from unitune.v1.tuning_pb2 import TuningProgress
from unitune.weights import WEIGHTS_FILE, Manifest

NAME, PATH = "tenants/t/tunings/t-001", "tunings/t/t-001/1"
SHORT = {"method": "unitune", "mode": "attn_out", "updates": 2, "batch": 1, "learning_rate": 1e-3, "rare_tokens": "r"}
ENDLESS = {**SHORT, "mode": "full", "updates": 5000}


class Tuner:
    """A tuner at work for a scripted gateway."""

    def __init__(self, servicer: TunerService, pool: Pool, store: ObjectStore, picture: bytes) -> None:
        self.servicer, self.pool, self.store, self.picture = servicer, pool, store, picture

    def run(self, config: dict[str, Any], image: bytes | None = None, **fields: Any) -> Run:
        """Assign a run."""
        data = self.picture if image is None else image
        stored = StoredImage(name="i", path=f"images/t/{sha256(data)}/file", sha256=sha256(data))
        if not self.store.has(stored.path):
            self.store.put(stored.path, data)
        values = {"name": NAME, "attempt": 1, "key": "key", "images": [stored], "path": PATH, **fields}
        return self.pool.assign(Assignment(config=tuning_config(**config), **values))

    def weights(self) -> list[str]:
        """The objects of the store that belong to tunings."""
        return self.store.list("tunings")

    async def is_idle(self) -> None:
        """Return once no run is left."""
        async with asyncio.timeout(30):
            while self.servicer._run is not None:
                await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """An empty store in a folder."""
    return ObjectStore(str(tmp_path / "store"))


@pytest.fixture
async def start(store: ObjectStore, picture: bytes, model: BaseModel) -> AsyncIterator[Callable[..., Any]]:
    """Starts tuners, with another model or store if asked, each with a gateway of its own, and stops them."""
    stops: list[Callable[[], Any]] = []

    async def start(
        model: BaseModel = model, store: ObjectStore = store, lease_s: float = 6.0, checkpoint_s: float = 0.0
    ) -> Tuner:
        pool = Pool(lease_s)
        server = await serve_pool(pool)
        servicer = TunerService(model, store, Gateways([server.address]), checkpoint_s=checkpoint_s)
        servicer.begin("here")
        stops.extend((servicer.close, server.stop))
        return Tuner(servicer, pool, store, picture)

    yield start
    for stop in stops:
        await stop()


async def events(run: Run) -> list[ReportTuningRequest]:
    """All reports of a run, which ends with exactly one terminal one."""
    async with asyncio.timeout(60):
        found = [report async for report in run]
    kinds = [report.WhichOneof("report") for report in found]
    assert [kinds[-1]] == [kind for kind in kinds if kind in TERMINAL]
    return found


async def next_of(run: Run, kind: str) -> ReportTuningRequest:
    """The next report of a kind."""
    async with asyncio.timeout(60):
        async for report in run:
            if kind == report.WhichOneof("report"):
                return report
    raise AssertionError(f"the run ended without {kind}")


@pytest.mark.parametrize("path", ["images/alice", "tunings/../x", "/tunings/a/t-001/1", "tunings/a/t-001\x00/1"])
async def test_weights_go_to_their_own_paths_alone(start: Callable[..., Any], path: str) -> None:
    """A path of another form is refused by name before anything is computed, and nothing is written (r17)."""
    tuner = await start()
    found = await events(tuner.run(SHORT, path=path))
    error = from_status(found[-1].failed)
    assert (error.reason, error.field) == ("INVALID_FIELD", "path") and len(found) == 1
    assert [one for one in tuner.store.list("") if not one.startswith("images/t/")] == []


async def announced(tuner: Tuner) -> TunerInfo:
    """What the tuner said of itself, once it did."""
    async with asyncio.timeout(30):
        while not tuner.pool.processes:
            await asyncio.sleep(0.01)
    return tuner.pool.info


async def test_info_tells_model_and_defaults(start: Callable[..., Any], model: BaseModel) -> None:
    """Base model and preset are those of the loaded folder, with every field of the config set."""
    tuner = await start()

    info = await announced(tuner)

    assert (model.name, model.digest, 48, 48) == (
        info.base_model.name,
        info.base_model.digest,
        info.base_model.width,
        info.base_model.height,
    )
    defaults = info.tuning_defaults
    assert ("unitune", "attn_out", 128, 4, 1e-4, "beikkpic") == (
        Flat(defaults).method,
        Flat(defaults).mode,
        defaults.updates,
        defaults.batch,
        defaults.learning_rate,
        defaults.rare_tokens,
    )


async def test_info_tells_the_presets_own_values_for_a_method(start: Callable[..., Any], model: BaseModel) -> None:
    """A base model's section for a method is in force for it alone; published values stand where it is silent."""
    preset = replace(
        model.preset,
        methods={
            "imagic": {"learning_rate": 3e-4, "batch": 2},
            "null_text": {"updates": 20},
            "prompt_to_prompt": {"guidance_scale": 5.0},
        },
    )
    tuner = await start(model=replace(model, preset=preset))

    info = await announced(tuner)

    told = {Flat(defaults).method: defaults for defaults in info.method_defaults}
    assert (3e-4, 2, 1000) == (told["imagic"].learning_rate, told["imagic"].batch, told["imagic"].updates)
    assert (5e-6, 1) == (told["dreambooth"].learning_rate, told["dreambooth"].batch)
    null_text = told["null_text"]  # with the guidance of the edits that it is for
    assert (20, 0.01, 5.0) == (null_text.updates, null_text.learning_rate, null_text.guidance_scale)


async def test_a_run_ends_with_weights_in_the_store(
    start: Callable[..., Any], model: BaseModel, image: ModelImage
) -> None:
    """Progress, then done; the store holds what tuning in process gives, under the path and digest that done names."""
    tuner = await start()

    square = images.encode_png(images.from_model(image, model.image_side))
    found = await events(tuner.run({**SHORT, "seed": 3}, image=square))

    assert {"progress"} == {report.WhichOneof("report") for report in found[:-1]}
    assert 2 == found[0].progress.total
    assert TuningProgress.STAGE_STORING == found[-2].progress.stage
    done = found[-1].done
    assert ("key", PATH, model.digest) == (done.key, done.path, done.base_model)
    stored = tuner.store.get_weights(done.path, done.digest)
    expected = tune(model, image, TuningConfig("attn_out", 2, 1, 1e-3, "r", 3)).tensors
    base = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    decoded = decode(stored.tensors, base, stored.manifest.codec)
    assert "sign" == stored.manifest.codec and stored.manifest.codec_error < 0.05
    assert expected.keys() == decoded.keys()
    for name, tensor in decoded.items():  # matrices as small as these are all in int4
        largest = np.abs(expected[name].numpy() - base[name]).max()
        np.testing.assert_allclose(tensor, expected[name].numpy(), rtol=0, atol=0.51 / 7 * largest + 1e-6)
    assert done.size_bytes == len(tuner.store.get(f"{PATH}/{WEIGHTS_FILE}"))


@pytest.mark.parametrize("order", ["cancel", "lease_lost"])
async def test_an_order_ends_a_run_and_leaves_nothing(start: Callable[..., Any], order: str) -> None:
    """A tuning that is cancelled, or is another one's, stops before the next update; the store is empty, and the next
    tuning runs (F20)."""
    tuner = await start()
    run = tuner.run(ENDLESS)
    await next_of(run, "progress")

    run.say(order)
    await tuner.is_idle()

    assert [] == tuner.weights()
    assert not TERMINAL.intersection(report.WhichOneof("report") for report in run.reports)
    again = await events(tuner.run(SHORT, name="other", path="tunings/t/other/1"))
    assert "done" == again[-1].WhichOneof("report")


async def test_an_order_comes_at_once(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has nothing to tell hears of a cancel by the answer that it waits for, and not by its next report."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 1000.0)
    tuner = await start(lease_s=600.0)  # its questions wait for 100 seconds
    go_on, decode = threading.Event(), module._model_images

    def slow(*arguments: Any) -> Any:
        go_on.wait(60)
        return decode(*arguments)

    monkeypatch.setattr(module, "_model_images", slow)
    run = tuner.run(SHORT)
    async with asyncio.timeout(30):
        while tuner.pool.given is None or tuner.servicer._run is None:
            await asyncio.sleep(0.01)
    started = tuner.servicer._run
    await asyncio.sleep(0.3)
    run.say("cancel")
    async with asyncio.timeout(10):
        while not started.is_cancelled:
            await asyncio.sleep(0.01)
    go_on.set()
    await tuner.is_idle()


async def test_done_is_reported_until_it_is_answered(start: Callable[..., Any]) -> None:
    """When the answer is lost the same is reported again, and the weights stay (F19)."""
    tuner = await start()
    tuner.pool.drops = 3
    run = tuner.run(SHORT)
    found = await events(run)
    await tuner.is_idle()
    ends = [report.done for report in run.reports if report.HasField("done")]
    assert len(ends) == 4 and all(end == found[-1].done for end in ends)
    assert tuner.store.get_weights(PATH, found[-1].done.digest)


async def test_a_run_goes_on_while_its_gateway_is_away(store: ObjectStore, picture: bytes, model: BaseModel) -> None:
    """A tuner whose gateway ends amid a run tunes to the end, and reports to the one that is there then (F16)."""
    pool = Pool()
    server = await serve_pool(pool)
    servicer = TunerService(model, store, Gateways([server.address]))
    servicer.begin("here")
    tuner = Tuner(servicer, pool, store, picture)
    run = tuner.run({**SHORT, "updates": 200})
    await next_of(run, "progress")
    await server.stop()
    await asyncio.sleep(1)
    assert servicer._run is not None and not servicer._run.is_cancelled
    server = await serve_pool(pool, server.address)
    done = (await events(run))[-1].done
    assert store.get_weights(PATH, done.digest)
    await servicer.close()
    await server.stop()


async def test_another_gateway_is_asked_when_one_is_away(store: ObjectStore, picture: bytes, model: BaseModel) -> None:
    """Of several gateways the tuner finds one that answers."""
    pool = Pool()
    server, gone = await serve_pool(pool), await serve_pool(Pool())
    await gone.stop()
    servicer = TunerService(model, store, Gateways([gone.address, server.address]))
    servicer.begin("here")
    assert "done" == (await events(Tuner(servicer, pool, store, picture).run(SHORT)))[-1].WhichOneof("report")
    await servicer.close()
    await server.stop()


async def test_a_tuning_that_diverges_fails_with_its_update(start: Callable[..., Any], model: BaseModel) -> None:
    """A denoiser whose answer is not a number makes the run `failed`, and the next run is served."""
    broken = copy.deepcopy(model.denoiser)
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    tuner = await start(replace(model, denoiser=broken))

    error = from_status((await events(tuner.run(SHORT)))[-1].failed)

    assert ("TUNING_DIVERGED", "1") == (error.reason, error.metadata["update"])
    assert [] == tuner.weights()
    assert "failed" == (await events(tuner.run(SHORT)))[-1].WhichOneof("report")


async def test_a_mistake_of_ours_says_nothing_but_that(start: Callable[..., Any], model: BaseModel) -> None:
    """An exception of another kind is INTERNAL without its text, and the tuner lives on."""
    broken = copy.deepcopy(model.denoiser)
    broken.unet.conv_out = torch.nn.Identity()
    tuner = await start(replace(model, denoiser=broken))

    error = from_status((await events(tuner.run(SHORT)))[-1].failed)

    assert ("INTERNAL", Internal) == (error.reason, type(error))
    assert "size" not in error.message
    assert "failed" == (await events(tuner.run(SHORT)))[-1].WhichOneof("report")


class FailingStore(ObjectStore):
    """A real store whose disk is full when the manifest is to be written."""

    def put_weights(self, path: str, data: bytes, manifest: Manifest) -> None:
        self.put(f"{path}/{WEIGHTS_FILE}", data)
        raise OSError("no space left on device")


async def test_a_store_that_fails_fails_the_run(start: Callable[..., Any], tmp_path: Path) -> None:
    """The run may be tried again, the store's own words stay in the log, and no half of the weights is left."""
    tuner = await start(store=FailingStore(str(tmp_path / "full")))

    error = from_status((await events(tuner.run(SHORT)))[-1].failed)

    assert ("STORE_DOWN", Unavailable) == (error.reason, type(error))
    assert "space" not in error.message
    assert [] == tuner.weights()


class SlowStore(ObjectStore):
    """A real store that waits before it says that the weights are written."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.written, self.go_on = threading.Event(), threading.Event()

    def put_weights(self, path: str, data: bytes, manifest: Manifest) -> None:
        super().put_weights(path, data, manifest)
        self.written.set()
        self.go_on.wait(30)


async def test_a_lease_that_is_lost_before_done_leaves_no_weights(start: Callable[..., Any], tmp_path: Path) -> None:
    """Weights that were just written when the tuning went to another tuner are deleted: they are nobody's (F18)."""
    store = SlowStore(str(tmp_path / "slow"))
    tuner = await start(store=store)
    run = tuner.run(SHORT)
    await asyncio.to_thread(store.written.wait, 30)
    assert tuner.weights()

    run.say("lease_lost")
    store.go_on.set()
    await tuner.is_idle()

    assert [] == tuner.weights()
    assert "done" == (await events(tuner.run(SHORT)))[-1].WhichOneof("report")


async def test_a_lease_that_is_lost_unnoticed_leaves_no_weights(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tuner asks whether the tuning is still its own before it writes, and hears it by the answer to `done` (F18)."""
    tuner = await start()
    answered = tuner.servicer._obey
    monkeypatch.setattr(tuner.servicer, "_hold", lambda run, assignment: asyncio.sleep(0))  # it hears of nothing
    monkeypatch.setattr(tuner.servicer, "_tell", lambda run, assignment: asyncio.sleep(0))
    written = []
    put = tuner.store.put_weights
    monkeypatch.setattr(tuner.store, "put_weights", lambda *given: (written.append(given), put(*given)))
    attempt, ended = tuner.servicer._attempt, []

    async def attempted(assignment: Assignment) -> bool:
        is_stuck = await attempt(assignment)
        ended.append(assignment.name)
        return is_stuck

    monkeypatch.setattr(tuner.servicer, "_attempt", attempted)

    run = tuner.run(SHORT)
    run.say("lease_lost")
    async with asyncio.timeout(30):
        while not ended:
            await asyncio.sleep(0.01)
    assert written == [] and run.reports == []

    monkeypatch.setattr(tuner.servicer, "_obey", lambda run, order: None)
    last = await lost(tuner)
    monkeypatch.setattr(tuner.servicer, "_obey", answered)
    assert len(written) == 1 and last.HasField("done") and [] == tuner.weights()


async def lost(tuner: Tuner) -> ReportTuningRequest:
    """The last report of a run whose lease is lost from its beginning."""
    run = tuner.run(SHORT)
    run.say("lease_lost")
    found = await events(run)
    await tuner.is_idle()
    return found[-1]


async def test_a_busy_worker_is_no_silent_tuner(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the worker thread has nothing to tell, reports say again and again in which stage it is (r7)."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    store = SlowStore(str(tmp_path / "slow"))
    tuner = await start(store=store)
    run = tuner.run(SHORT)
    await asyncio.to_thread(store.written.wait, 30)

    told = [TuningProgress.STAGE_PREPARING]
    while told.count(TuningProgress.STAGE_STORING) < 3:
        told.append((await next_of(run, "progress")).progress.stage)
    assert sorted(told) == told

    store.go_on.set()
    assert "done" == (await events(run))[-1].WhichOneof("report")


async def test_pictures_that_take_long_to_read_are_no_silence(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is renewed from the beginning of an attempt, before there is any progress (r7)."""
    go_on, decode = threading.Event(), module._model_images

    def slow(*arguments: Any) -> Any:
        go_on.wait(30)
        return decode(*arguments)

    monkeypatch.setattr(module, "_model_images", slow)
    tuner = await start(lease_s=0.6)
    for picture, outcome in ((tuner.picture, "done"), (b"not a picture", "failed")):
        go_on.clear()
        run, before = tuner.run(SHORT, image=picture), tuner.pool.num_alive
        async with asyncio.timeout(30):
            while tuner.pool.num_alive < before + 3:
                await asyncio.sleep(0.01)
        assert run.reports == []
        go_on.set()
        assert outcome == (await events(run))[-1].WhichOneof("report")
        await tuner.is_idle()


async def test_an_instance_is_a_process(start: Callable[..., Any]) -> None:
    """A tuner asks with the same instance and place every time, and no other tuner has that instance (R1)."""
    one, other = await start(), await start()
    for tuner in (one, other):
        for _ in range(2):
            await events(tuner.run(SHORT))
            await tuner.is_idle()

    (place,) = {process.place for tuner in (one, other) for process in tuner.pool.processes}
    (first,), (second,) = ({process.instance for process in tuner.pool.processes} for tuner in (one, other))
    assert place.endswith("/here") and first and second and first != second


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"method": 99}, "config.method"),
        ({"method": "dreambooth"}, "config.num_class_images"),
        ({"mode": 99}, "config.mode"),
        ({"updates": 5001}, "config.updates"),
        ({"updates": None}, "config.updates"),
        ({"batch": 0}, "config.batch"),
        ({"learning_rate": 0.2}, "config.learning_rate"),
        ({"learning_rate": float("nan")}, "config.learning_rate"),
        ({"rare_tokens": "  "}, "config.rare_tokens"),
        ({"rare_tokens": "r" * 33}, "config.rare_tokens"),
    ],
)
async def test_a_wrong_config_is_refused_by_field(
    start: Callable[..., Any], change: dict[str, Any], field: str
) -> None:
    """The run fails before anything is computed, naming the field."""
    tuner = await start()

    given = {name: value for name, value in {**SHORT, **change}.items() if value is not None}
    (report,) = await events(tuner.run(given))

    error = from_status(report.failed)
    assert ("INVALID_FIELD", field) == (error.reason, error.field)


async def test_the_next_attempt_goes_on_from_the_last_checkpoint(start: Callable[..., Any]) -> None:
    """A run that is lost leaves its last checkpoint alone, and another tuner makes of it the weights file of a run that
    was not interrupted, to the byte. It tells where it began (R12, F26)."""
    config = {**SHORT, "updates": 60, "seed": 3}
    tuner = await start()
    expected = (await events(tuner.run(config, path="tunings/t/t-000/1")))[-1].done
    first = await start(checkpoint_s=1e-6)
    run = first.run(config)
    run.lost_after_update = 20
    last = (await next_of(run, "checkpoint")).checkpoint
    while last.update < 20:
        last = (await next_of(run, "checkpoint")).checkpoint
    await first.is_idle()
    assert [last.path] == first.store.list("tunings/t/t-001") and last.update < 60

    second = await start()
    again = second.run(config, attempt=2, path="tunings/t/t-001/2", checkpoint=last)
    found = await events(again)
    told = [report.progress for report in found if report.progress.update]
    assert all(progress.resumed_update == last.update < progress.update for progress in told) and told
    assert (found[-1].done.digest, found[-1].done.path) == (expected.digest, "tunings/t/t-001/2")


async def test_a_checkpoint_that_is_gone_or_damaged_begins_anew(start: Callable[..., Any]) -> None:
    """The tuning is made from its first update, and ends as ever."""
    tuner = await start()
    tuner.store.put(f"{PATH}/checkpoint-5", b"not one")
    for path in (f"{PATH}/checkpoint-5", f"{PATH}/checkpoint-6"):
        given = Checkpoint(path=path, sha256=sha256(b"not one"), update=5)
        found = await events(tuner.run(SHORT, path="tunings/t/t-001/2", attempt=2, checkpoint=given))
        assert found[-1].HasField("done") and not any(report.progress.resumed_update for report in found)
        await tuner.is_idle()


@pytest.mark.parametrize(("stored", "reason"), [(None, "IMAGE_NOT_FOUND"), (b"other bytes", "IMAGE_CORRUPT")])
async def test_a_picture_that_is_gone_or_damaged_fails_its_tuning(
    start: Callable[..., Any], stored: bytes | None, reason: str
) -> None:
    """What the store has is compared with the picture's digest before it is tuned on."""
    tuner = await start()
    path = f"images/t/{'0' * 64}/file"
    if stored is not None:
        tuner.store.put(path, stored)
    images = [StoredImage(name="tenants/t/images/0", path=path, sha256="0" * 64)]

    (report,) = await events(tuner.run(SHORT, images=images))

    error = from_status(report.failed)
    assert (error.reason, error.metadata["name"]) == (reason, "tenants/t/images/0")
    # Most often gateway and tuner have different stores, which no upload mends.
    assert ("the same UNITUNE_STORE" in error.message) == (reason == "IMAGE_NOT_FOUND")


async def test_a_picture_that_cannot_be_decoded_is_refused(start: Callable[..., Any]) -> None:
    """Bytes that are no picture never reach the device."""
    tuner = await start()

    (report,) = await events(tuner.run(SHORT, image=b"not a picture"))

    error = from_status(report.failed)
    assert ("IMAGE_UNDECODABLE", InvalidArgument) == (error.reason, type(error))


async def test_a_drain_gives_a_run_back_and_takes_no_more(start: Callable[..., Any]) -> None:
    """A run that cannot end in time is given back at once, and nothing of it is left; what waits stays with the gateway
    (F21)."""
    tuner = await start()
    run = tuner.run(ENDLESS)
    await next_of(run, "progress")
    waiting = tuner.run(SHORT, name="second", path="tunings/t/second/1")

    await tuner.servicer.drain()

    assert "give_back" == (await events(run))[-1].WhichOneof("report")
    await tuner.is_idle()
    assert [] == tuner.weights() and waiting.reports == [] and tuner.pool.given is run


async def test_a_drain_lets_a_run_end_that_has_little_left(start: Callable[..., Any], tmp_path: Path) -> None:
    """What is almost done is finished and reported."""
    store = SlowStore(str(tmp_path / "slow"))
    tuner = await start(store=store)
    run = tuner.run({**SHORT, "updates": 3})
    await asyncio.to_thread(store.written.wait, 30)

    draining = asyncio.create_task(tuner.servicer.drain())
    await asyncio.sleep(0.3)
    store.go_on.set()
    await asyncio.wait_for(draining, 20)

    assert "done" == (await events(run))[-1].WhichOneof("report") and tuner.weights()


async def test_a_drain_without_a_gateway_does_not_wait(
    store: ObjectStore, picture: bytes, model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would hear of the tuning's end."""
    monkeypatch.setattr(module, "GIVE_BACK_S", 0.2)
    pool = Pool()
    server = await serve_pool(pool)
    servicer = TunerService(model, store, Gateways([server.address]))
    servicer.begin("here")
    run = Tuner(servicer, pool, store, picture).run({**SHORT, "updates": 300})
    await next_of(run, "progress")
    await server.stop()
    async with asyncio.timeout(10):
        while not servicer._gateways.is_away:
            await asyncio.sleep(0.01)
        await servicer.drain()
    assert servicer._run is None or servicer._run.is_cancelled
    await servicer.close()


async def test_weights_wait_for_a_store_that_is_full_for_a_while(start: Callable[..., Any], tmp_path: Path) -> None:
    """A real disk without space when the weights are made, and with space a moment later: the tuning succeeds (r6)."""
    with mounted(tmp_path / "disk", "4m") as disk:
        store = ObjectStore(str(disk / "store"))
        tuner = await start(store=store)
        store.put(f"images/t/{sha256(tuner.picture)}/file", tuner.picture)
        ballast = fill(disk)
        run = tuner.run(SHORT)
        await next_of(run, "progress")
        await asyncio.sleep(2 * module.STORE_RETRY_S)
        ballast.unlink()
        done = (await events(run))[-1].done
        assert store.get_weights(PATH, done.digest)


async def test_a_store_that_stays_full_fails_the_run(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE_FULL with an invitation to try again, nothing half-written, and the tuner lives on (r6)."""
    monkeypatch.setattr(module, "STORE_WAIT_S", 0.1)
    with mounted(tmp_path / "disk", "4m") as disk:
        tuner = await start(store=ObjectStore(str(disk / "store")))
        tuner.store.put(f"images/t/{sha256(tuner.picture)}/file", tuner.picture)
        ballast = fill(disk)
        error = from_status((await events(tuner.run(SHORT)))[-1].failed)
        assert ("STORE_FULL", ResourceExhausted) == (error.reason, type(error)) and error.retry_after_s
        assert str(disk) not in error.message and [] == tuner.weights()
        ballast.unlink()
        assert "done" == (await events(tuner.run(SHORT)))[-1].WhichOneof("report")


@pytest.mark.parametrize("end", ["done", "cancelled", "failed"])
async def test_an_attempt_leaves_none_of_its_tensors(
    start: Callable[..., Any], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it ends. Without that gigabytes would stay with a tuner of a large model, or on its GPU."""
    states: list[weakref.ref[object]] = []
    begin = Checkpoints.begin

    def seen(self: Checkpoints, state: Any) -> Any:
        states.append(weakref.ref(state))
        return begin(self, state)

    def broken(*_: object, **__: object) -> None:
        raise ResourceExhausted(
            "broken", reason="STORE_FULL"
        )  # another would be logged, and pytest keeps what is logged

    monkeypatch.setattr(Checkpoints, "begin", seen)
    if end == "failed":
        monkeypatch.setattr(module, "pack_tuned", broken)
    tuner = await start()
    gc.disable()  # it would let them go at some other time
    try:
        run = tuner.run(ENDLESS if end == "cancelled" else SHORT)
        if end == "cancelled":
            await next_of(run, "progress")
            while not states:
                await asyncio.sleep(0.05)
            run.say("cancel")
        else:
            await events(run)
        await tuner.is_idle()
        async with asyncio.timeout(20):
            while not states or any(state() is not None for state in states):
                await asyncio.sleep(0.05)
    finally:
        gc.enable()
