"""Edits with the base model's fast LoRA: its changes and a tuning's on the base weights, proven as one."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from sampler_svc.build.folder import build
from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import TOO_SMALL, EngineSpec, WeightSet
from sampler_svc.engines.weights import FastLoraChanges, tuned_weights, with_fast_lora
from sampler_svc.model import Model
from sampler_svc.service import SamplerService
from tests.fast_loras import add_fast_lora, save_merged
from tests.made_once import made_once
from tests.sampler_svc.pictures import picture
from tests.sampler_svc.test_sample import REQUEST, diffusers_picture, pictures
from tests.sampler_svc.test_service import events, kinds, pngs, request
from tuner_svc.base_model import BaseModel, load
from tuner_svc.export.fast_lora import export_fast_lora
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images, serving
from unitune.base_model import BaseModelSpec, file_digest
from unitune.codecs import decode
from unitune.errors import DataLoss, from_rpc_error
from unitune.object_store import ObjectStore
from unitune.v1 import sampler_pb2, sampler_pb2_grpc, tuning_pb2
from unitune.weights import FAST_LORA_TUNED, TunedWeights, unpack

FEW = {"scheduler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}


@pytest.fixture(scope="session")
def fast_folder(tiny_model: Path, run_root: Path) -> Path:
    """The tiny base model with a fast LoRA. Nobody writes to it."""

    def make(folder: Path) -> None:
        add_fast_lora(Path(shutil.copytree(tiny_model, folder / "tiny")))

    return made_once(run_root, "base_fast", make) / "tiny"


@pytest.fixture(scope="session")
def fast_engine(fast_folder: Path, tiny_graphs: Path, run_root: Path) -> Path:
    """Its engine, from the tiny base model's graphs and the LoRA beside them. Nobody writes to it."""

    def make(folder: Path) -> None:
        graphs, model = Path(shutil.copytree(tiny_graphs, folder / "graphs")), load(fast_folder)
        assert model.fast_lora is not None
        export_fast_lora(model, model.fast_lora, graphs)
        files = {path.name: file_digest(path) for path in sorted(graphs.iterdir()) if path.name != "spec.json"}
        own = BaseModelSpec.load(graphs)
        replace(own, digest=model.digest, preset=model.preset, fast_lora=model.spec.fast_lora, files=files).save(graphs)
        build(graphs, folder / "tiny")

    return made_once(run_root, "engine_fast", make) / "tiny"


@pytest.fixture(scope="module")
def tuner_model(fast_folder: Path) -> BaseModel:
    """The base model as the tuner has it."""
    return load(fast_folder)


def tuned_file(model: BaseModel, updates: int) -> TunedWeights:
    """A tuning of the tiny base model, as the store has it."""
    config = TuningConfig(mode="full", updates=updates, batch=1, learning_rate=3e-3)
    image = images.to_model(images.decode(picture()), model.image_side)
    return unpack(*pack_tuned(model, tune(model, image, config), config, f"key-{updates}", codec="int8"))


@pytest.fixture(scope="module")
def tuned(tuner_model: BaseModel) -> TunedWeights:
    """One of three updates."""
    return tuned_file(tuner_model, 3)


@pytest.fixture
def model(fast_engine: Path) -> Model:
    """The engine folder, loaded afresh."""
    return Model.open(fast_engine, threads=1)


@pytest.fixture
def lora(model: Model) -> FastLoraChanges:
    """Its fast LoRA."""
    assert model.fast_lora is not None
    return model.fast_lora


@pytest.fixture
def engine(fast_engine: Path, model: Model) -> Iterator[OrtEngine]:
    """An engine of its own, with the base weights."""
    engine = OrtEngine(fast_engine, EngineSpec.from_model(model.spec), threads=1)
    engine.refit(model.base)
    yield engine
    engine.close()


def test_an_edit_is_that_of_diffusers_with_the_merged_weights(
    model: Model, engine: OrtEngine, lora: FastLoraChanges, tuned: TunedWeights, fast_folder: Path, tmp_path: Path
) -> None:
    """Base, tuning and LoRA together at four steps of LCM, against a pipeline with the LoRA merged into the tuned
    weights; its probe passes, and the tuning alone and the LoRA alone give other pictures (M15)."""
    few = replace(REQUEST, **FEW, strength=1.0)
    base = {name: np.array(tensor) for name, tensor in model.base.tensors.items()}
    decoded = {name: torch.from_numpy(one) for name, one in decode(tuned.tensors, base, "int8").items()}
    theirs = diffusers_picture(save_merged(fast_folder, tmp_path / "merged", decoded), few, "epsilon")

    found = {}
    for name, weights in (
        ("both", lora.added_to_tuned(tuned, tuned_weights(tuned, model.base, model.spec.digest))),
        ("tuning", tuned_weights(tuned, model.base, model.spec.digest)),
        ("lora", lora.added_to(model.base)),
    ):
        report = engine.refit(weights)
        assert report.probe_ratio == TOO_SMALL if name == "lora" else 0 <= report.probe_ratio < 1e-2, name
        (found[name],) = (images.decode(png).astype(int) for png in pictures(model, engine, few))

    assert np.abs(found["both"] - theirs).max() <= 1
    assert min(np.abs(found["both"] - found[name]).max() for name in ("tuning", "lora")) > 8


def test_refits_there_and_back_leave_nothing_behind(
    model: Model, engine: OrtEngine, lora: FastLoraChanges, tuned: TunedWeights
) -> None:
    """With the LoRA, without it and with it again gives the same answers; so does the base model after it."""
    plain, both = (
        tuned_weights(tuned, model.base, model.spec.digest),
        lora.added_to_tuned(tuned, tuned_weights(tuned, model.base, model.spec.digest)),
    )
    question, answers = engine.spec.question(3), []

    for weights in (model.base, both, plain, both, lora.added_to(model.base), model.base):
        engine.refit(weights)
        answers.append(engine.run(*question))

    assert np.array_equal(answers[1], answers[3]) and np.array_equal(answers[0], answers[5])
    assert 4 == len({answer.tobytes() for answer in answers})


@pytest.mark.parametrize("lost", ["tuning", "lora", "everything", "weight"])
def test_a_sum_that_lacks_a_part_is_refused(
    lost: str, model: Model, engine: OrtEngine, lora: FastLoraChanges, tuned: TunedWeights
) -> None:
    """The probe tells the sum from the tuning alone, the LoRA alone, the base model, and another weight of the LoRA."""
    both = lora.added_to_tuned(tuned, tuned_weights(tuned, model.base, model.spec.digest))
    halved = replace(lora, stored={n: one / 2 if n.endswith("#up") else one for n, one in lora.stored.items()})
    wrong: WeightSet = {
        "tuning": lora.added_to(model.base),
        "lora": tuned_weights(tuned, model.base, model.spec.digest),
        "everything": model.base,
        "weight": halved.added_to_tuned(tuned, tuned_weights(tuned, model.base, model.spec.digest)),
    }[lost]

    with pytest.raises(DataLoss, match="probe's ratio"):
        engine.refit(WeightSet(both.id, wrong.tensors, both.probe))

    assert engine.weights is None
    engine.refit(both)


def test_a_tuning_without_that_proof_is_refused(model: Model, lora: FastLoraChanges, tuned: TunedWeights) -> None:
    """Weights whose tuner did not answer with the LoRA are not sampled with it."""
    with pytest.raises(DataLoss, match="no probe with the fast LoRA"):
        lora.added_to_tuned(replace(tuned, extras={}), tuned_weights(tuned, model.base, model.spec.digest))
    assert FAST_LORA_TUNED in tuned.extras


@pytest.fixture
def service(model: Model, tmp_path: Path) -> SamplerService:
    """The servicer."""
    return SamplerService(model, ObjectStore(str(tmp_path / "store")))


@pytest.fixture
async def sampler(service: SamplerService) -> AsyncIterator[sampler_pb2_grpc.SamplerServiceStub]:
    """A client of a server on loopback."""
    server = await serving.start("127.0.0.1:0", service.register)
    async with serving.channel(server.address) as channel:
        yield sampler_pb2_grpc.SamplerServiceStub(channel)
    await server.stop()


def put(tmp_path: Path, model: BaseModel, updates: int) -> tuning_pb2.WeightsRef:
    """A tuning in the service's store."""
    config = TuningConfig(mode="full", updates=updates, batch=1, learning_rate=3e-3)
    image = images.to_model(images.decode(picture()), model.image_side)
    data, manifest = pack_tuned(model, tune(model, image, config), config, f"key-{updates}", codec="int8")
    path = f"tunings/default/t-{updates}-0/1"
    ObjectStore(str(tmp_path / "store")).put_weights(path, data, manifest)
    return tuning_pb2.WeightsRef(key=manifest.key, digest=manifest.digest, path=path)


async def test_the_pool_tells_weights_with_it_from_those_without(
    sampler: sampler_pb2_grpc.SamplerServiceStub, model: Model, tuner_model: BaseModel, tmp_path: Path
) -> None:
    """The same tuning with the LoRA is another refit, which is warm the second time; a replica tells the tuning that it
    holds, and evicting that forgets both."""
    weights = put(tmp_path, tuner_model, 1)
    asked = request(weights, **FEW, strength=1.0, fast_lora=True)

    plain = await events(sampler, request(weights, **FEW, strength=1.0))
    first, second = [await events(sampler, asked) for _ in range(2)]

    assert [False, False, True] == [found[0].loading.warm for found in (plain, first, second)]
    assert pngs(first) == pngs(second) != pngs(plain)
    assert [with_fast_lora(weights.digest)] == model.pool.resident()
    state = await anext(aiter(sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())))
    assert [weights.digest] == list(state.resident)
    await sampler.Evict(sampler_pb2.EvictRequest(digest=weights.digest))
    assert [] == model.pool.resident()


async def test_no_updates_with_it_are_the_base_model_with_it(
    sampler: sampler_pb2_grpc.SamplerServiceStub, model: Model, tuner_model: BaseModel, tmp_path: Path
) -> None:
    """A tuning of zero updates, sdedit and Textual Inversion's weights, the base model's own, give the same picture to
    the bit; it is not the base model's without the LoRA."""
    few = {**FEW, "strength": 1.0}
    tuned = await events(sampler, request(put(tmp_path, tuner_model, 0), **few, fast_lora=True))
    untuned = await events(sampler, request(method="sdedit", **few, fast_lora=True))
    plain = await events(sampler, request(method="sdedit", **few))

    assert pngs(tuned) == pngs(untuned) != pngs(plain)
    assert kinds(untuned) == ["loading", "step", "image", "done"] and not untuned[0].loading.warm


async def test_a_sampler_without_one_refuses_it(sampler, engine_folder: Path, tmp_path: Path) -> None:
    """By its field; so does one that has one where the base model's plain predictions are asked for, too."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await events(sampler, request(**FEW, fast_lora=True, unconditional_model="base"))
    assert "config.fast_lora" == from_rpc_error(refused.value).metadata["field"]
    other = SamplerService(Model.open(engine_folder, threads=1), ObjectStore(str(tmp_path / "other")))
    server = await serving.start("127.0.0.1:0", other.register)
    async with serving.channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await events(sampler_pb2_grpc.SamplerServiceStub(channel), request(**FEW, fast_lora=True))
    await server.stop()
    error = from_rpc_error(refused.value)
    assert ("config.fast_lora", "true") == (error.metadata["field"], error.metadata["value"])
    assert "this base model has no fast LoRA" in error.metadata["remedy"]
