"""The engine with control over attention: the plain engine's weights, refits and answers."""

from pathlib import Path

import numpy as np
import pytest

from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.engine import EngineSpec, WeightSet
from sampler_svc.model import Model
from tests.sampler_svc.tunings import Tunings
from unitune.attention import no_controls
from unitune.base_model import BaseModelSpec
from unitune.errors import Internal


def question(spec: BaseModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random input for a batch."""
    rng = np.random.default_rng(1)
    return (
        rng.standard_normal((batch, spec.latent_channels, *spec.latent_side), dtype=np.float32),
        rng.integers(0, 1000, batch),
        rng.standard_normal((batch, spec.context_tokens, spec.context_width), dtype=np.float32),
    )


def test_it_takes_the_same_weights_and_answers_alike(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings
) -> None:
    """Base, tuned and base again: each proven by its own probe, and off the plain engine's answer by at most 1e-5."""
    engine_spec = EngineSpec.from_model(spec)
    plain, controlled = OrtEngine(engine_folder, engine_spec, 1), ControlledEngine(engine_folder, engine_spec, 1)
    asked = question(spec, 4)
    answers = []
    for weights in (base, tunings.weights(1), base):
        plain.refit(weights)
        controlled.refit(weights)
        answers.append(controlled.run(*asked))
        assert np.abs(plain.run(*asked) - answers[-1]).max() <= 1e-5

    assert np.array_equal(answers[0], answers[2])
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_it_does_not_run_with_unknown_weights(engine_folder: Path, spec: BaseModelSpec) -> None:
    """Before the first refit a controlled run is refused like a plain one."""
    engine = ControlledEngine(engine_folder, EngineSpec.from_model(spec), 1)
    with pytest.raises(Internal, match="unknown weights"):
        engine.run_controlled(*question(spec, 1), no_controls(1, spec.context_tokens))


def test_the_model_opens_it_when_it_is_first_leased(model: Model) -> None:
    """Nothing of it is loaded before; then the pool proves its weights as those of any engine."""
    assert model.controlled._slots[0].engine is None
    with model.controlled.lease("base", lambda: model.base) as lease:
        assert isinstance(lease.engine, ControlledEngine)
        assert not lease.warm and lease.engine.weights == "base"
    with model.controlled.lease("base", lambda: model.base) as lease:
        assert lease.warm
