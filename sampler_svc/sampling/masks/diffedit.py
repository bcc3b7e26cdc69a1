"""A mask estimated before the first step: where the prompt and the base prompt predict different noise (DiffEdit).

Couairon et al., arXiv 2210.11427, section 3.2: remove extreme values, rescale to 0 to 1, threshold at a half. The limit
of extreme values is that of diffusers. Its pipeline divides by this limit without subtracting the minimum, so that a
nearly uniform difference has an empty mask.
"""

import numpy as np

from sampler_svc.sampling.masks.inputs import MaskInputs
from sampler_svc.sampling.masks.shape import enlarged
from unitune.diffusion.schedule import add_noise
from unitune.images import Mask

NUM_NOISES = 10
STRENGTH = 0.5  # how far up the schedule the base image is noised
CLAMP = 3.0  # times the mean difference; values above are extreme
THRESHOLD = 0.5  # of the rescaled difference; above it is edited
ROUNDING = 1e-5  # of the predictions: differences of this size mean nothing
NOISE_SEED = 0  # the mask is the same for every seed of an edit


def differing_predictions(inputs: MaskInputs) -> Mask:
    """1 where the predictions differ by more than half of the range of their differences, without extreme ones.

    Prompts with the same prediction give an empty mask: their rescaled difference would be only rounding, or NaN.
    """
    timestep = int(STRENGTH * len(inputs.schedule))
    level = float(inputs.schedule.alphas_cumprod[timestep])
    rng = np.random.default_rng(NOISE_SEED)
    difference = np.zeros(inputs.latent.shape[2:], np.float32)
    size = 0.0
    for _ in range(NUM_NOISES):
        noised = add_noise(inputs.latent, rng.standard_normal(inputs.latent.shape, dtype=np.float32), level)
        predictions = inputs.denoiser(
            np.concatenate([noised, noised]),
            np.full(2, timestep, dtype=np.int64),
            np.stack([inputs.prompt, inputs.base_prompt]),
        )
        difference += np.abs(predictions[0] - predictions[1]).mean(axis=0) / NUM_NOISES
        size += float(np.abs(predictions).mean()) / NUM_NOISES
    low, high = float(difference.min()), min(float(difference.max()), CLAMP * float(difference.mean()))
    if high - low <= ROUNDING * size:
        return np.zeros(inputs.size, np.float32)
    rescaled = (np.minimum(difference, high) - low) / (high - low)
    box = inputs.fit.box((inputs.latent.shape[2], inputs.latent.shape[3]))
    return enlarged((rescaled > THRESHOLD).astype(np.float32), inputs.size, box)
