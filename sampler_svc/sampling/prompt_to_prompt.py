"""Prompt-to-Prompt (arXiv 2208.01626): the edit takes attention maps from the base image, denoised beside it.

The base image is inverted to noise under its base prompt. From there two branches are denoised in one batch: one under
the base prompt, one under the edit prompt. Attention decides which words shape which places, so an edit with the base's
maps keeps its layout. Words that are only in the edit prompt keep maps of their own.

The base branch would drift from the base image, since inversion is not exact and guidance moves away from it. Direct
inversion (arXiv 2310.01506) sets it to the inverted latents after every step. Null-text inversion (arXiv 2211.09794)
replaces the empty prompt by an embedding for each step, which a tuner has found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.cpu_controlled import Controlled
from sampler_svc.engines.engine import Array
from sampler_svc.sampling.alignment import Alignment, TokenizedPrompt, align
from sampler_svc.sampling.local_blend import LocalBlend, blended
from unitune.attention import Controls, no_controls
from unitune.base_model import Preset
from unitune.choices import INVERSIONS
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import Context, classifier_free
from unitune.diffusion.inversion import inverted
from unitune.diffusion.schedule import Latents
from unitune.diffusion.solvers import DenoisingRun, FirstOrder
from unitune.errors import InvalidField
from unitune.options import SAMPLING, element

DIRECT = INVERSIONS[0]

RunControlled = Callable[[Latents, NDArray[np.int64], Array, Controls], Controlled]


@dataclass(frozen=True)
class AttentionEdit:
    """How an edit takes over attention maps. edit.proto defines the settings."""

    cross_replace: float = Preset.cross_replace  # share of the steps, from the first
    self_replace: float = Preset.self_replace
    inversion: str = DIRECT
    alignment: str = ""
    word_weights: Mapping[str, float] = field(default_factory=dict)
    blend_words: tuple[str, ...] = ()
    # Null-text's embeddings, in place of the empty prompt's: (steps, rows, width) of a whole run. None without them.
    nulls: Array | None = None


class Controller:
    """The controls of each step. A batch has (base, edit) for every term of guidance; the prompts' term is first."""

    def __init__(
        self, edit: AttentionEdit, base: TokenizedPrompt, edited: TokenizedPrompt, tokens: int, steps: int
    ) -> None:
        """Raises InvalidField for words that are not in the prompts, and for an alignment that they do not allow."""
        self._edit, self._steps, self._tokens = edit, steps, tokens
        self._alignment: Alignment = align(base, edited, tokens, edit.alignment)
        self._weights = np.ones(tokens, dtype=np.float32)
        for word, weight in edit.word_weights.items():
            columns = edited.columns_of(word)
            if not columns:
                remedy = "name words of the prompt, which the model cuts when long"
                raise InvalidField(element(f"config.{SAMPLING['word_weights'].path}", word), word, remedy)
            self._weights[columns] = weight

    def controls(self, step: int, terms: int) -> Controls:
        """For a batch of 2 * `terms` rows: row 1, the edit under the edit prompt, takes from row 0, the base."""
        controls = no_controls(2 * terms, self._tokens)
        # int() as in the authors' code: a share of 1 is all steps, 0 is none.
        taken = self._alignment.taken * (step < int(self._edit.cross_replace * self._steps))
        controls.source[1] = 0
        controls.mapper[1] = self._alignment.mapper * (taken * self._weights)
        controls.own[1] = (1 - taken) * self._weights
        controls.share[1] = step < int(self._edit.self_replace * self._steps)
        return controls


@dataclass(frozen=True)
class PromptToPrompt:
    """The two branches of one edit."""

    run: DenoisingRun
    denoiser: RunControlled
    attention: AttentionEdit
    texts: tuple[TokenizedPrompt, TokenizedPrompt]  # base prompt and edit prompt
    contexts: tuple[Context, Context, Context]  # their embeddings, and the empty or negative prompt's
    tokens: int  # of the text embedding: the contexts' rows without a pooled embedding
    guidance_scale: float
    prediction_type: str
    blend: LocalBlend | None = None

    def edit(
        self, latent: Latents, keep: Callable[[Latents, Latents], Latents], on_step: Callable[[Latents], None]
    ) -> Latents:
        """The edited latent (1, channels, h, w) of a base image's latent, by DDIM.

        After every step `keep(base, edited)` restores the base branch's latents where nothing may be edited. `on_step`
        is called after each step of inversion and of the edit, with the latents without noise. Raises what Controller
        raises, before the first step.
        """
        run, (base_prompt, prompt, empty) = self.run, self.contexts
        controller = Controller(self.attention, *self.texts, self.tokens, len(run))
        inversion = self.inversion(latent, on_step)
        base = edited = inversion[0]
        # A late start runs only the last steps, so it needs only their embeddings.
        nulls = self.attention.nulls
        empties = [empty] * len(run) if nulls is None else nulls[len(nulls) - len(run) :]
        solver = FirstOrder()
        for step, (timestep, level, next_level) in enumerate(run):
            latents = np.concatenate([base, edited])
            terms = _terms(self.guidance_scale, base_prompt, prompt, empties[step])
            output = _guided(self.denoiser, latents, timestep, terms, controller.controls(step, len(terms)))
            prediction = predict(output, latents, level, self.prediction_type)
            base, edited = np.split(solver.step(latents, prediction, level, next_level), 2)
            if self.attention.inversion == DIRECT:
                base = inversion[step + 1]
            if self.blend is not None:
                mask = self.blend.mask(step, latents, partial(_maps, self.denoiser, self.tokens, timestep))
                edited = edited if mask is None else blended(base, edited, mask)
            edited = keep(base, edited)
            on_step(prediction.denoised[1:])
        return edited

    def inversion(self, latent: Latents, on_step: Callable[[Latents], None]) -> list[Latents]:
        """The inverted latents before each step of the run, under the base prompt; the latent comes last."""
        base_prompt = self.contexts[0]
        off = no_controls(1, self.tokens)

        def output(latents: Latents, timestep: int) -> Latents:
            return self.denoiser(latents, np.array([timestep]), base_prompt[None], off).output

        found = [latent]
        for latents in inverted(latent, self.run, output, self.prediction_type):
            found.append(latents)
            on_step(latent)
        return found[::-1]


def _terms(scale: float, base_prompt: Context, prompt: Context, empty: Context) -> list[tuple[float, Array]]:
    """Weights and contexts (2, rows, width) of guidance. Terms of weight 0 are skipped, except the prompts' own."""
    first, second = (term.weight for term in classifier_free(scale, prompt, empty))
    terms = [(first, np.stack([base_prompt, prompt]))]
    return [*terms, (second, np.stack([empty, empty]))] if second != 0 else terms


def _guided(
    denoiser: RunControlled, latents: Latents, timestep: int, terms: Sequence[tuple[float, Array]], controls: Controls
) -> Latents:
    """The guided output for the two branches."""
    batch = len(terms) * len(latents)
    found = denoiser(
        np.concatenate([latents] * len(terms)),
        np.full(batch, timestep, dtype=np.int64),
        np.concatenate([contexts for _, contexts in terms]),
        controls,
    )
    outputs = np.split(found.output, len(terms))
    total: Latents = terms[0][0] * outputs[0]
    for (weight, _), output in zip(terms[1:], outputs[1:], strict=True):
        total = total + weight * output
    return total


def _maps(denoiser: RunControlled, tokens: int, timestep: int, latents: Latents, context: Context) -> Array:
    """The maps (n, tokens, h, w) of latents under one prompt, without control."""
    count = len(latents)
    contexts = np.repeat(context[None], count, axis=0)
    return denoiser(latents, np.full(count, timestep, dtype=np.int64), contexts, no_controls(count, tokens)).maps
