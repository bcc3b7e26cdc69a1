"""Guidance as one linear form: sum over k of weight_k * denoiser(latents, context_k), the weights summing to 1.

Classifier-free guidance, negative prompts and prompt guidance are rows of it. Since the weights sum to 1 it is the same
for a denoiser of epsilon and of v.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unitune.diffusion.schedule import Latents

Context = NDArray[np.float32]  # (tokens, width), one text embedding
Denoiser = Callable[[Latents, NDArray[np.int64], NDArray[np.float32]], Latents]  # latents, timesteps, contexts


class Row(NamedTuple):
    """One term of the form."""

    weight: float
    context: Context


def classifier_free(guidance_scale: float, prompt: Context, empty: Context) -> list[Row]:
    """w * prompt + (1 - w) * empty prompt (Imagen, arXiv 2205.11487, equation 2): w = 1 is no guidance."""
    return [Row(guidance_scale, prompt), Row(1 - guidance_scale, empty)]


def guided(denoiser: Denoiser, latents: Latents, timestep: int, rows: Sequence[Row]) -> Latents:
    """The guided output for latents that share a timestep, in one call of the denoiser.

    Rows of weight 0 cost no pass, so guidance 1 is bit-equal to the prompt alone and guidance 0 to the empty prompt.
    """
    rows = [row for row in rows if row.weight != 0]
    passes = len(rows) * len(latents)
    outputs = denoiser(
        np.concatenate([latents] * len(rows)),
        np.full(passes, timestep, dtype=np.int64),
        np.repeat(np.stack([row.context for row in rows]), len(latents), axis=0),
    )
    total, *others = (row.weight * output for row, output in zip(rows, np.split(outputs, len(rows)), strict=True))
    for term in others:
        total = total + term
    return total
