"""One super-resolution stage: a picture in, the same picture at a larger size out.

It runs DDIM from pure noise in a few steps. The upsampled picture is noised once, to the noise level that the network
is told, and is an input beside the noisy one at every step (Ho et al., arXiv 2106.15282; Imagen, arXiv 2205.11487,
section 2.4).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from unitune.base_model import SUPER_RESOLUTION_STAGES, SuperResolutionSpec
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import Denoiser, GuidanceTerm, guided
from unitune.diffusion.schedule import Latents, Schedule
from unitune.diffusion.solvers import FirstOrder, ddim_run
from unitune.diffusion.super_resolution import augmented, enlarged, from_blocks, thresholded, to_blocks
from unitune.images import ModelImage
from unitune.working_size import Size

STREAM = 1  # of a seed's random numbers, so that they differ from the denoiser's


def large_size(stages: Sequence[SuperResolutionSpec], last: str, size: Size) -> Size:
    """Height and width of what the stages up to `last` make of a picture of a working size."""
    for stage in stages:
        size = stage.side_of(size)
        if stage.name == last:
            break
    return size


def enlarge(
    stage: SuperResolutionSpec,
    run: Denoiser,
    terms: Sequence[GuidanceTerm],
    image: ModelImage,
    seed: int,
    *,
    noise_level: int | None = None,
    num_inference_steps: int | None = None,
    is_thresholded: bool = True,
    on_step: Callable[[], None] = lambda: None,
) -> ModelImage:
    """The picture in about [-1, 1] of the size `stage.side_of` says, from an image (1, 3, h, w).

    `run` is the network, of timesteps that are (n, 2). What is None is the stage's own default. `on_step` is called
    after each step. The same seed gives the same picture.
    """
    schedule = Schedule(**asdict(stage.schedule))
    noise_level = stage.noise_level if noise_level is None else noise_level
    number = SUPER_RESOLUTION_STAGES.index(stage.name)
    rng = np.random.default_rng((seed % 2**64, STREAM, number) if number else (seed % 2**64, STREAM))
    # Values beyond the range would be thresholded, which dims the whole picture.
    low = to_blocks(enlarged(image.clip(-1, 1), stage.side_of((image.shape[2], image.shape[3]))), stage.block)
    seen = augmented(low, rng.standard_normal(low.shape, dtype=np.float32), noise_level, schedule)
    latents = rng.standard_normal(low.shape, dtype=np.float32)
    solver = FirstOrder()

    def denoiser(latents: Latents, timesteps: np.ndarray, contexts: np.ndarray) -> Latents:
        timesteps_and_levels = np.stack([timesteps, np.full_like(timesteps, noise_level)], axis=1)
        if stage.is_preconditioned:
            latents = np.sqrt(schedule.alphas_cumprod[timesteps, None, None, None]).astype(np.float32) * latents
        beside = np.concatenate([latents, np.repeat(seen, len(latents), axis=0)], axis=1)
        return run(beside, timesteps_and_levels, contexts)

    for timestep, level, next_level in ddim_run(schedule, num_inference_steps or stage.num_inference_steps):
        output = guided(denoiser, latents, timestep, terms)
        if stage.is_preconditioned:
            output = low + output
        prediction = predict(output, latents, level, schedule.prediction_type)
        if is_thresholded:
            prediction = predict(thresholded(prediction.denoised), latents, level, "sample")
        latents = solver.step(latents, prediction, level, next_level).astype(np.float32)
        on_step()
    return from_blocks(latents, stage.block)
