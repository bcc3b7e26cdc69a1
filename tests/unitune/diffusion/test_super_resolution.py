"""What super-resolution is fed and what is done with its answer, against torch and diffusers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from unitune.diffusion.denoiser import predict
from unitune.diffusion.schedule import Schedule
from unitune.diffusion.super_resolution import augmented, enlarged, from_blocks, thresholded, to_blocks

COSINE = Schedule(beta_schedule="squaredcos_cap_v2", prediction_type="sample")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_blocks_are_those_of_pixel_unshuffle_and_come_back() -> None:
    """Space to depth as torch orders it, for oblong pictures too."""
    image = normal(2, 3, 8, 12)

    blocks = to_blocks(image, 4)

    assert np.array_equal(blocks, torch.nn.functional.pixel_unshuffle(torch.from_numpy(image), 4).numpy())
    assert np.array_equal(from_blocks(blocks, 4), image)


def test_enlarging_is_bilinear_pixel_over_pixel() -> None:
    """As torch's interpolation without aligned corners, at whole and broken factors."""
    image = normal(1, 3, 6, 10).clip(-1, 1)

    for side in ((12, 20), (15, 33)):
        theirs = torch.nn.functional.interpolate(torch.from_numpy(image), side, mode="bilinear", align_corners=False)
        assert np.abs(enlarged(image, side) - theirs.numpy()).max() < 1e-5


@pytest.mark.parametrize("noise_level", [0, 100, 250, 999])
def test_augmentation_is_the_schedulers_noise_at_the_level(noise_level: int) -> None:
    """add_noise of the enlarged picture at the level; level 0 is not noise-free (K1)."""
    low, noise = normal(1, 48, 3, 3), normal(1, 48, 3, 3, seed=1)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    level = torch.tensor([noise_level])

    ours = augmented(low, noise, noise_level, COSINE)

    theirs = scheduler.add_noise(torch.from_numpy(low), torch.from_numpy(noise), level).numpy()
    assert np.abs(ours - theirs).max() < 1e-5
    if noise_level == 0:
        assert np.std(augmented(0 * low, noise, 0, COSINE)) == pytest.approx(0.0064, rel=0.06)


def test_thresholding_is_the_identity_within_range_and_imagens_beyond() -> None:
    """Nothing changes while |x0hat| <= 1; else values are cut at the quantile and divided by it, by picture (K4)."""
    within = normal(2, 3, 8, 8).clip(-1, 1)
    beyond = np.concatenate([3 * normal(1, 3, 8, 8, seed=1), within[:1]])
    most = float(np.quantile(np.abs(beyond[0]), 0.995))

    assert np.array_equal(thresholded(within), within)
    assert most > 1
    assert np.allclose(thresholded(beyond)[0], beyond[0].clip(-most, most) / most, atol=1e-6)
    assert np.array_equal(thresholded(beyond)[1], within[0])


def test_thresholding_is_that_of_diffusers() -> None:
    """With no cap on the quantile, as in Imagen (K4)."""
    scheduler = DDIMScheduler(thresholding=True, sample_max_value=1e6)
    sample = 2 * normal(2, 3, 8, 8)

    theirs = scheduler._threshold_sample(torch.from_numpy(sample)).numpy()

    assert np.abs(thresholded(sample) - theirs).max() < 1e-5


def test_an_output_that_is_the_clean_latent_is_read_as_such() -> None:
    """It and the noise that it implies make the noisy latent again, at a level without signal too."""
    output, latents = normal(1, 4, 3, 3), normal(1, 4, 3, 3, seed=1)

    for level in (0.0, 0.3, 0.99):
        denoised, epsilon = predict(output, latents, level, "sample")
        assert denoised is output
        assert np.allclose(np.sqrt(level) * denoised + np.sqrt(1 - level) * epsilon, latents, atol=1e-5)
