"""Tuned weights to test with: random changes of some tensors, with the probe's true answers from torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sampler_svc.engines.engine import BASE, Engine, EngineSpec, Probe, WeightSet
from sampler_svc.engines.weights import tuned_weights
from tests.sampler_svc.torch_engine import TorchEngine
from unitune import weights as weights_file
from unitune.base_model import BaseModelSpec
from unitune.weights import Manifest, probe_input

PROBE_SEED = 11


def question(spec: EngineSpec, seed: int = PROBE_SEED) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, timesteps and contexts to ask an engine."""
    channels, *side = spec.latent
    return tuple(probe_input(seed, channels, tuple(side), spec.context).values())


class UnprovenEngine(TorchEngine):
    """Torch with weights that are not proven: how a tuner computes the probe's answers."""

    def answer(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """The probe's answer of the tensors."""
        self._write(tensors)
        return self._compute(*question(self.spec))


@dataclass(frozen=True)
class Tunings:
    """Makes weights for one base model."""

    spec: BaseModelSpec
    base: WeightSet
    reference: UnprovenEngine

    @classmethod
    def from_model(cls, base_model: Path, spec: BaseModelSpec, base: WeightSet) -> "Tunings":
        """With a torch engine of the base model's folder."""
        return cls(spec, base, UnprovenEngine(base_model, EngineSpec.from_model(spec)))

    def file(self, seed: int, size: float = 0.3, names: Sequence[str] | None = None) -> tuple[bytes, Manifest]:
        """A weights file whose tensors differ from the base by a share `size` of their spread, and its manifest."""
        rng = np.random.default_rng(seed)
        changed = {
            name: (tensor + size * (tensor.std() + 1e-3) * rng.standard_normal(tensor.shape)).astype(np.float32)
            for name, tensor in ((name, self.base.tensors[name]) for name in names or self.base.tensors)
        }
        return weights_file.pack(
            changed,
            probe_tuned=self.reference.answer({**self.base.tensors, **changed}),
            probe_base=self.reference.answer(dict(self.base.tensors)),
            key=f"key-{seed}",
            base_model=self.spec.digest,
            method="unitune",
            rare_tokens="beikkpic",
            updates=8,
            probe_seed=PROBE_SEED,
        )

    def weights(self, seed: int, size: float = 0.3, names: Sequence[str] | None = None) -> WeightSet:
        """The same, read as the sampler reads it."""
        return tuned_weights(weights_file.unpack(*self.file(seed, size, names)), self.base, self.spec.digest)


def lying(weights: WeightSet, **tensors: np.ndarray) -> WeightSet:
    """The weights with other tensors in some places, and the old probe."""
    return WeightSet(weights.id, {**weights.tensors, **tensors}, weights.probe)


def base_probe(answer: np.ndarray) -> Probe:
    """What proves base weights."""
    return Probe(PROBE_SEED, answer, answer)


def answers(engine: Engine) -> np.ndarray:
    """What an engine says to the probe's question."""
    return engine.run(*question(engine.spec))


__all__ = ["BASE", "Tunings", "answers", "base_probe", "lying", "question"]
