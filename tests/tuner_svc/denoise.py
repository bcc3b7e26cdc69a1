"""Pictures from noise by torch alone, to see what a tuning has learnt."""

from collections.abc import Mapping

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.func import functional_call

from tuner_svc.base_model import BaseModel


@torch.no_grad()
def from_noise(model: BaseModel, tensors: Mapping[str, Tensor], context: Tensor, steps: int = 20) -> Tensor:
    """A latent (1, channels, h, w) that the denoiser makes, with some tensors replaced, at guidance 1."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    scheduler.set_timesteps(steps)
    shape = (1, model.latent_channels, *model.latent_side)
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    for timestep in scheduler.timesteps:
        epsilon = functional_call(model.denoiser.unet, dict(tensors), (sample, timestep, context)).sample
        sample = scheduler.step(epsilon, timestep, sample).prev_sample
    return sample
