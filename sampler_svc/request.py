"""One edit as the sampler takes it, and the guidance that it asks for."""

from collections.abc import Callable
from dataclasses import dataclass

from unitune.choices import DEFAULT_MASK_PADDING
from unitune.diffusion.guidance import Context, Row, mixed_with_base, prompt_guided, unconditional_on_base


@dataclass(frozen=True)
class Request:
    """One edit, every setting filled in and checked. The settings mean what edit.proto says."""

    image: bytes
    prompt: str  # with the rare tokens, where there are any
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    strength: float
    seeds: tuple[int, ...]
    interpolation: float = 0.0
    preview_every: int = 0  # steps; 0 means no previews
    negative_prompt: str = ""
    base_prompt: str = ""  # with the rare tokens, or these alone, where there are any
    prompt_guidance_scale: float = 0.0
    unconditional_on_base: bool = False
    base_mixture: float = 0.0
    untuned_prompt: str = ""  # the prompt without rare tokens, for the base weights
    mask_source: str = "difference"
    mask: bytes = b""  # PNG of a given one
    mask_keeps: bool = False
    mask_text: str = ""  # what the mask is of, where its source finds that
    mask_blur: float = 0.0
    only_masked: bool = False
    mask_padding: int = DEFAULT_MASK_PADDING
    repeats: int = 1
    inverted: bool = False

    @property
    def needs_base_weights(self) -> bool:
        """Whether any row of the guidance is on the base model's weights."""
        return self.unconditional_on_base or self.base_mixture > 0


def guidance_rows(request: Request, embed: Callable[[str], Context], *, is_noisy: bool) -> list[Row]:
    """The guidance of an edit as rows of the one form; `is_noisy` for the noisier half of the schedule's timesteps."""
    rows = prompt_guided(
        request.guidance_scale,
        request.prompt_guidance_scale,
        embed(request.prompt),
        embed(request.negative_prompt),
        embed(request.base_prompt),
    )
    if request.unconditional_on_base:
        rows = unconditional_on_base(rows)
    if request.base_mixture > 0 and is_noisy:
        rows = mixed_with_base(rows, request.base_mixture, embed(request.untuned_prompt))
    return rows
