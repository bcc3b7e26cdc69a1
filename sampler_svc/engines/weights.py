"""Complete sets of weights for a refit: the base model's, and a tuning's, completed from those.

A weights file holds only tensors that a tuning may change. A refit always replaces all of them: otherwise tensors of
the previous tuning would stay.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from sampler_svc.engines.engine import BASE, Array, Probe, Tensors, WeightSet
from sampler_svc.engines.folder import BASE_PROBE_SEED, PROBE_FILE, stage_probe_file
from unitune.base_model import BaseModelSpec, SuperResolutionSpec
from unitune.codecs import DecodedTensors
from unitune.errors import DataLoss, FailedPrecondition
from unitune.tensor_file import map_tensors
from unitune.weights import (
    FAST_LORA_TUNED,
    PROBE_BASE,
    PROBE_TUNED,
    TunedWeights,
    base_probe,
    tuned_probe,
)

_WITH_FAST_LORA = "+fast_lora"  # ends the id of a set


@dataclass(frozen=True)
class CompletedTensors(Mapping[str, NDArray[Any]]):
    """A tuning's tensors, and the base model's where it has none."""

    tuned: Mapping[str, NDArray[Any]]
    base: Tensors

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.tuned[name] if name in self.tuned else self.base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.base, *self.tuned)))

    def __len__(self) -> int:
        return len(self.base.keys() | self.tuned.keys())


@dataclass(frozen=True)
class FastLoraChanges:
    """The base model's fast LoRA: its changes as unitune.codecs stores them, and what proves them."""

    stored: Tensors
    answer: Array  # of the base model with these changes to a probe of BASE_PROBE_SEED
    base_answer: Array  # the same without them

    @classmethod
    def read(cls, folder: Path, spec: BaseModelSpec) -> "FastLoraChanges | None":
        """That of an engine folder, if the base model has one. It lies in the file's memory map."""
        if spec.fast_lora is None:
            return None
        tensors = map_tensors(folder / spec.fast_lora.weights)
        answer, base_answer = tensors.pop(PROBE_TUNED), tensors.pop(PROBE_BASE)
        return cls(tensors, answer, base_answer)

    def added_to(self, base: WeightSet) -> WeightSet:
        """The base model's weights with its changes."""
        # As strict as of the base weights alone: a tuning that is still there shows, however small it is.
        probe = Probe(BASE_PROBE_SEED, self.answer, self.answer)
        return WeightSet(with_fast_lora(base.id), self._completed(base.tensors), probe)

    def added_to_tuned(self, tuned: TunedWeights, plain: WeightSet) -> WeightSet:
        """A tuning's weights, of which `plain` is the set, with its changes. Raises DataLoss (WEIGHTS_CORRUPT) for a
        tuning without the tuner's answer with both.

        The refit must be told from the tuning alone and from the LoRA alone: the probe's base is the nearer of them.
        """
        try:
            expected = tuned.extras[FAST_LORA_TUNED]
        except KeyError as error:
            raise DataLoss("the stored weights carry no probe with the fast LoRA", reason="WEIGHTS_CORRUPT") from error
        alone = [one for one in (plain.probe.expected, self.answer) if one.shape == expected.shape]
        nearest = min(alone, key=lambda answer: float(np.linalg.norm(answer - expected)), default=plain.probe.expected)
        probe = Probe(tuned.manifest.probe_seed, expected, nearest)
        return WeightSet(with_fast_lora(plain.id), self._completed(plain.tensors), probe)

    def _completed(self, tensors: Tensors) -> Tensors:
        return CompletedTensors(DecodedTensors(self.stored, tensors, "lora"), tensors)


def with_fast_lora(weights: str) -> str:
    """The id of a set with the fast LoRA's changes."""
    return f"{weights}{_WITH_FAST_LORA}"


def tunings_of(ids: Iterable[str]) -> list[str]:
    """The tunings of sets, by their digests, each once."""
    return sorted({one.removesuffix(_WITH_FAST_LORA) for one in ids} - {BASE})


def base_weights(folder: Path, spec: BaseModelSpec) -> WeightSet:
    """The base model's weights in an engine folder. They are shared and read-only, and lie in the file's memory map."""
    return _read_base(folder / spec.base_weights, folder / PROBE_FILE)


def super_resolution_weights(folder: Path, stage: SuperResolutionSpec) -> WeightSet:
    """The same for a super-resolution stage."""
    return _read_base(folder / stage.weights, folder / stage_probe_file(stage.name))


def _read_base(weights: Path, probe: Path) -> WeightSet:
    answer = load_file(probe)["base"]
    _, _, height, width = answer.shape
    return WeightSet(BASE, map_tensors(weights), Probe(BASE_PROBE_SEED, answer, answer, (height, width)))


def tuned_weights(tuned: TunedWeights, base: WeightSet, base_model: str) -> WeightSet:
    """A tuning's weights, completed from the base model's. Each is decoded when it is asked for, and not kept.

    Raises FailedPrecondition (BASE_MODEL_MISMATCH) for a tuning of another base model, and DataLoss (WEIGHTS_CORRUPT)
    for an unknown codec and for tensors that cannot be decoded.
    """
    probe = Probe(tuned.manifest.probe_seed, tuned.probe_tuned, tuned.probe_base)
    return _complete(tuned, tuned.denoiser_tensors(), probe, base, base_model)


def tuned_super_resolution(tuned: TunedWeights, stage: str, base: WeightSet, base_model: str) -> WeightSet:
    """The same for a super-resolution stage, from weights that tune it. Raises as `tuned_weights`."""
    try:
        answers = tuned.extras[tuned_probe(stage)], tuned.extras[base_probe(stage)]
    except KeyError as error:
        raise DataLoss(f"the stored weights carry no probe for {stage}", reason="WEIGHTS_CORRUPT") from error
    probe = Probe(tuned.manifest.probe_seed, *answers)
    return _complete(tuned, tuned.stage_tensors(stage), probe, base, base_model)


def _complete(tuned: TunedWeights, stored: Tensors, probe: Probe, base: WeightSet, base_model: str) -> WeightSet:
    if tuned.manifest.base_model != base_model:
        raise FailedPrecondition("the weights were tuned from another base model", reason="BASE_MODEL_MISMATCH")
    tensors = DecodedTensors(stored, base.tensors, tuned.manifest.codec)
    return WeightSet(tuned.manifest.digest, CompletedTensors(tensors, base.tensors), probe)
