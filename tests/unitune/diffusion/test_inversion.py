"""DDIM backwards against diffusers' DDIMInverseScheduler, on a tiny denoiser."""

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler

from tests.tiny_model import CONTEXT_TOKENS, CONTEXT_WIDTH, LATENT_CHANNELS, LATENT_SIDE, tiny_pipeline
from unitune.diffusion.inversion import inverted
from unitune.diffusion.schedule import Schedule
from unitune.diffusion.solvers import SCHEDULERS

STEPS = 10


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_every_level_is_that_of_diffusers(prediction_type: str) -> None:
    """Each side feeds the denoiser its own latents, so that errors would add up through the steps."""
    pipeline = tiny_pipeline(prediction_type=prediction_type)
    unet, theirs = pipeline.unet.eval(), DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    context = torch.randn((1, CONTEXT_TOKENS, CONTEXT_WIDTH), generator=torch.Generator().manual_seed(1))
    shape = (1, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
    latent = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
    config = pipeline.scheduler.config
    schedule = Schedule(
        **{name: config[name] for name in ("prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one")}
    )
    theirs.set_timesteps(STEPS)
    state, expected = torch.from_numpy(latent), []
    for timestep in theirs.timesteps:
        state = theirs.step(unet(state, timestep, context).sample, timestep, state).prev_sample
        expected.append(state.numpy())

    def output(latents: np.ndarray, timestep: int) -> np.ndarray:
        found: np.ndarray = unet(torch.from_numpy(latents), timestep, context).sample.numpy()
        return found

    run = SCHEDULERS["ddim"].run(schedule, STEPS)
    found = list(inverted(latent, run, output, prediction_type))

    for latents, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(latents, wanted, rtol=0, atol=1e-4)
