"""The parts of every method's loop: random draws, noised latents, the loss of the denoiser."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from tuner_svc.base_model import BaseModel
from unitune.base_model import NoiseSchedule
from unitune.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Draws:
    """The random draws of one update: uniform timesteps, int64 (batch,), and normal noise (batch, channels, h, w)."""

    timesteps: Tensor
    noise: Tensor


def draw(
    batch: int, latent: Tensor, num_timesteps: int, generator: torch.Generator, *, stratified: bool = False
) -> Draws:
    """The next draws of the generator, on the latent's device.

    With `stratified`, one timestep comes from each of `batch` equal parts of the schedule. All timesteps stay equally
    likely. Every update then sees both little noise and much, so updates differ less. Kingma et al. (2021, arXiv
    2107.00630, appendix I.1) tie the parts' draws to each other; these are independent.
    """
    if stratified:
        places = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timesteps = (places * num_timesteps).long().clamp(max=num_timesteps - 1)  # a place may round up to 1
    else:
        timesteps = torch.randint(0, num_timesteps, (batch,), generator=generator)
    noise = torch.randn((batch, *latent.shape[1:]), generator=generator)
    return Draws(timesteps.to(latent.device), noise.to(latent.device))


def denoising_loss(
    model: BaseModel, weights: Mapping[str, Tensor], latent: Tensor, context: Tensor, noising: "Noising", draws: Draws
) -> Tensor:
    """Mean squared error of the denoiser, with `weights` in place of its own, at the drawn timesteps and noise.

    `latent` is (1 or batch, channels, h, w), `context` (1 or batch, rows, width).
    """
    batch = len(draws.timesteps)
    noised = noising.noised(latent, draws)
    prediction = model.predicted(noised, draws.timesteps, context.expand(batch, -1, -1), weights)
    return mse_loss(prediction.float(), noising.target(latent, draws))


class Noising:
    """x_t = a_t x + s_t e, and the denoiser's target: e, or v = a_t e - s_t x, or x."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device) -> None:
        levels = torch.from_numpy(Schedule(**vars(schedule)).alphas_cumprod)
        self._signal = levels.sqrt().float().to(device)
        self._noise = (1 - levels).sqrt().float().to(device)
        self._prediction_type = schedule.prediction_type
        self.num_timesteps = len(levels)

    def noised(self, latent: Tensor, draws: Draws) -> Tensor:
        """The latent at the drawn timesteps, (batch, channels, h, w)."""
        signal, noise = self._factors(draws.timesteps)
        return signal * latent + noise * draws.noise

    def signal(self, draws: Draws) -> Tensor:
        """The factor a_t of the latent at the drawn timesteps, (batch, 1, 1, 1)."""
        return self._factors(draws.timesteps)[0]

    def target(self, latent: Tensor, draws: Draws) -> Tensor:
        """Epsilon, v or the latent itself, (batch or 1, channels, h, w)."""
        if self._prediction_type == "sample":
            return latent.expand_as(draws.noise)
        signal, noise = self._factors(draws.timesteps)
        return signal * draws.noise - noise * latent if self._prediction_type == "v_prediction" else draws.noise

    def _factors(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self._signal[timesteps, None, None, None], self._noise[timesteps, None, None, None]


def mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 in the denoiser on a GPU; the weights, the loss and the optimizer stay fp32.

    Autocast's cache is off: it must not outlive a capture, and saves little, since a pass reads a weight once.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)
