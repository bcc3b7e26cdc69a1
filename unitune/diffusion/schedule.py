"""The noise schedule: timestep <-> alpha_cumprod <-> sigma, and the steps that a strength leaves.

A noised latent is sqrt(alpha_cumprod) * latent + sqrt(1 - alpha_cumprod) * noise (Ho et al., 2020). sigma is noise
over signal, as in EDM (Karras et al., 2022).
"""

import copy
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]  # (n, channels, height, width)
Levels = NDArray[np.float64]  # alpha_cumprod, in [0, 1]

COSINE_OFFSET = 0.008  # of the cosine schedule, Nichol and Dhariwal, 2021
MAX_COSINE_BETA = 0.999
SPACINGS = ("leading", "trailing", "linspace")


class Schedule:
    """The training noise schedule; its arguments are those of diffusers' scheduler_config.json."""

    def __init__(
        self,
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 1,
        set_alpha_to_one: bool = False,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        """Raises ValueError for a name that is not known."""
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type is {prediction_type!r}: it must be epsilon, v_prediction or sample")
        self.prediction_type = prediction_type
        self.timestep_spacing = _known_spacing(timestep_spacing)
        self.steps_offset = steps_offset
        betas = _betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
        levels: Levels = np.cumprod(1 - betas, dtype=np.float64)
        self.alphas_cumprod = _zero_terminal_snr(levels) if rescale_betas_zero_snr else levels
        self.final_alpha_cumprod = 1.0 if set_alpha_to_one else float(self.alphas_cumprod[0])

    def __len__(self) -> int:
        """The number of training timesteps."""
        return len(self.alphas_cumprod)

    def spaced(self, timestep_spacing: str) -> "Schedule":
        """The schedule with the timestep spacing of one run; an empty one keeps the schedule's own."""
        if not timestep_spacing:
            return self
        other = copy.copy(self)
        other.timestep_spacing = _known_spacing(timestep_spacing)
        return other


def sigma(alphas_cumprod: Levels) -> NDArray[np.float64]:
    """sqrt((1 - alpha_cumprod) / alpha_cumprod); inf at pure noise."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def add_noise(latents: Latents, noise: Latents, alpha_cumprod: float) -> Latents:
    """Latents noised to a level: the start of an edit (SDEdit, Meng et al., 2022)."""
    return math.sqrt(alpha_cumprod) * latents + math.sqrt(1 - alpha_cumprod) * noise


def num_late_steps(num_inference_steps: int, strength: float) -> int:
    """The number of steps that a late start runs: the last int(N * strength), as in diffusers' img2img."""
    return min(int(num_inference_steps * strength), num_inference_steps)


def spaced_timesteps(schedule: Schedule, num_inference_steps: int, *, past_the_end: Literal[0, 1]) -> NDArray[np.int64]:
    """The timesteps of a run from the noisiest level, falling (Table 2 of Lin et al., 2024).

    `past_the_end` is 1 for solvers that count the end of the run as another timestep. Raises ValueError unless
    1 <= num_inference_steps <= the number of training timesteps.
    """
    total = len(schedule)
    if not 1 <= num_inference_steps <= total:
        raise ValueError(f"num_inference_steps is {num_inference_steps}: it must be 1 to {total}")
    if schedule.timestep_spacing == "linspace":
        points = np.linspace(0, total - 1, num_inference_steps + past_the_end).round().astype(np.int64)
        return points[past_the_end:][::-1]
    if schedule.timestep_spacing == "trailing":
        falling = np.arange(total, 0, -total / num_inference_steps)[:num_inference_steps]
        return falling.round().astype(np.int64) - 1
    ratio = max(total // (num_inference_steps + past_the_end), 1)
    points = np.arange(past_the_end, num_inference_steps + past_the_end)[::-1] * ratio
    # The offset is smaller if the first timestep would be beyond the training schedule.
    return points + min(schedule.steps_offset, total - 1 - int(points[0]))


def _known_spacing(timestep_spacing: str) -> str:
    if timestep_spacing not in SPACINGS:
        raise ValueError(f"timestep_spacing is {timestep_spacing!r}: it must be leading, trailing or linspace")
    return timestep_spacing


def _betas(kind: str, total: int, start: float, end: float) -> NDArray[np.float64]:
    if kind == "linear":
        return np.linspace(start, end, total)
    if kind == "scaled_linear":
        return np.square(np.linspace(math.sqrt(start), math.sqrt(end), total))
    if kind == "squaredcos_cap_v2":
        levels = np.array([_cosine(index / total) for index in range(total + 1)])
        return np.minimum(1 - levels[1:] / levels[:-1], MAX_COSINE_BETA)
    raise ValueError(f"beta_schedule is {kind!r}: it must be linear, scaled_linear or squaredcos_cap_v2")


def _cosine(fraction: float) -> float:
    return math.cos((fraction + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2


def _zero_terminal_snr(alphas_cumprod: Levels) -> Levels:
    """Shift and scale the signal so that the noisiest level has none (Algorithm 1 of Lin et al., 2024)."""
    signal = np.sqrt(alphas_cumprod)
    scaled: Levels = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return np.square(scaled)
