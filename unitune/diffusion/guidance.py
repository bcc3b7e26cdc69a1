"""Guidance as one linear form: sum over k of weight_k * denoiser_k(latents, context_k), the weights summing to 1.

Classifier-free guidance, negative prompts, prompt guidance and mixtures with the base model are rows of it. Since the
weights sum to 1 it is the same for a denoiser of epsilon and of v.
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
    on_base: bool = False  # whether the base model's weights predict it; otherwise those of the edit do


def classifier_free(guidance_scale: float, prompt: Context, empty: Context) -> list[Row]:
    """w * prompt + (1 - w) * empty prompt (Imagen, arXiv 2205.11487, equation 2): w = 1 is no guidance.

    A negative prompt takes the place of the empty one.
    """
    return [Row(guidance_scale, prompt), Row(1 - guidance_scale, empty)]


def prompt_guided(
    guidance_scale: float, prompt_guidance_scale: float, prompt: Context, empty: Context, base: Context
) -> list[Row]:
    """empty + w_c * (prompt - empty) + w_p * (prompt - base prompt): away from what the base image shows, too.

    Prompt Guidance of UniTune (arXiv 2210.09477), reconstructed from notes: the paper's formula could not be read.
    `base` is the prompt that stands for the base image, under tuned weights with the rare tokens before it. w_p = 0 is
    classifier-free guidance.
    """
    return [
        Row(guidance_scale + prompt_guidance_scale, prompt),
        Row(1 - guidance_scale, empty),
        Row(-prompt_guidance_scale, base),
    ]


def unconditional_on_base(rows: Sequence[Row]) -> list[Row]:
    """The same form, with the empty prompt, the second row, predicted by the base model (after arXiv 2503.20240)."""
    prompt, empty, *others = rows
    return [prompt, empty._replace(on_base=True), *others]


def mixed_with_base(rows: Sequence[Row], share: float, prompt: Context) -> list[Row]:
    """The same form, with a share of the prompt's prediction, the first row, from the base model (SINE, 2212.04489).

    The base model, which was never tuned, gets the `prompt` without rare tokens.
    """
    tuned, *others = rows
    return [Row((1 - share) * tuned.weight, tuned.context), Row(share * tuned.weight, prompt, on_base=True), *others]


def guided(
    denoiser: Denoiser, latents: Latents, timestep: int, rows: Sequence[Row], base: Denoiser | None = None
) -> Latents:
    """The guided output for latents that share a timestep: one call of the denoiser, and one of `base` if rows need it.

    Rows of weight 0 cost no pass, so guidance 1 is bit-equal to the prompt alone and guidance 0 to the empty prompt.
    Raises ValueError for a row on the base model without one.
    """
    rows = [row for row in rows if row.weight != 0]
    own, on_base = [row for row in rows if not row.on_base], [row for row in rows if row.on_base]
    if on_base and base is None:
        raise ValueError("a row of guidance is on the base model, and there is none")
    outputs = iter(_predictions(denoiser, latents, timestep, own))
    base_outputs = iter(_predictions(base, latents, timestep, on_base) if base is not None else [])
    total, *others = (row.weight * next(base_outputs if row.on_base else outputs) for row in rows)
    for term in others:
        total = total + term
    return total


def _predictions(denoiser: Denoiser, latents: Latents, timestep: int, rows: Sequence[Row]) -> list[Latents]:
    """The prediction of each row, in one call."""
    if not rows:
        return []
    passes = len(rows) * len(latents)
    outputs = denoiser(
        np.concatenate([latents] * len(rows)),
        np.full(passes, timestep, dtype=np.int64),
        np.repeat(np.stack([row.context for row in rows]), len(latents), axis=0),
    )
    return np.split(outputs, len(rows))
