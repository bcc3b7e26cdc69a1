"""TunerService over real gRPC on loopback, with a real store: how a run goes, waits, fails and stops."""

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from tests.configs import tuning_config
from tests.full_disk import fill, mounted
from tuner_svc import service as module
from tuner_svc.base_model import BaseModel
from tuner_svc.service import TunerService
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images, serving
from unitune.codecs import decode
from unitune.errors import InvalidArgument, InvalidField, ResourceExhausted, Unavailable, from_rpc_error, from_status
from unitune.images import ModelImage
from unitune.object_store import ObjectStore
from unitune.options import Flat
from unitune.v1 import tuner_pb2, tuner_pb2_grpc
from unitune.v1.tuner_pb2 import RunTuningEvent
from unitune.v1.tuning_pb2 import TuningProgress
from unitune.weights import WEIGHTS_FILE, Manifest

NAME, PATH = "tenants/t/tunings/1", "tunings/t/t-001/1"
SHORT = {"method": "unitune", "mode": "attn_out", "updates": 2, "batch": 1, "learning_rate": 1e-3, "rare_tokens": "r"}
ENDLESS = {**SHORT, "mode": "full", "updates": 5000}
TERMINAL = {"done", "failed", "cancelled"}


class Tuner:
    """A tuner on loopback, and its client."""

    def __init__(self, servicer: TunerService, stub: Any, store: ObjectStore, picture: bytes) -> None:
        self.servicer, self.stub, self.store, self.picture = servicer, stub, store, picture

    def run(self, config: dict[str, Any], **fields: Any) -> Any:
        """Begin a run."""
        values = {"name": NAME, "key": "key", "image": self.picture, "path": PATH, **fields}
        return self.stub.RunTuning(tuner_pb2.RunTuningRequest(config=tuning_config(**config), **values))

    async def cancel(self, name: str = NAME) -> None:
        """Cancel the runs of that name."""
        await self.stub.CancelTuning(tuner_pb2.CancelRunRequest(name=name))

    async def is_idle(self) -> None:
        """Return once no run is left."""
        async with asyncio.timeout(30):
            while self.servicer._runs:
                await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """An empty store in a folder."""
    return ObjectStore(str(tmp_path / "store"))


@pytest.fixture
async def start(store: ObjectStore, picture: bytes, model: BaseModel) -> AsyncIterator[Callable[..., Any]]:
    """Starts tuners, with another model or store if asked, and stops them."""
    stops: list[Callable[[], Any]] = []

    async def start(model: BaseModel = model, store: ObjectStore = store) -> Tuner:
        servicer = TunerService(model, store)
        server = await serving.start("127.0.0.1:0", servicer.register)
        channel = serving.channel(server.address)
        stops.extend((channel.close, server.stop))
        return Tuner(servicer, tuner_pb2_grpc.TunerServiceStub(channel), store, picture)

    yield start
    for stop in stops:
        await stop()


async def events(call: Any) -> list[RunTuningEvent]:
    """All events of a run, which ends with exactly one terminal event."""
    async with asyncio.timeout(60):
        found = [event async for event in call]
    kinds = [event.WhichOneof("event") for event in found]
    assert [kinds[-1]] == [kind for kind in kinds if kind in TERMINAL]
    return found


async def next_of(call: Any, kind: str) -> RunTuningEvent:
    """The next event of a kind."""
    async with asyncio.timeout(60):
        async for event in call:
            if kind == event.WhichOneof("event"):
                return event
    raise AssertionError(f"the stream ended without {kind}")


@pytest.mark.parametrize("path", ["images/alice", "tunings/../x", "/tunings/a/t-001/1", "tunings/a/t-001\x00/1"])
async def test_weights_go_to_their_own_paths_alone(start: Callable[..., Any], path: str, tmp_path: Path) -> None:
    """A path of another form is refused by name before anything is computed, and nothing is written (r17)."""
    tuner = await start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(tuner.run(SHORT, path=path))
    error = from_rpc_error(caught.value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.field) == ("INVALID_FIELD", "path") and not tuner.servicer._runs
    assert [found for found in (tmp_path / "store").rglob("*") if found.is_file()] == []


async def test_info_tells_model_and_defaults(start: Callable[..., Any], model: BaseModel) -> None:
    """Base model and preset are those of the loaded folder, with every field of the config set."""
    tuner = await start()

    info = await tuner.stub.GetTunerInfo(tuner_pb2.GetTunerInfoRequest())

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

    info = await tuner.stub.GetTunerInfo(tuner_pb2.GetTunerInfoRequest())

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

    assert {"progress"} == {event.WhichOneof("event") for event in found[:-1]}
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


async def test_weights_stay_when_the_reader_leaves_after_done(start: Callable[..., Any]) -> None:
    """Who has read done may close the stream at once; the weights are theirs."""
    tuner = await start()
    call = tuner.run(SHORT)

    done = (await next_of(call, "done")).done
    call.cancel()
    await tuner.is_idle()

    assert tuner.store.get_weights(PATH, done.digest)


async def test_cancelling_ends_a_run_and_leaves_nothing(start: Callable[..., Any]) -> None:
    """CancelTuning stops before the next update; the stream says so and ends well, the store is empty."""
    tuner = await start()
    call = tuner.run(ENDLESS)
    await next_of(call, "progress")

    await tuner.cancel("tenants/t/tunings/of-another-name")
    await next_of(call, "progress")
    await tuner.cancel()

    assert "cancelled" == (await events(call))[-1].WhichOneof("event")
    assert grpc.StatusCode.OK == await call.code()
    assert [] == tuner.store.list("")


async def test_cancelling_what_does_not_run_does_nothing(start: Callable[..., Any]) -> None:
    """An unknown name is answered like any other."""
    await (await start()).cancel("nobody")


async def test_closing_the_stream_stops_the_run(start: Callable[..., Any]) -> None:
    """When the reader goes, the device is free for the next run, and nothing is left of the first."""
    tuner = await start()
    call = tuner.run(ENDLESS)
    await next_of(call, "progress")

    call.cancel()
    found = await asyncio.wait_for(events(tuner.run(SHORT, name="other", path="tunings/t/other/1")), 30)

    assert "done" == found[-1].WhichOneof("event")
    assert {"other"} == {path.split("/")[2] for path in tuner.store.list("")}


async def test_a_second_run_waits_for_the_first(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """While another run has the device the stream says so again and again; then it runs."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    tuner = await start()
    first = tuner.run(ENDLESS)
    await next_of(first, "progress")
    second = tuner.run(SHORT, name="second", path="tunings/t/second/1")
    await next_of(second, "waiting")
    await next_of(second, "waiting")

    first.cancel()

    assert "done" == (await events(second))[-1].WhichOneof("event")


async def test_a_run_that_waits_can_be_cancelled(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once, and the run before it goes on."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    tuner = await start()
    first = tuner.run(ENDLESS)
    await next_of(first, "progress")
    second = tuner.run(SHORT, name="second", path="tunings/t/second/1")
    await next_of(second, "waiting")

    await tuner.cancel("second")

    assert "cancelled" == (await events(second))[-1].WhichOneof("event")
    await next_of(first, "progress")
    assert [] == tuner.store.list("tunings/t/second")


async def test_asking_again_for_the_same_name_replaces_the_first_run(start: Callable[..., Any]) -> None:
    """A gateway that lost its stream gets a new run instead of waiting behind its own old one."""
    tuner = await start()
    first = tuner.run(ENDLESS)
    await next_of(first, "progress")

    second = tuner.run(SHORT)

    assert "cancelled" == (await events(first))[-1].WhichOneof("event")
    done = (await events(second))[-1].done
    assert tuner.store.get_weights(PATH, done.digest)


async def test_a_tuning_that_diverges_fails_with_its_update(start: Callable[..., Any], model: BaseModel) -> None:
    """A denoiser whose answer is not a number makes the event `failed`, and the next run is served."""
    broken = copy.deepcopy(model.denoiser)
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    tuner = await start(replace(model, denoiser=broken))

    call = tuner.run(SHORT)
    error = from_status((await events(call))[-1].failed)

    assert grpc.StatusCode.OK == await call.code()
    assert ("TUNING_DIVERGED", "1") == (error.reason, error.metadata["update"])
    assert [] == tuner.store.list("")
    assert "failed" == (await events(tuner.run(SHORT)))[-1].WhichOneof("event")


async def test_a_mistake_of_ours_says_nothing_but_that(start: Callable[..., Any], model: BaseModel) -> None:
    """An exception of another kind is INTERNAL without its text, and the tuner lives on."""
    broken = copy.deepcopy(model.denoiser)
    broken.unet.conv_out = torch.nn.Identity()
    tuner = await start(replace(model, denoiser=broken))

    error = from_status((await events(tuner.run(SHORT)))[-1].failed)

    assert ("INTERNAL", grpc.StatusCode.INTERNAL) == (error.reason, error.code)
    assert "size" not in error.message
    await tuner.stub.GetTunerInfo(tuner_pb2.GetTunerInfoRequest())


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
    assert [] == tuner.store.list("")


class SlowStore(ObjectStore):
    """A real store that waits before it says that the weights are written."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.written, self.go_on = threading.Event(), threading.Event()

    def put_weights(self, path: str, data: bytes, manifest: Manifest) -> None:
        super().put_weights(path, data, manifest)
        self.written.set()
        self.go_on.wait(30)


async def test_a_reader_who_leaves_before_done_leaves_no_weights(start: Callable[..., Any], tmp_path: Path) -> None:
    """Weights that were just written when the stream was closed are deleted: nobody was told of them."""
    store = SlowStore(str(tmp_path / "slow"))
    tuner = await start(store=store)
    call = tuner.run(SHORT)
    await next_of(call, "progress")
    await asyncio.to_thread(store.written.wait, 30)

    call.cancel()
    await asyncio.sleep(0.1)
    store.go_on.set()
    async with asyncio.timeout(30):
        while store.list(""):
            await asyncio.sleep(0.01)

    assert "done" == (await events(tuner.run(SHORT)))[-1].WhichOneof("event")


async def test_a_busy_worker_is_no_silent_tuner(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the worker thread has nothing to tell, the stream says again and again in which stage it is (r7)."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    store = SlowStore(str(tmp_path / "slow"))
    tuner = await start(store=store)
    call = tuner.run(SHORT)
    await asyncio.to_thread(store.written.wait, 30)

    told = [TuningProgress.STAGE_PREPARING]
    while told.count(TuningProgress.STAGE_STORING) < 3:
        told.append((await next_of(call, "progress")).progress.stage)
    assert sorted(told) == told

    store.go_on.set()
    assert "done" == (await events(call))[-1].WhichOneof("event")


async def test_pictures_that_take_long_to_read_are_no_silence(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream lives from its beginning, before there is a run, and still tells what is wrong with a picture (r7)."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    go_on, decode = threading.Event(), module._model_images

    def slow(*arguments: Any) -> Any:
        go_on.wait(30)
        return decode(*arguments)

    monkeypatch.setattr(module, "_model_images", slow)
    tuner = await start()
    for picture, outcome in ((tuner.picture, "done"), (b"not a picture", "IMAGE_UNDECODABLE")):
        go_on.clear()
        call = tuner.run(SHORT, image=picture)
        await next_of(call, "heartbeat")
        go_on.set()
        if outcome == "done":
            assert "done" == (await events(call))[-1].WhichOneof("event")
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await next_of(call, "done")
            assert outcome == from_rpc_error(caught.value).reason


async def test_an_instance_is_a_process(start: Callable[..., Any]) -> None:
    """A tuner tells the same instance over every connection, and no other tuner tells it (R1)."""
    one, other = await start(), await start()

    told = [(await tuner.stub.GetTunerInfo(tuner_pb2.GetTunerInfoRequest())).instance for tuner in (one, one, other)]

    assert told[0] and told[0] == told[1] != told[2]


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
    """The call fails before anything runs, naming the field."""
    tuner = await start()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(tuner.run({name: value for name, value in {**SHORT, **change}.items() if value is not None}))

    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidField)
    assert field == error.field


@pytest.mark.parametrize("field", ["name", "key", "path"])
async def test_a_request_without_a_name_is_refused(start: Callable[..., Any], field: str) -> None:
    """Name, key and path must be set."""
    tuner = await start()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(tuner.run(SHORT, **{field: ""}))

    assert field == from_rpc_error(caught.value).field


async def test_a_picture_that_cannot_be_decoded_is_refused(start: Callable[..., Any]) -> None:
    """Bytes that are no picture never reach the device."""
    tuner = await start()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(tuner.run(SHORT, image=b"not a picture"))

    error = from_rpc_error(caught.value)
    assert ("IMAGE_UNDECODABLE", InvalidArgument) == (error.reason, type(error))


async def test_a_drain_lets_go_of_every_run_and_takes_no_more(start: Callable[..., Any]) -> None:
    """The run and the one that waits are cancelled; a new one is told to go elsewhere."""
    tuner = await start()
    first = tuner.run(ENDLESS)
    await next_of(first, "progress")
    second = tuner.run(SHORT, name="second", path="tunings/t/second/1")
    async with asyncio.timeout(30):
        while len(tuner.servicer._runs) < 2:
            await asyncio.sleep(0.01)

    await tuner.servicer.drain()

    for call in (first, second):
        assert "cancelled" == (await events(call))[-1].WhichOneof("event")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(tuner.run(SHORT))
    assert "DRAINING" == from_rpc_error(caught.value).reason
    assert [] == tuner.store.list("")


async def test_weights_wait_for_a_store_that_is_full_for_a_while(start: Callable[..., Any], tmp_path: Path) -> None:
    """A real disk without space when the weights are made, and with space a moment later: the tuning succeeds (r6)."""
    with mounted(tmp_path / "disk", "4m") as disk:
        store = ObjectStore(str(disk / "store"))
        tuner, ballast = await start(store=store), fill(disk)
        call = tuner.run(SHORT)
        await next_of(call, "progress")
        await asyncio.sleep(2 * module.STORE_RETRY_S)
        ballast.unlink()
        done = (await events(call))[-1].done
        assert store.get_weights(PATH, done.digest)


async def test_a_store_that_stays_full_fails_the_run(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STORE_FULL with an invitation to try again, nothing half-written, and the tuner lives on (r6)."""
    monkeypatch.setattr(module, "STORE_WAIT_S", 0.1)
    with mounted(tmp_path / "disk", "4m") as disk:
        tuner, ballast = await start(store=ObjectStore(str(disk / "store"))), fill(disk)
        error = from_status((await events(tuner.run(SHORT)))[-1].failed)
        assert ("STORE_FULL", ResourceExhausted) == (error.reason, type(error)) and error.retry_after_s
        assert str(disk) not in error.message and [] == tuner.store.list("")
        ballast.unlink()
        assert "done" == (await events(tuner.run(SHORT)))[-1].WhichOneof("event")
