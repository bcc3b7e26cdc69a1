"""One edit, as the sampler gets it, and its guidance."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.super_resolution import SuperResolutionOptions
from unitune.choices import DEFAULT_MASK_PADDING, MAX_SIGMA
from unitune.diffusion.guidance import Context, GuidanceTerm, mixed_with_base, prompt_guided, unconditional_on_base
from unitune.diffusion.schedule import Schedule, num_late_steps, sigma
from unitune.diffusion.solvers import DEFAULT_TCD_GAMMA, Scheduler, scheduler_of

TermsOf = Callable[[int], list[GuidanceTerm]]  # a timestep to the terms of its guidance


@dataclass(frozen=True)
class SecondPass:
    """The settings of an edit's second pass. edit.proto defines them."""

    strength: float
    scale: float


@dataclass(frozen=True)
class Request:
    """One edit, with every setting filled in and checked. edit.proto defines the settings."""

    image: bytes
    prompt: str  # with the rare tokens, if there are any
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    strength: float
    seeds: tuple[int, ...]
    interpolation: float = 0.0
    preview_every: int = 0  # steps; 0 means no previews
    negative_prompt: str = ""
    base_prompt: str = ""  # with the rare tokens, or only these, if there are any
    prompt_guidance_scale: float = 0.0
    unconditional_on_base: bool = False
    base_mixture: float = 0.0
    untuned_prompt: str = ""  # the prompt without rare tokens, for the base weights
    mask_source: str = "difference"
    mask: bytes = b""  # PNG of a given mask
    mask_keeps: bool = False
    mask_text: str = ""  # named objects that the mask is of, for sources that find them
    mask_blur: float = 0.0
    only_masked: bool = False
    mask_padding: int = DEFAULT_MASK_PADDING
    repeats: int = 1
    inverted: bool = False
    attention: AttentionEdit | None = None  # Prompt-to-Prompt's
    guidance_sigma_low: float = 0.0
    guidance_sigma_high: float = math.inf
    timestep_spacing: str = ""  # empty: the noise schedule's own
    guidance_rescale: float = 0.0
    tcd_gamma: float = DEFAULT_TCD_GAMMA
    super_resolution: SuperResolutionOptions | None = None
    second_pass: SecondPass | None = None

    @property
    def steps_by(self) -> Scheduler:
        """What takes its steps."""
        return scheduler_of(self.scheduler, self.tcd_gamma)

    def is_guided_at(self, sigma: float) -> bool:
        """Whether a step of this sigma is guided: (low, high] as in arXiv 2404.07724.

        The noisiest step of some schedules is above MAX_SIGMA, the largest value allowed, and counts as MAX_SIGMA.
        """
        return self.guidance_sigma_low < min(sigma, MAX_SIGMA) <= self.guidance_sigma_high

    @property
    def num_steps(self) -> int:
        """Denoising steps of all repeats; with `attention`, of the inversion and the edit."""
        late = num_late_steps(self.num_inference_steps, self.strength)
        return 2 * late if self.attention is not None else self.repeats * late

    @property
    def second_pass_steps(self) -> int:
        """Denoising steps of the second pass over each of its tiles; 0 without one."""
        return num_late_steps(self.num_inference_steps, self.second_pass.strength) if self.second_pass else 0

    @property
    def needs_base_weights(self) -> bool:
        """Whether a term of the guidance needs the base model's weights."""
        return self.unconditional_on_base or self.base_mixture > 0


def guidance_by_timestep(request: Request, embed: Callable[[str], Context], schedule: Schedule) -> TermsOf:
    """The terms of an edit's guidance at a timestep. Texts are embedded once."""
    sigmas = sigma(schedule.alphas_cumprod)
    terms = {
        (is_noisy, is_guided): guidance_terms(request, embed, is_noisy=is_noisy, is_guided=is_guided)
        for is_noisy in (False, True)
        for is_guided in (False, True)
    }

    def terms_of(timestep: int) -> list[GuidanceTerm]:
        return terms[timestep >= len(schedule) / 2, request.is_guided_at(float(sigmas[timestep]))]

    return terms_of


def guidance_terms(
    request: Request, embed: Callable[[str], Context], *, is_noisy: bool, is_guided: bool = True
) -> list[GuidanceTerm]:
    """The guidance of an edit as terms of the linear form of unitune.diffusion.guidance.

    `is_noisy` is for the noisier half of the schedule's timesteps. A step that is not guided uses only the prompt's
    prediction.
    """
    terms = [GuidanceTerm(1.0, embed(request.prompt))]
    if is_guided:
        terms = prompt_guided(
            request.guidance_scale,
            request.prompt_guidance_scale,
            embed(request.prompt),
            embed(request.negative_prompt),
            embed(request.base_prompt),
        )
        if request.unconditional_on_base:
            terms = unconditional_on_base(terms)
    if request.base_mixture > 0 and is_noisy:
        terms = mixed_with_base(terms, request.base_mixture, embed(request.untuned_prompt))
    return terms
