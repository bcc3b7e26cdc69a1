"""What a text names, found by the base model: where it predicts other noise for the object than for other objects.

This is DiffEdit's estimate (Couairon et al., arXiv 2210.11427, section 3.2) without an edit: one prompt is the object
alone, the others are a few other objects. Subtracting the mean of the others removes what all have in common. The
latent is small, so the picture's colours refine the borders (`sampler_svc/sampling/masks/refine.py`).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.engine import Array
from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.cancellation import stopping
from sampler_svc.sampling.inpainting import seeing_nothing
from sampler_svc.sampling.masks.inputs import Find
from sampler_svc.sampling.masks.refine import refined
from unitune.diffusion.guidance import Denoiser
from unitune.diffusion.schedule import Schedule, add_noise
from unitune.images import Mask, Pixels
from unitune.prompts import mentions
from unitune.working_size import size_of

STRENGTHS = (0.3, 0.5, 0.7, 0.9)  # how far up the schedule the picture is noised
NOISES_EACH = 2
NOISE_SEED = 0  # the mask is the same for every seed of an edit
NUM_OTHERS = 3
COMMON = ("person", "house", "tree", "car", "dog", "table", "flower", "book")  # objects that every open vocabulary has


def finder(
    graphs: BaseGraphs,
    schedule: Schedule,
    denoiser: Denoiser,
    objects: Sequence[str],
    prompt: str,
    cancelled: Callable[[], bool],
) -> Find:
    """A function that finds these objects in a picture, with a denoiser that has the base weights.

    `prompt` is the edit's: its words are not used as other objects. Raises Cancelled (EDIT_CANCELLED) before a pass.
    """
    among = others(graphs.spec.vocabulary, (*objects, prompt))
    run = stopping(seeing_nothing(graphs, denoiser), cancelled)

    def find(picture: Pixels) -> Mask:
        found = contrasts(graphs, schedule, run, picture, objects, among)
        box = graphs.fit(size_of(picture)).box((found.shape[1], found.shape[2]))
        return np.maximum.reduce([refined(contrast, picture, box) for contrast in found])

    return find


def contrasts(
    graphs: BaseGraphs,
    schedule: Schedule,
    denoiser: Denoiser,
    picture: Pixels,
    objects: Sequence[str],
    among: Sequence[str],
) -> Array:
    """How far each object's prediction is from the mean of the others' predictions, (objects, h, w) of the latent."""
    noised, timesteps = _noised(graphs.encode(graphs.fit(size_of(picture)).to_model(picture)), schedule)

    def predicted(text: str) -> Array:
        return denoiser(noised, timesteps, np.repeat(graphs.embed(text)[None], len(noised), axis=0))

    common = np.mean([predicted(other) for other in among], axis=0)
    return np.stack([np.abs(predicted(named) - common).mean(axis=(0, 1)) for named in objects])


def others(vocabulary: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Names of other objects, as prompts: taken evenly from a closed vocabulary, or common ones if it is open (empty).

    Never a word of the texts. The empty prompt if no word is left.
    """
    left = [word for word in vocabulary or COMMON if not any(mentions(text, word) for text in texts)]
    count = min(NUM_OTHERS, len(left))
    return [left[(2 * index + 1) * len(left) // (2 * count)] for index in range(count)] or [""]


def _noised(latent: Array, schedule: Schedule) -> tuple[Array, NDArray[np.int64]]:
    """The latent (1, ...) at each strength with each noise, and the timesteps (n,)."""
    timesteps = np.repeat([int(strength * len(schedule)) for strength in STRENGTHS], NOISES_EACH)
    noises = np.random.default_rng(NOISE_SEED).standard_normal((len(timesteps), *latent.shape), dtype=np.float32)
    levels = schedule.alphas_cumprod[timesteps]
    noised = [add_noise(latent, noise, float(level)) for noise, level in zip(noises, levels, strict=True)]
    return np.concatenate(noised).astype(np.float32), timesteps
