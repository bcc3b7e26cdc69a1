"""Guidance as one linear form: sum over k of weight_k * denoiser_k(latents, context_k), the weights summing to 1.

Classifier-free guidance, negative prompts, prompt guidance and mixtures with the base model are terms of it. Because
the weights sum to 1, it is the same for denoisers of epsilon and of v.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unitune.diffusion.schedule import Latents

Context = NDArray[np.float32]  # (rows, width), one prompt's conditioning (unitune.diffusion.conditioning)
Denoiser = Callable[[Latents, NDArray[np.int64], NDArray[np.float32]], Latents]  # latents, timesteps, contexts


class GuidanceTerm(NamedTuple):
    """One term of the linear form."""

    weight: float
    context: Context
    on_base: bool = False  # predicted with the base model's weights instead of the edit's


def classifier_free(guidance_scale: float, prompt: Context, empty: Context) -> list[GuidanceTerm]:
    """w * prompt + (1 - w) * empty prompt (Imagen, arXiv 2205.11487, equation 2): w = 1 is no guidance.

    A negative prompt replaces the empty one.
    """
    return [GuidanceTerm(guidance_scale, prompt), GuidanceTerm(1 - guidance_scale, empty)]


def prompt_guided(
    guidance_scale: float, prompt_guidance_scale: float, prompt: Context, empty: Context, base: Context
) -> list[GuidanceTerm]:
    """empty + w_c * (prompt - empty) + w_p * (prompt - base prompt): away from what the base image shows, too.

    Prompt Guidance of UniTune (arXiv 2210.09477), reconstructed from notes: the paper's formula could not be read.
    `base` is the prompt of the base image, with the rare tokens before it for tuned weights. w_p = 0 is classifier-free
    guidance.
    """
    return [
        GuidanceTerm(guidance_scale + prompt_guidance_scale, prompt),
        GuidanceTerm(1 - guidance_scale, empty),
        GuidanceTerm(-prompt_guidance_scale, base),
    ]


def unconditional_on_base(terms: Sequence[GuidanceTerm]) -> list[GuidanceTerm]:
    """The terms, with the second one, the empty prompt, on the base model (after arXiv 2503.20240)."""
    prompt, empty, *others = terms
    return [prompt, empty._replace(on_base=True), *others]


def mixed_with_base(terms: Sequence[GuidanceTerm], share: float, prompt: Context) -> list[GuidanceTerm]:
    """The terms, with a share of the first one, the prompt, on the base model (SINE, arXiv 2212.04489).

    The base model gets the `prompt` without rare tokens.
    """
    tuned, *others = terms
    mixed = [GuidanceTerm((1 - share) * tuned.weight, tuned.context), GuidanceTerm(share * tuned.weight, prompt, True)]
    return [*mixed, *others]


def guided(
    denoiser: Denoiser,
    latents: Latents,
    timestep: int,
    terms: Sequence[GuidanceTerm],
    base: Denoiser | None = None,
    rescale: float = 0.0,
) -> Latents:
    """The guided output for latents at one timestep: one call of the denoiser, and one of `base` if a term needs it.

    Terms of weight 0 are skipped, so guidance 1 is bit-equal to the prompt alone, and guidance 0 to the empty prompt.
    `rescale` is the share of `rescaled`, to the first term's prediction. Raises ValueError for a term on the base model
    if `base` is None.
    """
    terms = [term for term in terms if term.weight != 0]
    own, on_base = [term for term in terms if not term.on_base], [term for term in terms if term.on_base]
    if on_base and base is None:
        raise ValueError("a term of guidance is on the base model, and there is none")
    outputs = iter(_predictions(denoiser, latents, timestep, own))
    base_outputs = iter(_predictions(base, latents, timestep, on_base) if base is not None else [])
    predictions = [next(base_outputs if term.on_base else outputs) for term in terms]
    total, *others = (term.weight * found for term, found in zip(terms, predictions, strict=True))
    for other in others:
        total = total + other
    return rescaled(total, predictions[0], rescale) if rescale > 0 and others else total


def rescaled(output: Latents, prompt: Latents, share: float) -> Latents:
    """share * output * std(prompt) / std(output) + (1 - share) * output, by row (Lin et al., 2024, equations 15, 16).

    Strong guidance makes the output's deviation larger than that of any prediction, and pictures too bright.
    """
    axes = tuple(range(1, output.ndim))
    ratio = prompt.std(axes, keepdims=True) / output.std(axes, keepdims=True)
    return (share * ratio + (1 - share)) * output


def _predictions(denoiser: Denoiser, latents: Latents, timestep: int, terms: Sequence[GuidanceTerm]) -> list[Latents]:
    """The prediction of each term, in one call."""
    if not terms:
        return []
    passes = len(terms) * len(latents)
    outputs = denoiser(
        np.concatenate([latents] * len(terms)),
        np.full(passes, timestep, dtype=np.int64),
        np.repeat(np.stack([term.context for term in terms]), len(latents), axis=0),
    )
    return np.split(outputs, len(terms))
