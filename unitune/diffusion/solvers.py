"""Schedulers by name: the noise levels of a run, and the solver that steps from one to the next.

Tests compare each of them, step by step, with the scheduler of the same name in diffusers, whose conventions hold here.
Latents always have variance 1 (variance preserving), as the network needs them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unitune.diffusion.denoiser import Prediction
from unitune.diffusion.schedule import Latents, Levels, Schedule, add_noise, num_late_steps, spaced_timesteps

SMALLEST_SIGNAL = 2.0**-24  # alpha_cumprod that stands for pure noise where sigma must be finite
ORIGINAL_STEPS = 50  # of the solver that consistency models were distilled from: LCM's and TCD's
OWN_TIMESTEPS = ("lcm", "tcd")  # schedulers that choose among these steps' timesteps, whatever the spacing
DEFAULT_TCD_GAMMA = 0.3  # of the paper, and of diffusers, which calls it eta
# Of latent consistency models (arXiv 2310.04378): their data's standard deviation, and the scale of the timesteps in
# their boundary conditions.
LCM_SIGMA_DATA = 0.5
LCM_TIMESTEP_SCALING = 10.0

Draw = Callable[[], Latents]  # fresh standard normal noise of the latents' shape


class Solver(Protocol):
    """Moves latents from a level (alpha_cumprod) to the next. A solver may remember steps: use one for each run."""

    def step(self, latents: Latents, prediction: Prediction, level: float, next_level: float) -> Latents:
        """The latents at the next level, from those at this level and their prediction."""


class FirstOrder:
    """DDIM with eta 0 (Song et al., 2021, equation 12).

    Euler's step in sigma (Karras et al., 2022, algorithm 1) is the same step.
    """

    def step(self, latents: Latents, prediction: Prediction, level: float, next_level: float) -> Latents:
        """Renoise the denoised latents with the predicted noise."""
        return _renoised(prediction, next_level)


class Ancestral:
    """Ancestral sampling with Euler's step: part of a level's noise is drawn afresh, as much as the training noise has
    between the two levels (Ho et al., 2020, equation 7, in the form of k-diffusion)."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def step(self, latents: Latents, prediction: Prediction, level: float, next_level: float) -> Latents:
        """The denoised latents with the predicted noise and fresh noise; the last step has neither, and draws none."""
        if next_level == 1:
            return prediction.denoised
        # Of the next level's noise in signal's units: its square, and the share of that which the prediction keeps.
        noise = (1 - next_level) / next_level
        kept = min(noise * level / (1 - level), 1.0)
        old = math.sqrt(noise * kept) * prediction.epsilon
        return math.sqrt(next_level) * (prediction.denoised + old + math.sqrt(noise * (1 - kept)) * self._draw())


class MultistepSecondOrder:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), first order at the first step and at the last."""

    def __init__(self) -> None:
        self._last: tuple[Latents, float] | None = None  # denoised, and half the log SNR there

    def step(self, latents: Latents, prediction: Prediction, level: float, next_level: float) -> Latents:
        """Extrapolate the denoised latents from this step and the last; the part linear in the latents is exact."""
        denoised, here, there = prediction.denoised, _half_log_snr(level), _half_log_snr(next_level)
        estimate = denoised
        if self._last is not None and next_level < 1:
            last_denoised, last = self._last
            # With as many steps as timesteps a level may come twice; then nothing can be extrapolated.
            ratio = (there - here) / (here - last) if here > last else 0.0
            estimate = denoised + ratio / 2 * (denoised - last_denoised)
        self._last = denoised, here
        kept = math.sqrt((1 - next_level) / (1 - level))
        return kept * latents - math.sqrt(next_level) * math.expm1(here - there) * estimate


@dataclass(frozen=True)
class DenoisingRun:
    """The steps of a run in order: `timesteps` (n,) for the network, and the levels (n,) before and after each."""

    timesteps: NDArray[np.int64]
    levels: Levels
    next_levels: Levels
    jumps: Levels | None = None  # (n,), of TCD: the levels that each step jumps to, before it is noised to the next

    def __len__(self) -> int:
        return len(self.timesteps)

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        """(timestep, level, next level) of each step."""
        return zip(self.timesteps.tolist(), self.levels.tolist(), self.next_levels.tolist(), strict=True)

    def late(self, strength: float) -> "DenoisingRun":
        """The last int(n * strength) steps, possibly none."""
        first = len(self) - num_late_steps(len(self), strength)
        jumps = self.jumps[first:] if self.jumps is not None else None
        return DenoisingRun(self.timesteps[first:], self.levels[first:], self.next_levels[first:], jumps)


class Consistency:
    """Multistep consistency sampling (Song et al., 2023, algorithm 1), as latent consistency models sample.

    Each step jumps to the clean latents and noises them afresh to the next level.
    """

    def __init__(self, run: DenoisingRun, draw: Draw) -> None:
        self._timesteps = iter(run.timesteps.tolist())
        self._draw = draw

    def step(self, latents: Latents, prediction: Prediction, level: float, next_level: float) -> Latents:
        """f(x, t) = c_skip(t) x + c_out(t) x0, noised; the last step draws nothing."""
        scaled = LCM_TIMESTEP_SCALING * next(self._timesteps)
        length = math.hypot(scaled, LCM_SIGMA_DATA)
        c_skip, c_out = (LCM_SIGMA_DATA / length) ** 2, scaled / length
        clean = c_skip * latents + c_out * prediction.denoised
        return clean if next_level == 1 else add_noise(clean, self._draw(), next_level)


class TrajectoryConsistency:
    """Strategic stochastic sampling of trajectory consistency distillation (Zheng et al., 2024, algorithm 4).

    Each step jumps along the trajectory to a level that is cleaner than the next one, and is noised up to that.
    """

    def __init__(self, run: DenoisingRun, draw: Draw) -> None:
        """Raises ValueError for a run of another scheduler."""
        if run.jumps is None:
            raise ValueError("the run has no levels to jump to: tcd_run makes it")
        self._jumps = iter(run.jumps.tolist())
        self._draw = draw

    def step(self, latents: Latents, prediction: Prediction, level: float, next_level: float) -> Latents:
        """The predicted latents at the jump's level, noised; where that is the next level nothing is drawn."""
        jump = next(self._jumps)
        there = _renoised(prediction, jump)
        return there if jump == next_level else add_noise(there, self._draw(), next_level / jump)


@dataclass(frozen=True)
class Scheduler:
    """A scheduler: the levels of a run, and a solver for that run, which may draw noise."""

    run: Callable[[Schedule, int], DenoisingRun]
    solver: Callable[[DenoisingRun, Draw], Solver]


def ddim_run(schedule: Schedule, num_inference_steps: int) -> DenoisingRun:
    """DDIM's levels: each step goes T // N timesteps down, the last one to the schedule's final level."""
    timesteps = spaced_timesteps(schedule, num_inference_steps, past_the_end=0)
    after = timesteps - len(schedule) // num_inference_steps
    next_levels = np.where(after >= 0, schedule.alphas_cumprod[after], schedule.final_alpha_cumprod)
    return DenoisingRun(timesteps, schedule.alphas_cumprod[timesteps], next_levels)


def euler_run(schedule: Schedule, num_inference_steps: int) -> DenoisingRun:
    """Each step goes to the next timestep's level, the last one to no noise."""
    return _chained(schedule, spaced_timesteps(schedule, num_inference_steps, past_the_end=0))


def dpmpp_run(schedule: Schedule, num_inference_steps: int) -> DenoisingRun:
    """Like Euler's, over timesteps that count the end as another one."""
    return _chained(schedule, spaced_timesteps(schedule, num_inference_steps, past_the_end=1))


def lcm_run(schedule: Schedule, num_inference_steps: int) -> DenoisingRun:
    """Evenly chosen from the timesteps that the model was distilled on, the last one to no noise.

    Raises ValueError for more steps than ORIGINAL_STEPS.
    """
    return _chained(schedule, _distilled_timesteps(schedule, num_inference_steps))


def tcd_run(schedule: Schedule, num_inference_steps: int, gamma: float = DEFAULT_TCD_GAMMA) -> DenoisingRun:
    """The same timesteps as LCM's, the last one to timestep 0. Each step jumps to the share 1 - gamma of the next
    timestep. Raises ValueError as `lcm_run`."""
    timesteps = _distilled_timesteps(schedule, num_inference_steps)
    after = np.append(timesteps[1:], 0)
    levels = schedule.alphas_cumprod[timesteps]
    levels = np.where(levels == 0, SMALLEST_SIGNAL, levels)
    jumps = schedule.alphas_cumprod[np.floor((1 - gamma) * after).astype(np.int64)]
    return DenoisingRun(timesteps, levels, schedule.alphas_cumprod[after], jumps)


SCHEDULERS = {
    "ddim": Scheduler(ddim_run, lambda run, draw: FirstOrder()),
    "euler": Scheduler(euler_run, lambda run, draw: FirstOrder()),
    "dpmpp_2m": Scheduler(dpmpp_run, lambda run, draw: MultistepSecondOrder()),
    "lcm": Scheduler(lcm_run, Consistency),
    "euler_ancestral": Scheduler(euler_run, lambda run, draw: Ancestral(draw)),
    "tcd": Scheduler(tcd_run, TrajectoryConsistency),
}


def scheduler_of(name: str, tcd_gamma: float = DEFAULT_TCD_GAMMA) -> Scheduler:
    """A scheduler by its name. `tcd_gamma` is read by `tcd` alone."""
    return Scheduler(partial(tcd_run, gamma=tcd_gamma), TrajectoryConsistency) if name == "tcd" else SCHEDULERS[name]


def _distilled_timesteps(schedule: Schedule, num_inference_steps: int) -> NDArray[np.int64]:
    """Evenly chosen from the timesteps 20k - 1 of the steps that consistency models are distilled from, falling."""
    if not 1 <= num_inference_steps <= ORIGINAL_STEPS:
        names = " and ".join(OWN_TIMESTEPS)
        raise ValueError(f"num_inference_steps is {num_inference_steps}: it must be 1 to {ORIGINAL_STEPS} with {names}")
    distilled = np.arange(ORIGINAL_STEPS, 0, -1) * (len(schedule) // ORIGINAL_STEPS) - 1
    return distilled[np.linspace(0, ORIGINAL_STEPS, num_inference_steps, endpoint=False).astype(np.int64)]


def _renoised(prediction: Prediction, level: float) -> Latents:
    """The denoised latents with the predicted noise, at a level."""
    return math.sqrt(level) * prediction.denoised + math.sqrt(1 - level) * prediction.epsilon


def _chained(schedule: Schedule, timesteps: NDArray[np.int64]) -> DenoisingRun:
    levels = schedule.alphas_cumprod[timesteps]
    levels = np.where(levels == 0, SMALLEST_SIGNAL, levels)
    return DenoisingRun(timesteps, levels, np.append(levels[1:], 1.0))


def _half_log_snr(level: float) -> float:
    """lambda of DPM-Solver: log(sqrt(alpha_cumprod) / sqrt(1 - alpha_cumprod))."""
    return math.inf if level == 1 else (math.log(level) - math.log1p(-level)) / 2
