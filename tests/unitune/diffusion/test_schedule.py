"""The noise schedule against diffusers, and the steps that a strength leaves."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from unitune.diffusion.schedule import (
    Schedule,
    add_noise,
    num_late_steps,
    sigma,
    spaced_timesteps,
)

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alphas_cumprod_are_those_of_diffusers(beta_schedule: str, zero_snr: bool) -> None:
    """Every level of every schedule agrees; diffusers rounds betas to float32, hence 1e-6."""
    config = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}

    ours = Schedule(**config).alphas_cumprod
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, **config).alphas_cumprod.numpy()

    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert (ours[-1] == 0) == zero_snr


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_final_level_follows_set_alpha_to_one(set_alpha_to_one: bool) -> None:
    """DDIM's last level is 1, or the first training level (0.99915 for Stable Diffusion)."""
    final = Schedule(set_alpha_to_one=set_alpha_to_one).final_alpha_cumprod

    assert final == pytest.approx(1 if set_alpha_to_one else 0.99915)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_inference_steps", [1, 3, 7, 20, 50, 999])
def test_timesteps_are_those_of_diffusers(spacing: str, num_inference_steps: int) -> None:
    """All spacings and awkward step counts give diffusers' whole timesteps."""
    reference = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    reference.set_timesteps(num_inference_steps)

    ours = spaced_timesteps(Schedule(timestep_spacing=spacing), num_inference_steps, past_the_end=0)

    np.testing.assert_array_equal(ours, reference.timesteps.numpy())
    assert ours.dtype == np.int64


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("past_the_end", [0, 1])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 499, 500, 998, 999, 1000])
def test_timesteps_stay_inside_the_training_schedule(spacing: str, past_the_end: int, num_inference_steps: int) -> None:
    """Even where the offset does not fit, a run has all its steps, falling, each with a level of its own schedule."""
    timesteps = spaced_timesteps(Schedule(timestep_spacing=spacing), num_inference_steps, past_the_end=past_the_end)

    assert len(timesteps) == num_inference_steps
    assert 0 <= timesteps.min() and timesteps.max() <= 999
    assert (np.diff(timesteps) <= 0).all()


@pytest.mark.parametrize("num_inference_steps", [0, -1, 1001])
def test_a_step_count_out_of_range_is_refused(num_inference_steps: int) -> None:
    """The error names the value and the range."""
    with pytest.raises(ValueError, match=f"{num_inference_steps}: it must be 1 to 1000"):
        spaced_timesteps(Schedule(), num_inference_steps, past_the_end=0)


@pytest.mark.parametrize("field", ["beta_schedule", "prediction_type", "timestep_spacing"])
def test_an_unknown_name_is_refused(field: str) -> None:
    """The error names field and value."""
    with pytest.raises(ValueError, match=f"{field} is 'sigmoid'"):
        Schedule(**{field: "sigmoid"})


def test_sigma_is_noise_over_signal() -> None:
    """A quarter of the variance as signal is sigma sqrt(3); pure noise is infinite, without a warning."""
    np.testing.assert_allclose(sigma(np.array([0.25, 1.0, 0.0])), [math.sqrt(3), 0, math.inf])


def test_add_noise_is_that_of_diffusers() -> None:
    """A late start begins where diffusers' add_noise begins (check S3); its float32 levels cost 1e-6 at timestep 0."""
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 2, 4, 8, 8), dtype=np.float32)
    schedule, reference = Schedule(), DDIMScheduler(**STABLE_DIFFUSION)

    for timestep in (0, 1, 501, 999):
        ours = add_noise(latents, noise, float(schedule.alphas_cumprod[timestep]))
        theirs = reference.add_noise(torch.from_numpy(latents), torch.from_numpy(noise), torch.tensor([timestep]))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=3e-6)
        assert ours.dtype == np.float32


def test_strength_one_of_stable_diffusion_still_holds_signal() -> None:
    """The noisiest level keeps 0.068 of the picture: it is not pure noise (check E1)."""
    assert math.sqrt(Schedule().alphas_cumprod[-1]) == pytest.approx(0.0683, abs=1e-4)


@pytest.mark.parametrize(
    ("num_inference_steps", "strength", "late"),
    [(50, 1.0, 50), (50, 0.85, 42), (50, 0.0, 0), (50, 0.019, 0), (10, 0.55, 5), (10, 0.59, 5), (20, 0.05, 1)],
)
def test_strength_leaves_the_last_int_of_the_steps(num_inference_steps: int, strength: float, late: int) -> None:
    """int(N * strength) steps, as diffusers' img2img counts them (checks S3 and E7)."""
    assert num_late_steps(num_inference_steps, strength) == late
