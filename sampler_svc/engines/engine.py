"""An engine is a denoiser in a runtime, built once, whose weights can be replaced while it is loaded.

The base class keeps these promises for every backend:

1. `refit` checks names, shapes, dtypes and finiteness before it changes anything: no runtime checks enough.
2. `weights` is None from the first write until the probe has proven the new weights. Such an engine does not run.
3. A refit that fails raises, and leaves `weights` None. The owner replaces the engine.
4. `refit` never overlaps `run`: the caller of either holds the lease (sampler_svc/engines/pool.py).
5. Refitting A, B, then A gives A again, and refitting the base weights gives a fresh engine's answers.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitune.base_model import BaseModelSpec, TensorSpec, check_side
from unitune.diffusion.conditioning import denoiser_inputs
from unitune.errors import DataLoss, Internal
from unitune.weights import probe_input

BASE = "base"  # the id of the base model's own weights; tuned ones have a digest
MAX_PROBE_RATIO = 0.1  # of the tuning's effect; fp32 gives about 1e-4, old weights give 1
# fp32 runtimes differ by 1e-6 of the output. An effect below three times this cannot be told from rounding.
ROUNDING = 1e-5
MAX_ROUNDING = 1.5  # times an engine's rounding: an error up to this is rounding, however small the effect
TOO_SMALL = -1.0  # the probe ratio of an effect that cannot be told from rounding

Array = NDArray[np.float32]
Tensors = Mapping[str, NDArray[np.generic]]


class BackendMissing(Exception):
    """A backend cannot be used on this machine. The message says what is missing and what to do."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine's inputs and output, and all of its tensors, which can be refitted by name."""

    latent: tuple[int, int, int]  # channels, height, width: those of the probe; what is shown beside latents is in them
    context: tuple[int, int]  # rows, width of a prompt's conditioning (unitune.diffusion.conditioning)
    tensors: Mapping[str, TensorSpec]
    has_noise_level: bool = False  # beside each timestep, as super-resolution has it
    step: int = 0  # heights and widths of other latents are multiples of it; 0: only those of the probe
    pooled_width: int = 0  # of the last row; 0: there is no pooled embedding
    pixels: int = 0  # of a side of the picture for one of the latent's; read only with a pooled embedding
    out_channels: int = 0  # of the output; 0: as many as the latents have

    @classmethod
    def from_model(cls, model: BaseModelSpec) -> "EngineSpec":
        """The engine of a base model's denoiser."""
        return cls(
            latent=(model.input_channels, *model.latent_side),
            context=model.conditioning,
            tensors=model.tensors,
            step=model.latent_step,
            pooled_width=model.pooled_width,
            pixels=model.image_side[0] // model.latent_side[0],
            out_channels=model.latent_channels,
        )

    def inputs(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> dict[str, NDArray[Any]]:
        """The graph's inputs for a run, by name."""
        return denoiser_inputs(latents, timesteps, contexts, self.pooled_width, self.pixels)

    def blank_inputs(self, batch: int) -> dict[str, NDArray[Any]]:
        """The same, zeros, of a run of `batch` rows: their shapes and types."""
        latents, contexts = (np.zeros((batch, *shape), dtype=np.float32) for shape in (self.latent, self.context))
        return self.inputs(latents, np.zeros(batch, dtype=np.int64), contexts)

    def blank_output(self, batch: int) -> Array:
        """Zeros in the output's shape, of the same run."""
        channels, *side = self.latent
        return np.zeros((batch, self.out_channels or channels, *side), dtype=np.float32)

    def check_latents(self, latents: Array) -> None:
        """Raises ValueError for latents of another shape than (n, channels, h, w), or of a size that is not run."""
        channels, *side = self.latent
        found = list(latents.shape[1:])
        is_right = [channels, *side] == found
        if self.step and len(found) == 3:
            is_right = found[0] == channels and all(size > 0 and size % self.step == 0 for size in found[1:])
        if not is_right:
            sizes = f"height and width multiples of {self.step}" if self.step else f"{side[0]}x{side[1]}"
            raise ValueError(f"latents of {found} do not fit: they must have {channels} channels, {sizes}")

    @property
    def check_side(self) -> tuple[int, int]:
        """Height and width of the latents that a build checks refits with."""
        _, *side = self.latent
        return check_side((side[0], side[1]), self.step, sum(tensor.size_bytes for tensor in self.tensors.values()))

    def question(self, seed: int, side: tuple[int, int] | None = None) -> "tuple[Array, NDArray[np.int64], Array]":
        """The probe's latents, of the model's own height and width or of `side`, its timesteps and contexts."""
        channels, *own = self.latent
        found = probe_input(
            seed, channels, side or (own[0], own[1]), self.context, has_noise_level=self.has_noise_level
        )
        return found["sample"], found["timestep"], found["encoder_hidden_states"]


@dataclass(frozen=True)
class Probe:
    """Proves a refit: the answers of the new weights and of the base weights to `probe_input(seed, ...)`."""

    seed: int
    expected: Array
    base: Array
    side: tuple[int, int] | None = None  # height and width of its latents; None: the model's own, as for all tunings


@dataclass(frozen=True)
class WeightSet:
    """A complete set: every tensor of the spec by PyTorch name, in PyTorch's shape, and the probe that proves them."""

    id: str  # digest of the weights file, or BASE
    tensors: Tensors
    probe: Probe


@dataclass(frozen=True)
class RefitReport:
    """The cost of a refit, and how well it is proven."""

    write_s: float
    probe_s: float
    size_bytes: int
    probe_ratio: float  # error over the tuning's effect; negative if the effect was too small to verify


class Engine(ABC):
    """One loaded engine. It holds one set of weights at a time and serves one caller at a time."""

    rounding = ROUNDING  # the rounding error of an answer, as a share of it

    def __init__(self, spec: EngineSpec, known: Tensors | None = None) -> None:
        """`known` are read-only arrays that were checked before: refits do not check them again."""
        self.spec = spec
        self._known = known or {}
        self.weights: str | None = None  # id of the weights inside; None is unknown: the engine must not run
        self.probe_answer: Array | None = None  # of the last refit

    def refit(self, weights: WeightSet) -> RefitReport:
        """Replace all weights, and prove that the new ones are in use.

        Raises DataLoss (WEIGHTS_CORRUPT) when the tensors are not those of the spec, and when the probe fails.
        """
        began = time.perf_counter()
        tensors = self._checked(weights.tensors)
        self.weights = None
        self._write(tensors)
        written = time.perf_counter()
        ratio = self._prove(weights.probe)
        self.weights = weights.id
        size_bytes = sum(spec.size_bytes for spec in self.spec.tensors.values())
        return RefitReport(written - began, time.perf_counter() - written, size_bytes, ratio)

    def run(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        """The denoiser's output for latents (n, channels, h, w), timesteps (n,) and contexts (n, *context); n is free,
        h and w as `EngineSpec.step` says. With `has_noise_level` timesteps are (n, 2), and the output has half the
        channels.

        Raises Internal (WEIGHTS_UNKNOWN) after a refit that failed, and ValueError for latents of another size.
        """
        self.spec.check_latents(latents)
        if self.weights is None:
            raise Internal("the engine holds unknown weights", reason="WEIGHTS_UNKNOWN")
        return self._compute(latents, timesteps, contexts)

    def rest(self) -> None:  # noqa: B027  (most engines hold nothing that could go)
        """Give back memory that only a run needs. The next run takes it again."""

    @abstractmethod
    def close(self) -> None:
        """Free the engine's resources. It does not run again."""

    def _checked(self, tensors: Tensors) -> Tensors:
        """The tensors, each decoded once, after `check_tensors`; the engine is as it was."""
        tensors = dict(tensors)
        check_tensors(self.spec, tensors, self._known)
        return tensors

    @abstractmethod
    def _write(self, tensors: Tensors) -> None:
        """Replace all weights. The caller's arrays are never written to."""

    @abstractmethod
    def _compute(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        """Run the network."""

    def _prove(self, probe: Probe) -> float:
        self.probe_answer = self._compute(*self.spec.question(probe.seed, probe.side))
        return probe_ratio(self.probe_answer, probe, self.rounding)


def size_of(tensors: Tensors) -> int:
    """Bytes of arrays."""
    return sum(tensor.nbytes for tensor in tensors.values())


def check_tensors(spec: EngineSpec, tensors: Tensors, known: Tensors | None = None) -> None:
    """Raises DataLoss (WEIGHTS_CORRUPT) unless these are exactly the spec's tensors, of its shapes and dtypes, finite.

    Arrays that are `known` under the same name were found finite before.
    """
    check_names(spec, tensors)
    for name in spec.tensors:
        check_tensor(spec, name, tensors[name], known)


def check_names(spec: EngineSpec, tensors: Tensors) -> None:
    """Raises DataLoss (WEIGHTS_CORRUPT) unless the tensors have the spec's names."""
    missing, unknown = spec.tensors.keys() - tensors.keys(), tensors.keys() - spec.tensors.keys()
    if missing or unknown:
        raise corrupt(f"{len(missing)} tensors are missing and {len(unknown)} unknown", min(missing | unknown))


def check_tensor(spec: EngineSpec, name: str, tensor: NDArray[np.generic], known: Tensors | None = None) -> None:
    """The same for one tensor: its shape, its dtype, and that its values are finite."""
    wanted = spec.tensors[name]
    if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
        found = f"{tensor.dtype}{list(tensor.shape)}"
        raise corrupt(f"a tensor is {found} and must be {wanted.dtype}{list(wanted.shape)}", name)
    if tensor is not (known or {}).get(name) and not np.isfinite(tensor).all():
        raise corrupt("a tensor holds values that are not finite", name)


def probe_ratio(answer: Array, probe: Probe, rounding_share: float = ROUNDING) -> float:
    """||answer - expected|| / ||base - expected||: 0 is perfect, 1 means that the base weights are still there.

    It must be below MAX_PROBE_RATIO, or the error must be no more than rounding, which is `rounding_share` of the
    answer. An effect below three times rounding is TOO_SMALL to verify: then the error must be below that, too. Raises
    DataLoss (WEIGHTS_CORRUPT) otherwise.
    """
    if answer.shape != probe.expected.shape or answer.shape != probe.base.shape:
        raise corrupt(f"the probe's answer is {list(answer.shape)} and must be {list(probe.expected.shape)}")
    if not (np.isfinite(answer).all() and np.isfinite(probe.expected).all() and np.isfinite(probe.base).all()):
        raise corrupt("the probe's answer is not finite")
    error, effect, rounding = (
        float(np.linalg.norm(array.astype(np.float64)))
        for array in (answer - probe.expected, probe.base - probe.expected, rounding_share * probe.expected)
    )
    if effect < 3 * rounding:
        if error > 3 * rounding:
            raise corrupt(f"the probe's answer is {error / rounding:.3g} times rounding away from the tuner's")
        return TOO_SMALL
    if error / effect >= MAX_PROBE_RATIO and error > MAX_ROUNDING * rounding:
        raise corrupt(f"the probe's ratio is {error / effect:.3g} and must be below {MAX_PROBE_RATIO}")
    return error / effect


def corrupt(what: str, tensor: str = "") -> DataLoss:
    """The error for weights that cannot be used, with the reason."""
    where = f" ({tensor})" if tensor else ""
    return DataLoss(f"the weights cannot be used: {what}{where}", reason="WEIGHTS_CORRUPT")
