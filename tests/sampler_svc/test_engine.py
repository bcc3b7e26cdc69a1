"""The contract of engines, held to every backend: ONNX Runtime in both refit modes, and torch as the reference."""

import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.engines.engine import BASE, TOO_SMALL, Engine, EngineSpec, Probe, WeightSet, probe_ratio
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.refit_modes import ENGINES
from tests.sampler_svc.torch_engine import TorchEngine
from tests.sampler_svc.tunings import Tunings, answers, lying, question
from unitune.base_model import BaseModelSpec
from unitune.errors import DataLoss, Internal

BACKENDS = ("new_session", "in_place", "torch")


def open_engine(backend: str, engine_folder: Path, tiny_model: Path, spec: BaseModelSpec, base: WeightSet) -> Engine:
    """An engine that was never refitted."""
    engine_spec = EngineSpec.from_model(spec)
    if backend == "torch":
        return TorchEngine(tiny_model, engine_spec)
    return ENGINES[backend](engine_folder, engine_spec, threads=1, layout=GraphLayout(engine_spec, base.tensors))


@pytest.fixture(params=BACKENDS)
def raw_engine(
    request: pytest.FixtureRequest, engine_folder: Path, tiny_model: Path, spec: BaseModelSpec, base: WeightSet
) -> Iterator[Engine]:
    """An engine of each backend that was never refitted."""
    engine = open_engine(request.param, engine_folder, tiny_model, spec, base)
    yield engine
    engine.close()


@pytest.fixture
def engine(raw_engine: Engine, base: WeightSet) -> Engine:
    """An engine of each backend with the base weights."""
    raw_engine.refit(base)
    return raw_engine


def square(base: WeightSet) -> str:
    """The name of a matrix that is as wide as high, so that its transpose has the right shape."""
    return next(name for name, tensor in base.tensors.items() if tensor.ndim == 2 and len(set(tensor.shape)) == 1)


def test_an_engine_that_was_never_refitted_does_not_run(raw_engine: Engine) -> None:
    """Unknown weights are None, and None does not run."""
    assert raw_engine.weights is None
    with pytest.raises(Internal) as refusal:
        answers(raw_engine)

    assert refusal.value.reason == "WEIGHTS_UNKNOWN"


@pytest.mark.parametrize("backend", ENGINES)
def test_backends_agree_on_two_sets_of_weights(
    backend: str, engine_folder: Path, tiny_model: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings
) -> None:
    """ONNX Runtime gives torch's answers for base and tuned weights, to fp32 rounding (check S10)."""
    ours, reference = (open_engine(name, engine_folder, tiny_model, spec, base) for name in (backend, "torch"))

    for weights in (base, tunings.weights(1), base):
        ours.refit(weights)
        reference.refit(weights)
        np.testing.assert_allclose(answers(ours), answers(reference), rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", ENGINES)
def test_nothing_computes_once_a_run_has_ended(
    backend: str, engine_folder: Path, spec: BaseModelSpec, base: WeightSet
) -> None:
    """The runtime's threads do not spin on for tens of milliseconds: the next graph and the stream need the cores."""
    engine_spec = EngineSpec.from_model(spec)
    engine = ENGINES[backend](engine_folder, engine_spec, threads=4, layout=GraphLayout(engine_spec, base.tensors))
    engine.refit(base)  # two threads for each half of a batch

    spent_s = []
    for _ in range(5):
        answers(engine)
        before_s = time.process_time()
        time.sleep(0.1)
        spent_s.append(time.process_time() - before_s)

    assert statistics.median(spent_s) < 0.003


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_halves_of_a_batch_are_computed_as_the_whole_is(
    backend: str, batch: int, engine_folder: Path, spec: BaseModelSpec, base: WeightSet
) -> None:
    """With two threads as with one: every row once, in its place."""
    engine_spec = EngineSpec.from_model(spec)
    one, two = (
        ENGINES[backend](engine_folder, engine_spec, threads, layout=GraphLayout(engine_spec, base.tensors))
        for threads in (1, 2)
    )
    latents, timesteps, contexts = question(engine_spec)
    asked = [np.repeat(array[:1], batch, axis=0) for array in (latents, timesteps, contexts)]
    asked[0] = asked[0] * np.linspace(0.5, 1.5, batch, dtype=np.float32)[:, None, None, None]
    outputs = []
    for engine in (one, two):
        engine.refit(base)
        outputs.append(engine.run(*asked))
        engine.close()

    assert all(np.abs(row - other).max() > 1e-3 for row, other in itertools.pairwise(outputs[0]))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-5)


def test_a_half_that_fails_waits_for_the_other(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error comes when neither half runs any more, since whoever gets it may close the engine."""
    engine = ENGINES["new_session"](engine_folder, EngineSpec.from_model(spec), threads=2)
    engine.refit(base)
    run, ended = engine._run, []

    def slow_or_failing(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        if threading.current_thread() is threading.main_thread():
            raise MemoryError("no room for this half")
        time.sleep(0.2)
        ended.append(run(latents, timesteps, contexts))
        return ended[-1]

    monkeypatch.setattr(engine, "_run", slow_or_failing)
    with pytest.raises(MemoryError, match="this half"):
        answers(engine)

    assert len(ended) == 1
    engine.close()


def test_a_refit_is_proven_and_named(engine: Engine, tunings: Tunings) -> None:
    """After a refit the engine names its weights, and the probe's ratio is that of fp32 rounding."""
    weights = tunings.weights(1)

    report = engine.refit(weights)

    assert engine.weights == weights.id
    assert 0 <= report.probe_ratio < 1e-3
    assert report.size_bytes == sum(tensor.nbytes for tensor in weights.tensors.values())


def test_a_b_a_is_a(engine: Engine, tunings: Tunings) -> None:
    """Refitting A, B and A again gives A's bits, and B's are others."""
    first, second = tunings.weights(1), tunings.weights(2)
    said = []

    for weights in (first, second, first):
        engine.refit(weights)
        said.append(answers(engine))

    np.testing.assert_array_equal(said[0], said[2])
    assert np.abs(said[0] - said[1]).max() > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_refitting_the_base_weights_is_a_fresh_engine(
    backend: str, engine_folder: Path, tiny_model: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings
) -> None:
    """Nothing of a tuning is left behind, to the last bit."""
    used, fresh = (open_engine(backend, engine_folder, tiny_model, spec, base) for _ in range(2))

    for weights in (base, tunings.weights(1), base):
        used.refit(weights)
    fresh.refit(base)

    np.testing.assert_array_equal(answers(used), answers(fresh))


def test_zero_updates_are_the_base_model(engine: Engine, base: WeightSet, tunings: Tunings) -> None:
    """Weights that differ in nothing give the base model's bits, and say that they are too alike to verify."""
    before = answers(engine)

    report = engine.refit(tunings.weights(3, size=0.0))

    np.testing.assert_array_equal(answers(engine), before)
    assert report.probe_ratio == TOO_SMALL


def test_a_tuning_of_few_tensors_leaves_nothing_of_the_one_before(
    engine: Engine, base: WeightSet, tunings: Tunings
) -> None:
    """After a tuning of all tensors, one of two tensors is the base model except for these two."""
    few = sorted(base.tensors)[:2]
    engine.refit(tunings.weights(1))

    engine.refit(tunings.weights(2, names=few))
    after_another = answers(engine)
    engine.refit(base)
    engine.refit(tunings.weights(2, names=few))

    np.testing.assert_array_equal(after_another, answers(engine))


@pytest.mark.parametrize(
    "damage",
    ["missing", "unknown", "renamed", "shape", "flattened", "float16", "float64", "nan", "infinite"],
)
def test_wrong_tensors_are_refused_before_anything_is_touched(
    engine: Engine, base: WeightSet, tunings: Tunings, damage: str
) -> None:
    """Names, shapes, dtypes and finiteness are checked first: the engine keeps its weights and answers as before."""
    engine.refit(tunings.weights(1))
    before = answers(engine)
    weights = tunings.weights(2)
    tensors, name = dict(weights.tensors), square(base)
    tensor = tensors.pop(name).copy()
    if damage == "renamed":
        tensors[f"{name}.old"] = tensor
    elif damage == "unknown":
        tensors |= {name: tensor, "another.weight": tensor}
    elif damage == "shape":
        tensors[name] = tensor[:-1]
    elif damage == "flattened":
        tensors[name] = tensor.reshape(-1)
    elif damage in ("float16", "float64"):
        tensors[name] = tensor.astype(damage)
    elif damage in ("nan", "infinite"):
        tensor[0, 0] = np.nan if damage == "nan" else -np.inf
        tensors[name] = tensor

    with pytest.raises(DataLoss) as refusal:
        engine.refit(WeightSet("wrong", tensors, weights.probe))

    assert refusal.value.reason == "WEIGHTS_CORRUPT"
    assert engine.weights == tunings.weights(1).id
    np.testing.assert_array_equal(answers(engine), before)


@pytest.mark.parametrize("lie", ["transposed", "stale", "all stale", "flipped byte"])
def test_the_probe_finds_what_no_check_of_shapes_can(
    engine: Engine, base: WeightSet, tunings: Tunings, lie: str
) -> None:
    """A square matrix transposed, tensors left behind and a flipped byte fail the probe, and poison the engine."""
    name = square(base)
    honest = tunings.weights(1, names=[name]) if lie == "stale" else tunings.weights(1)
    if lie == "transposed":
        honest = tunings.weights(1, size=0.02)  # about what a tuning does
        wrong = lying(honest, **{name: np.ascontiguousarray(honest.tensors[name].T)})
    elif lie == "flipped byte":
        damaged = honest.tensors[name].copy()
        damaged.view(np.uint8)[0, 3] ^= 0x40  # of the exponent: the number is about 1e38 times as large
        wrong = lying(honest, **{name: damaged})
    else:
        wrong = lying(honest, **({name: base.tensors[name]} if lie == "stale" else base.tensors))

    with pytest.raises(DataLoss, match="probe") as failure:
        engine.refit(wrong)

    assert failure.value.reason == "WEIGHTS_CORRUPT"
    assert engine.weights is None
    with pytest.raises(Internal, match="unknown weights"):
        answers(engine)
    engine.refit(honest)
    assert engine.weights == honest.id


def test_a_stale_tensor_shows_in_the_ratio(engine: Engine, base: WeightSet, tunings: Tunings) -> None:
    """One tensor of many left behind may pass, but its ratio is far from that of rounding."""
    honest = tunings.weights(1)
    name = next(name for name in base.tensors if name.endswith("conv_out.weight"))

    try:
        ratio = engine.refit(lying(honest, **{name: base.tensors[name]})).probe_ratio
    except DataLoss:
        return

    assert ratio > 100 * engine.refit(honest).probe_ratio


def test_the_callers_arrays_are_left_alone_now_and_later(engine: Engine, base: WeightSet, tunings: Tunings) -> None:
    """The engine keeps no view of what it was given, and never writes to it: changing it later changes no answer."""
    weights = tunings.weights(1)
    mine = {name: tensor.copy() for name, tensor in weights.tensors.items()}
    engine.refit(WeightSet(weights.id, mine, weights.probe))
    before = answers(engine)

    for name, tensor in mine.items():
        np.testing.assert_array_equal(tensor, weights.tensors[name])
        tensor += 1

    np.testing.assert_array_equal(answers(engine), before)


def test_read_only_arrays_can_be_refitted(engine: Engine, base: WeightSet) -> None:
    """The base weights are shared between engines and never written (checks S7 and E3)."""
    assert not any(tensor.flags.writeable for tensor in base.tensors.values())

    engine.refit(base)

    assert engine.weights == BASE


def test_batch_size_is_free(engine: Engine) -> None:
    """Each latent's answer is its own, whatever the batch; only rounding may differ (check S6)."""
    latents, timesteps, contexts = question(engine.spec)
    together = engine.run(latents, timesteps, contexts)

    for index in range(2):
        alone = engine.run(latents[index : index + 1], timesteps[index : index + 1], contexts[index : index + 1])
        np.testing.assert_allclose(alone[0], together[index], rtol=0, atol=1e-5)
    assert engine.run(*(np.repeat(array, 4, axis=0) for array in (latents, timesteps, contexts))).shape[0] == 8


def test_a_closed_engine_does_not_run(engine: Engine) -> None:
    """Closing forgets the weights."""
    engine.close()

    with pytest.raises(Internal):
        answers(engine)


BASE_ANSWER = np.ones((2, 3), dtype=np.float32)


@pytest.mark.parametrize(("error", "verdict"), [(0.0, 0.0), (0.05, 0.05), (0.099, 0.099), (0.11, None), (1.0, None)])
def test_probe_ratio_is_the_error_over_the_effect(error: float, verdict: float | None) -> None:
    """Below a tenth of the tuning's effect passes with its ratio; above fails."""
    probe = Probe(0, 2 * BASE_ANSWER, BASE_ANSWER)
    answer = (2 - error) * BASE_ANSWER

    if verdict is None:
        with pytest.raises(DataLoss):
            probe_ratio(answer, probe)
    else:
        assert probe_ratio(answer, probe) == pytest.approx(verdict, abs=1e-6)


@pytest.mark.parametrize("effect", [0.0, 1e-6])
def test_an_effect_below_rounding_is_too_small_to_verify(effect: float) -> None:
    """It is reported as such if the answer is right, and fails if it is not."""
    probe = Probe(0, BASE_ANSWER + np.float32(effect), BASE_ANSWER)

    assert probe_ratio(BASE_ANSWER, probe) == TOO_SMALL
    with pytest.raises(DataLoss):
        probe_ratio(BASE_ANSWER * np.float32(1.001), probe)


@pytest.mark.parametrize("effect", [4.0, 8.0, 14.0])
def test_an_error_of_rounding_is_no_failure_however_small_the_effect(effect: float) -> None:
    """In fp16 the effect may be a few roundings: one of error passes with its ratio, weights left behind never do."""
    rounding = 1e-3
    expected = np.full((2, 3), 1.0, dtype=np.float32)
    probe = Probe(0, expected, expected * np.float32(1 + effect * rounding))

    passed = probe_ratio(expected * np.float32(1 + 1.2 * rounding), probe, rounding)

    assert passed == pytest.approx(1.2 / effect, rel=1e-2)
    for error in (1.8, effect / 2, effect):
        if error > max(1.5, 0.1 * effect):
            with pytest.raises(DataLoss):
                probe_ratio(expected * np.float32(1 + error * rounding), probe, rounding)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["answer", "expected", "base"])
def test_a_probe_that_is_not_finite_fails(where: str, value: float) -> None:
    """NaN compares as neither too large nor small enough, so it has a check of its own."""
    arrays = {name: np.array(BASE_ANSWER) for name in ("answer", "expected", "base")}
    arrays["expected"] *= 2
    arrays[where][0, 0] = value

    with pytest.raises(DataLoss, match="finite"):
        probe_ratio(arrays["answer"], Probe(0, arrays["expected"], arrays["base"]))


def test_a_probe_of_another_shape_fails() -> None:
    """An answer that only broadcasts to the expected shape is no answer."""
    with pytest.raises(DataLoss):
        probe_ratio(BASE_ANSWER, Probe(0, 2 * BASE_ANSWER[:1], BASE_ANSWER))
