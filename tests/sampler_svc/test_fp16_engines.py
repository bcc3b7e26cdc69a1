"""The contract of engines in fp16: ONNX Runtime's on the CPU provider, for real, and both TensorRTs' on a fake GPU.

The CPU provider runs the very code that CUDA would: device values, writes in place, bound inputs. What a GPU computes
is not tested here, and cannot be: see tests/gpu.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.build.cuda import cuda_builder
from sampler_svc.build.folder import build
from sampler_svc.build.tensorrt import tensorrt_builder
from sampler_svc.engines.cuda import CPU, OrtCudaEngine
from sampler_svc.engines.engine import BASE, TOO_SMALL, Engine, EngineSpec, WeightSet
from sampler_svc.engines.pool import EnginePool
from sampler_svc.engines.tensorrt import TrtEngine
from sampler_svc.engines.trt_library import TENSORRT_RTX
from sampler_svc.engines.weights import base_weights
from tests.sampler_svc.fake_gpu import Faults, fake_runtime
from tests.sampler_svc.tunings import Tunings, answers, lying, question
from unitune.base_model import BaseModelSpec
from unitune.errors import DataLoss, Internal

Open = Callable[[], Engine]
Pair = tuple[WeightSet, WeightSet]


@pytest.fixture(scope="module")
def fp16_folders(tiny_fp16_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An engine folder for each backend. Nobody writes to them."""
    root = tmp_path_factory.mktemp("fp16 engines")
    return {
        "onnxruntime": build(tiny_fp16_graphs, root / "onnxruntime", cuda_builder(CPU)),
        "tensorrt": build(tiny_fp16_graphs, root / "tensorrt", tensorrt_builder(fake_runtime(Faults()))),
        "tensorrt-rtx": build(
            tiny_fp16_graphs, root / "rtx", tensorrt_builder(fake_runtime(Faults(), library=TENSORRT_RTX))
        ),
    }


@pytest.fixture(scope="module")
def tuned(tunings: Tunings) -> Pair:
    """Two tunings of all tensors."""
    return tunings.weights(1), tunings.weights(2)


@pytest.fixture(
    params=["onnxruntime", "onnxruntime in new sessions", "tensorrt", "tensorrt without a graph", "tensorrt-rtx"]
)
def open_engine(request: pytest.FixtureRequest, fp16_folders: dict[str, Path], spec: BaseModelSpec) -> Open:
    """Opens engines of a backend."""
    folder, engine_spec = fp16_folders[request.param.partition(" ")[0]], EngineSpec.from_model(spec)
    return {
        "onnxruntime": lambda: OrtCudaEngine.open_tested(folder, engine_spec, CPU),
        "onnxruntime in new sessions": lambda: OrtCudaEngine(folder, engine_spec, provider=CPU, in_place=False),
        "tensorrt": lambda: TrtEngine.open_tested(folder, engine_spec, fake_runtime(Faults())),
        "tensorrt-rtx": lambda: TrtEngine.open_tested(
            folder, engine_spec, fake_runtime(Faults(), library=TENSORRT_RTX)
        ),
        "tensorrt without a graph": lambda: TrtEngine(folder, engine_spec, *fake_runtime(Faults())()),
    }[request.param]


@pytest.fixture
def fp16_base(fp16_folders: dict[str, Path], spec: BaseModelSpec) -> WeightSet:
    """The base weights, with the probe of these folders."""
    return base_weights(fp16_folders["tensorrt"], spec)


@pytest.fixture
def raw_engine(open_engine: Open) -> Iterator[Engine]:
    """An engine that was never refitted."""
    engine = open_engine()
    yield engine
    engine.close()


@pytest.fixture
def engine(raw_engine: Engine, fp16_base: WeightSet) -> Engine:
    """An engine with the base weights."""
    raw_engine.refit(fp16_base)
    return raw_engine


def test_an_engine_that_was_never_refitted_does_not_run(raw_engine: Engine) -> None:
    """Unknown weights are None, and None does not run."""
    with pytest.raises(Internal) as refusal:
        answers(raw_engine)

    assert raw_engine.weights is None and refusal.value.reason == "WEIGHTS_UNKNOWN"


def test_the_answer_is_torchs_up_to_fp16(engine: Engine, fp16_base: WeightSet, tunings: Tunings, tuned: Pair) -> None:
    """For base and tuned weights the error is a few thousandths of the answer, and the probe's ratio says so."""
    for weights in (tuned[0], fp16_base, tuned[1]):
        report = engine.refit(weights)
        expected = tunings.reference.answer(dict(weights.tensors))
        error = np.linalg.norm(answers(engine) - expected) / np.linalg.norm(expected)

        assert engine.weights == weights.id
        assert error < 0.005
        assert report.probe_ratio == TOO_SMALL if weights.id == BASE else 0 < report.probe_ratio < 0.02


def test_a_b_a_is_a(engine: Engine, tuned: Pair) -> None:
    """Refitting A, B and A again gives A's bits, and B's are others."""
    said = []
    for weights in (tuned[0], tuned[1], tuned[0]):
        engine.refit(weights)
        said.append(answers(engine))

    np.testing.assert_array_equal(said[0], said[2])
    assert np.abs(said[0] - said[1]).max() > 0.01


def test_refitting_the_base_weights_is_a_fresh_engine(
    open_engine: Open, engine: Engine, fp16_base: WeightSet, tuned: Pair
) -> None:
    """Nothing of a tuning is left behind, to the last bit."""
    engine.refit(tuned[0])
    engine.refit(fp16_base)
    fresh = open_engine()
    fresh.refit(fp16_base)

    np.testing.assert_array_equal(answers(engine), answers(fresh))
    fresh.close()


def test_a_tuning_of_few_tensors_leaves_nothing_of_the_one_before(
    engine: Engine, tunings: Tunings, tuned: Pair
) -> None:
    """A refit carries every tensor: what a small tuning does not name comes from the base."""
    few = tunings.weights(2, size=2.0, names=sorted(tunings.base.tensors)[:2])
    engine.refit(few)
    alone = answers(engine)
    engine.refit(tuned[0])
    engine.refit(few)

    np.testing.assert_array_equal(alone, answers(engine))


def test_any_number_of_rows_is_cut_to_the_batch(engine: Engine) -> None:
    """One, two, three and seven rows: each row's answer is its own, and equal rows have equal answers."""
    latents, timesteps, contexts = question(engine.spec)
    both = engine.run(latents, timesteps, contexts)

    for rows in (1, 3, 7):
        index = np.arange(rows) % 2
        answer = engine.run(latents[index], timesteps[index], contexts[index])
        assert answer.shape == (rows, *engine.spec.latent)
        np.testing.assert_allclose(answer, both[index], rtol=0, atol=1e-5)
    assert engine.run(latents[:0], timesteps[:0], contexts[:0]).shape == (0, *engine.spec.latent)


def test_values_beyond_fp16_are_refused(engine: Engine, fp16_base: WeightSet, tuned: Pair) -> None:
    """A tuning that overflows gets an error that names the tensor, not pictures of infinities."""
    name = sorted(fp16_base.tensors)[3]
    large = fp16_base.tensors[name].copy()
    large.flat[0] = 1e6

    with pytest.raises(DataLoss, match=rf"range of fp16 \({name}\)"):
        engine.refit(lying(tuned[0], **{name: large}))

    assert engine.weights is None


@pytest.mark.parametrize("damage", ["missing", "shape", "float16", "nan"])
def test_wrong_tensors_are_refused_before_anything_is_touched(engine: Engine, tuned: Pair, damage: str) -> None:
    """Names, shapes, dtypes and finiteness are checked first: the engine keeps its weights."""
    engine.refit(tuned[0])
    before = answers(engine)
    tensors = dict(tuned[1].tensors)
    name = sorted(tensors)[0]
    tensor = tensors.pop(name).copy()
    if damage == "shape":
        tensors[name] = tensor[:-1]
    elif damage == "float16":
        tensors[name] = tensor.astype(np.float16)
    elif damage == "nan":
        tensor.flat[0] = np.nan
        tensors[name] = tensor

    with pytest.raises(DataLoss):
        engine.refit(WeightSet("wrong", tensors, tuned[1].probe))

    assert engine.weights == tuned[0].id
    np.testing.assert_array_equal(answers(engine), before)


def test_the_probe_finds_weights_that_did_not_take(engine: Engine, fp16_base: WeightSet, tuned: Pair) -> None:
    """The base weights under a tuning's probe poison the engine; an honest refit makes it good again."""
    honest = tuned[0]

    with pytest.raises(DataLoss, match="probe"):
        engine.refit(lying(honest, **fp16_base.tensors))

    assert engine.weights is None
    with pytest.raises(Internal):
        answers(engine)
    engine.refit(honest)
    assert engine.weights == honest.id


def test_the_callers_arrays_are_left_alone_now_and_later(engine: Engine, tuned: Pair) -> None:
    """The engine keeps no view of what it was given, and never writes to it."""
    weights = tuned[0]
    mine = {name: tensor.copy() for name, tensor in weights.tensors.items()}
    engine.refit(WeightSet(weights.id, mine, weights.probe))
    before = answers(engine)

    for name, tensor in mine.items():
        np.testing.assert_array_equal(tensor, weights.tensors[name])
        tensor += 1

    np.testing.assert_array_equal(answers(engine), before)
    before[...] = 0  # and an answer is the caller's own
    assert np.abs(answers(engine)).max() > 0


def test_a_closed_engine_does_not_run(engine: Engine) -> None:
    """Closing forgets the weights, and may be done twice."""
    engine.close()
    engine.close()

    with pytest.raises(Internal):
        answers(engine)


def test_the_pool_leases_them_like_any_other(open_engine: Open, fp16_base: WeightSet, tuned: Pair) -> None:
    """A lease refits, a second one is warm, and an engine whose refit failed is replaced by another."""
    pool = EnginePool(open_engine, fp16_base)
    weights = tuned[0]
    try:
        with pool.lease(weights.id, lambda: weights) as lease:
            assert not lease.warm and 0 < lease.probe_ratio < 0.02
        with pool.lease(weights.id, lambda: weights) as lease:
            assert lease.warm
        wrong = lying(tuned[1], **fp16_base.tensors)
        with pytest.raises(DataLoss), pool.lease(wrong.id, lambda: wrong):
            pass
        with pool.lease(BASE, lambda: fp16_base) as lease:
            assert lease.warm and np.isfinite(answers(lease.engine)).all()
    finally:
        pool.close()
