"""Super-resolution: an edited picture in, the same picture at a larger size out.

It runs DDIM from pure noise in a few steps. The upsampled picture is noised once, to the noise level that the network
is told, and is an input beside the noisy one at every step (Ho et al., arXiv 2106.15282; Imagen, arXiv 2205.11487,
section 2.4).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from sampler_svc.sampling.cancellation import stop_if
from unitune.base_model import SuperResolutionSpec
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import Context, Denoiser, classifier_free, guided
from unitune.diffusion.schedule import Latents, Schedule
from unitune.diffusion.solvers import FirstOrder, ddim_run
from unitune.diffusion.super_resolution import augmented, enlarged, from_blocks, thresholded, to_blocks
from unitune.images import ModelImage

STREAM = 1  # of a seed's random numbers, so that they differ from the denoiser's


@dataclass(frozen=True)
class SuperResolutionOptions:
    """The settings of an edit's super-resolution. edit.proto defines them."""

    noise_level: int
    num_inference_steps: int
    guidance_scale: float
    is_thresholded: bool = True


@dataclass(frozen=True)
class SuperResolution:
    """Super-resolution for one edit: an engine that holds its weights, and its text."""

    spec: SuperResolutionSpec
    run: Denoiser
    wanted: SuperResolutionOptions
    prompt: Context
    empty: Context
    cancelled: Callable[[], bool]

    @property
    def num_steps(self) -> int:
        """Steps for one picture."""
        return self.wanted.num_inference_steps

    def enlarge(self, image: ModelImage, seed: int, on_step: Callable[[], None] = lambda: None) -> ModelImage:
        """The picture in about [-1, 1] of the size `spec.side_of` says, from an image (1, 3, h, w).

        `on_step` is called after each step. The same seed gives the same picture. Raises Cancelled (EDIT_CANCELLED).
        """
        schedule, wanted = Schedule(**asdict(self.spec.schedule)), self.wanted
        rng = np.random.default_rng((seed % 2**64, STREAM))
        # Values of the decoder beyond the range would be thresholded, which dims the whole picture.
        low = to_blocks(
            enlarged(image.clip(-1, 1), self.spec.side_of((image.shape[2], image.shape[3]))), self.spec.block
        )
        seen = augmented(low, rng.standard_normal(low.shape, dtype=np.float32), wanted.noise_level, schedule)
        latents = rng.standard_normal(low.shape, dtype=np.float32)
        terms = classifier_free(wanted.guidance_scale, self.prompt, self.empty)
        solver = FirstOrder()

        def denoiser(latents: Latents, timesteps: np.ndarray, contexts: np.ndarray) -> Latents:
            stop_if(self.cancelled)
            timesteps_and_levels = np.stack([timesteps, np.full_like(timesteps, wanted.noise_level)], axis=1)
            if self.spec.is_preconditioned:
                latents = np.sqrt(schedule.alphas_cumprod[timesteps, None, None, None]).astype(np.float32) * latents
            beside = np.concatenate([latents, np.repeat(seen, len(latents), axis=0)], axis=1)
            return self.run(beside, timesteps_and_levels, contexts)

        for timestep, level, next_level in ddim_run(schedule, wanted.num_inference_steps):
            output = guided(denoiser, latents, timestep, terms)
            if self.spec.is_preconditioned:
                output = low + output
            prediction = predict(output, latents, level, schedule.prediction_type)
            if wanted.is_thresholded:
                prediction = predict(thresholded(prediction.denoised), latents, level, "sample")
            latents = solver.step(latents, prediction, level, next_level).astype(np.float32)
            on_step()
        return from_blocks(latents, self.spec.block)
