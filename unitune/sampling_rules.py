"""The rules between the options of sampling: what is refused beside what. Gateway and sampler hold them alike.

What one option alone may be, and which methods and options it needs, says the contract: unitune.options.
"""

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from functools import cached_property

from unitune.choices import (
    GUIDANCE_INTERVAL,
    MASKS_BEFORE,
    MASKS_OF_WORDS,
    NULL_TEXT,
    PROMPT_TO_PROMPT,
    mask_source_of,
)
from unitune.diffusion.solvers import ORIGINAL_STEPS, OWN_TIMESTEPS
from unitune.errors import InvalidField, Size, length_of
from unitune.options import SAMPLING, Flat, element, shown, with_paths
from unitune.prompts import mentions, named_objects
from unitune.v1.edit_pb2 import SamplingConfig

INVERTIBLE = "ddim"  # the scheduler of an inverted edit
TCD = "tcd"  # the scheduler that reads tcd_gamma
# Beyond it pixels leave their range unless they are thresholded. Imagen's super-resolution is best at 7 to 10.
MAX_UNTHRESHOLDED_GUIDANCE = 10


@dataclass(frozen=True)
class Asked:
    """What the rules look at. `method` is the edit's, which the config may leave out."""

    config: SamplingConfig
    mask: Sized
    method: str
    prompt: str
    has_mask: bool  # the request has one, or will have

    @cached_property
    def options(self) -> Flat:
        """The config's options by their names."""
        return Flat(self.config)

    @cached_property
    def source(self) -> str:
        """The mask source in force."""
        return mask_source_of(self.options.mask_source, self.mask, self.options.mask_text)

    @property
    def is_prompt_to_prompt(self) -> bool:
        """Whether it is that method's edit."""
        return self.method == PROMPT_TO_PROMPT

    @property
    def is_null_text(self) -> bool:
        """Whether the edit samples with null-text's embeddings."""
        return bool(self.options.inversion == NULL_TEXT)

    @cached_property
    def lengths(self) -> tuple[int, int]:
        """The words of base prompt and prompt."""
        return len(self.options.base_prompt.split()), len(self.prompt.split())

    @cached_property
    def unmentioned_weight(self) -> str | None:
        """The first word of word_weights that is not in the prompt."""
        return next((word for word in self.options.word_weights if not _mentioned(word, self.prompt)), None)

    @cached_property
    def unmentioned_blend(self) -> int | None:
        """The place in blend_words of the first word that is in neither prompt."""
        prompts = self.prompt, self.options.base_prompt
        words = enumerate(self.options.blend_words)
        return next((index for index, word in words if not _mentioned(word, *prompts)), None)

    def told(self, name: str) -> str | float:
        """What an option was set to, as an error shows it."""
        value = getattr(self.options, name)
        if not self.options.has(name):
            return "unset"
        return "blank" if isinstance(value, str) and not value.strip() else shown(SAMPLING[name], value)


def _mentioned(word: str, *prompts: str) -> bool:
    return any(word.strip() and mentions(prompt, word) for prompt in prompts)


@dataclass(frozen=True)
class Rule:
    """`field`, an option or the request's mask, is refused if `when` holds. `remedy` may show parts of `asked`."""

    when: Callable[[Asked], object]
    field: str
    remedy: str
    value: Callable[[Asked], str | float] | None = None  # that is refused; None: the field's own
    element: Callable[[Asked], str | int | None] = lambda asked: None  # that is refused of a list or a map


def _has(name: str) -> Callable[[Asked], bool]:
    return lambda asked: asked.options.has(name)


NULL_TEXT_RULES = (
    *(
        Rule(
            lambda asked, name=name: asked.is_null_text and getattr(asked.options, name),  # type: ignore[misc]
            name,
            f"leave it unset with inversion {NULL_TEXT}: {why}",
        )
        for name, why in (
            ("automatic", "its embeddings are for one guidance_scale"),
            ("only_masked", "its embeddings are for the whole picture"),
            ("negative_prompt", "its embeddings stand in that one's place"),
        )
    ),
    Rule(
        lambda asked: asked.is_null_text and asked.options.has("guidance_scale") and asked.options.guidance_scale == 1,
        "guidance_scale",
        f"choose another: with 1 there is no guidance, which is what {NULL_TEXT} corrects",
    ),
)

MASK_RULES = (
    Rule(
        lambda asked: asked.source == "given" and not asked.has_mask,
        "mask",
        "mask_source given needs the PNG of a mask; send one, or choose another source",
        lambda asked: "unset",
    ),
    Rule(
        lambda asked: asked.source != "given" and asked.mask,
        "mask",
        "leave it unset, since mask_source {asked.source} estimates its own, or choose mask_source given",
        lambda asked: Size(f"{len(asked.mask)} bytes"),
    ),
    Rule(
        lambda asked: asked.options.mask_text and asked.source not in MASKS_OF_WORDS and asked.mask,
        "mask_text",
        "leave it unset, since a mask is given, or leave that out",
    ),
    Rule(
        lambda asked: asked.options.mask_text and asked.source not in MASKS_OF_WORDS,
        "mask_text",
        f"leave it unset, since mask_source is {{asked.source}}, or choose {' or '.join(MASKS_OF_WORDS)}",
    ),
    Rule(
        lambda asked: asked.source in MASKS_OF_WORDS and not named_objects(asked.options.mask_text),
        "mask_text",
        'name what the mask is of, as in "the cat" or "cat, tree"',
    ),
    *(
        Rule(
            lambda asked, name=name: getattr(asked.options, name) and asked.source != "given",  # type: ignore[misc]
            name,
            "leave it unset, or give a mask: it says how to use that one",
        )
        for name in ("only_masked", "mask_keeps")
    ),
    Rule(
        lambda asked: asked.options.has("mask_blur") and asked.source == "difference",
        "mask_blur",
        "leave it unset, or give a mask or choose another source: difference has a soft edge of its own",
    ),
)

INVERTED_RULES = (
    Rule(
        lambda asked: asked.options.inverted and asked.is_prompt_to_prompt,
        "inverted",
        f"leave it unset: {PROMPT_TO_PROMPT} always inverts",
    ),
    Rule(
        lambda asked: asked.options.inverted and asked.source not in MASKS_BEFORE,
        "inverted",
        "leave it unset: the mask must be known before the first step, and {asked.source} is not",
    ),
    Rule(
        lambda asked: asked.options.inverted and asked.options.scheduler not in ("", INVERTIBLE),
        "inverted",
        f"leave it unset: it inverts {INVERTIBLE}, not {{asked.options.scheduler}}",
    ),
    Rule(
        lambda asked: asked.options.inverted and asked.options.repeats > 1,
        "inverted",
        "leave it unset: repeats begin with fresh noise each time",
    ),
)

FEW_STEPS_RULES = (
    Rule(
        lambda asked: asked.options.scheduler in OWN_TIMESTEPS and asked.options.num_inference_steps > ORIGINAL_STEPS,
        "num_inference_steps",
        f"give at most {ORIGINAL_STEPS} with scheduler {{asked.options.scheduler}}; 4 to 8 are usual",
    ),
    Rule(
        lambda asked: asked.options.scheduler in OWN_TIMESTEPS and asked.options.timestep_spacing,
        "timestep_spacing",
        "leave it unset: {asked.options.scheduler} has timesteps of its own",
    ),
    Rule(
        lambda asked: asked.options.has("tcd_gamma") and asked.options.scheduler != TCD,
        "tcd_gamma",
        f"leave it unset, or choose scheduler {TCD}, which alone reads it",
    ),
    Rule(
        lambda asked: asked.options.fast_lora and asked.options.unconditional_model == "base",
        "fast_lora",
        "leave it unset: unconditional_model base needs the base model's predictions, which are for many steps",
    ),
)

GUIDANCE_RULES = (
    *(
        Rule(
            lambda asked, end=end: asked.is_prompt_to_prompt and asked.options.has(end),  # type: ignore[misc]
            end,
            f"leave it unset: {PROMPT_TO_PROMPT} guides every step",
        )
        for end in GUIDANCE_INTERVAL
    ),
    Rule(
        lambda asked: (
            asked.options.has("guidance_sigma_high")
            and asked.options.guidance_sigma_high <= asked.options.guidance_sigma_low
        ),
        "guidance_sigma_high",
        "it must be above guidance_sigma_low, {asked.options.guidance_sigma_low}; for no guidance at all set "
        "guidance_scale to 1",
    ),
    Rule(
        lambda asked: (
            asked.options.has("dynamic_thresholding")
            and not asked.options.dynamic_thresholding
            and asked.options.super_resolution_guidance_scale > MAX_UNTHRESHOLDED_GUIDANCE
        ),
        "super_resolution_guidance_scale",
        f"give at most {MAX_UNTHRESHOLDED_GUIDANCE}, or leave dynamic_thresholding unset: colours would burn",
    ),
)

PROMPT_TO_PROMPT_RULES = (
    Rule(
        lambda asked: not asked.options.base_prompt.strip(),
        "base_prompt",
        "describe the picture as it is, in words like the prompt's: the edit takes its layout from them",
    ),
    Rule(
        lambda asked: asked.options.scheduler not in ("", "ddim"),
        "scheduler",
        f"leave it unset: {PROMPT_TO_PROMPT} inverts ddim",
    ),
    Rule(
        _has("prompt_guidance_scale"),
        "prompt_guidance_scale",
        f"leave it unset: {PROMPT_TO_PROMPT} reads base_prompt in a way of its own",
    ),
    Rule(
        lambda asked: asked.options.resamples > 0,
        "resamples",
        f"leave it unset: {PROMPT_TO_PROMPT} draws nothing, so other seeds give the same picture",
    ),
    Rule(
        lambda asked: asked.options.alignment == "replace" and asked.lengths[0] != asked.lengths[1],
        "alignment",
        "choose refine, or leave it unset: base_prompt has {asked.lengths[0]} words and prompt {asked.lengths[1]}",
    ),
    Rule(
        lambda asked: asked.unmentioned_weight is not None,
        "word_weights",
        "name a word of the prompt",
        lambda asked: shown(SAMPLING["word_weights"], asked.unmentioned_weight),
        lambda asked: asked.unmentioned_weight,
    ),
    Rule(
        lambda asked: asked.unmentioned_blend is not None,
        "blend_words",
        "name a word of prompt or base_prompt",
        lambda asked: shown(SAMPLING["blend_words"], asked.options.blend_words[asked.unmentioned_blend]),
        lambda asked: asked.unmentioned_blend,
    ),
)

BASE_PROMPT_RULES = (
    Rule(
        lambda asked: asked.options.prompt_guidance_scale > 0 and not asked.options.base_prompt.strip(),
        "base_prompt",
        "describe the picture as it is; prompt_guidance_scale guides away from that",
    ),
    Rule(
        lambda asked: (
            asked.options.base_prompt and not asked.options.has("prompt_guidance_scale") and asked.source != "diffedit"
        ),
        "base_prompt",
        "set prompt_guidance_scale or mask_source diffedit, which read it, or leave it unset",
        lambda asked: length_of(asked.options.base_prompt),
    ),
)


def rules_of(method: str) -> Iterator[Rule]:
    """The rules of a method's edits, in the order in which they are looked at."""
    yield from (*NULL_TEXT_RULES, *MASK_RULES, *INVERTED_RULES, *FEW_STEPS_RULES, *GUIDANCE_RULES)
    yield from PROMPT_TO_PROMPT_RULES if method == PROMPT_TO_PROMPT else BASE_PROMPT_RULES


def check_rules(asked: Asked, field: str) -> None:
    """Refuse options that contradict each other. `field` is the config's own place in the request."""
    for rule in rules_of(asked.method):
        if rule.when(asked):
            place = rule.field if rule.field == "mask" else f"{field}.{SAMPLING[rule.field].path}"
            value = rule.value(asked) if rule.value is not None else asked.told(rule.field)
            if (key := rule.element(asked)) is not None:
                place = element(place, key)
            raise InvalidField(place, value, with_paths(rule.remedy.format(asked=asked), SAMPLING, f"{field}."))
