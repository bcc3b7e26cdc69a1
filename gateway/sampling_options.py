"""The options of sampling: which go together, and what each is when it is unset.

An option that nothing would read is refused, not ignored; a filled config has none, so that it can be sent again. What
one option alone may be, and which methods and options it needs, says the contract: unitune.options.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unitune.choices import (
    DEFAULT_RESAMPLES,
    GUIDANCE_INTERVAL,
    MASKS_BEFORE,
    MASKS_OF_WORDS,
    MAX_UNTHRESHOLDED_GUIDANCE,
    NULL_TEXT,
    PROMPT_TO_PROMPT,
    mask_source_of,
)
from unitune.errors import InvalidField
from unitune.options import SAMPLING, clear_unread, refuse_unread, shown
from unitune.prompts import mentions, named_objects, unknown_words, without
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.server_pb2 import BaseModel

INVERTIBLE = "ddim"  # the scheduler of an inverted edit


@dataclass(frozen=True)
class Rule:
    """What is refused: `field` of a SamplingConfig, or the request's mask, if `when` holds."""

    field: str
    when: bool
    remedy: str
    value: str | None = None  # that is refused; None: the field's own


@dataclass(frozen=True)
class Asked:
    """What the rules look at. `method` is the edit's, which the config may leave out."""

    config: SamplingConfig
    mask: bytes
    method: str
    prompt: str

    @property
    def source(self) -> str:
        """The mask source in force."""
        return mask_source_of(self.config.mask_source, self.mask, self.config.mask_text)


def check_options(config: SamplingConfig, mask: bytes, field: str, method: str, prompt: str) -> None:
    """Refuse options that contradict each other or that nothing would read; each one's own range is checked elsewhere.

    `mask` is the request's, `field` the config's own place in it, `method` the edit's, which the config may leave out.
    """
    refuse_unread(config, method, f"{field}.")
    asked = Asked(config, mask, method, prompt)
    for rules in (_of_null_text, _of_masks, _of_inverted, _of_guidance, _of_prompt_to_prompt, _of_base_prompt):
        for rule in rules(asked):
            if rule.when:
                value = rule.value if rule.value is not None else _told(config, rule.field)
                raise InvalidField(rule.field if rule.field == "mask" else f"{field}.{rule.field}", value, rule.remedy)


def _told(config: SamplingConfig, name: str) -> str | float:
    """What an option was set to, as an error shows it."""
    value = getattr(config, name)
    if not SAMPLING[name].is_set(config):
        return "unset"
    return "blank" if isinstance(value, str) and not value.strip() else shown(SAMPLING[name], value)


def _of_null_text(asked: Asked) -> Iterator[Rule]:
    """What cannot be had with embeddings that are right for the whole picture, one guidance and no other empty text."""
    config, is_used = asked.config, asked.config.inversion == NULL_TEXT
    for name, why in (
        ("automatic", "its embeddings are for one guidance_scale"),
        ("only_masked", "its embeddings are for the whole picture"),
        ("negative_prompt", "its embeddings stand in that one's place"),
    ):
        remedy = f"leave it unset with inversion {NULL_TEXT}: {why}"
        yield Rule(name, is_used and bool(getattr(config, name)), remedy)
    is_one = config.HasField("guidance_scale") and config.guidance_scale == 1
    remedy = f"choose another: with 1 there is no guidance, which is what {NULL_TEXT} corrects"
    yield Rule("guidance_scale", is_used and is_one, remedy)


def _of_masks(asked: Asked) -> Iterator[Rule]:
    config, mask, source = asked.config, asked.mask, asked.source
    remedy = "mask_source given needs the PNG of a mask; send one, or choose another source"
    yield Rule("mask", source == "given" and not mask, remedy, "unset")
    remedy = f"leave it unset, since mask_source {source} estimates its own, or choose mask_source given"
    yield Rule("mask", source != "given" and bool(mask), remedy, f"{len(mask)} bytes")
    remedy = f"leave it unset, since mask_source is {source}, or choose {' or '.join(MASKS_OF_WORDS)}"
    remedy = "leave it unset, since a mask is given, or leave that out" if mask else remedy
    yield Rule("mask_text", bool(config.mask_text) and source not in MASKS_OF_WORDS, remedy)
    remedy = 'name what the mask is of, as in "the cat" or "cat, tree"'
    yield Rule("mask_text", source in MASKS_OF_WORDS and not named_objects(config.mask_text), remedy)
    remedy = "leave it unset, or give a mask: it says how to use that one"
    for name in ("only_masked", "mask_keeps"):
        yield Rule(name, getattr(config, name) and source != "given", remedy)
    remedy = "leave it unset, or give a mask or choose another source: difference has a soft edge of its own"
    yield Rule("mask_blur", config.HasField("mask_blur") and source == "difference", remedy)


def _of_inverted(asked: Asked) -> Iterator[Rule]:
    config, source = asked.config, asked.source
    for is_wrong, why in (
        (asked.method == PROMPT_TO_PROMPT, f"{PROMPT_TO_PROMPT} inverts by itself"),
        (source not in MASKS_BEFORE, f"the mask must be known before the first step, and {source} is not"),
        (config.scheduler not in ("", INVERTIBLE), f"it inverts {INVERTIBLE}, not {config.scheduler}"),
        (config.repeats > 1, "repeats begin with fresh noise each time"),
    ):
        yield Rule("inverted", config.inverted and is_wrong, f"leave it unset: {why}")


def _of_guidance(asked: Asked) -> Iterator[Rule]:
    config, low = asked.config, asked.config.guidance_sigma_low
    for end in GUIDANCE_INTERVAL:
        remedy = f"leave it unset: {PROMPT_TO_PROMPT} guides every step"
        yield Rule(end, asked.method == PROMPT_TO_PROMPT and config.HasField(end), remedy)
    is_empty = config.HasField("guidance_sigma_high") and config.guidance_sigma_high <= low
    remedy = f"it must be above guidance_sigma_low, {low}; for no guidance at all set guidance_scale to 1"
    yield Rule("guidance_sigma_high", is_empty, remedy)
    is_off = config.HasField("dynamic_thresholding") and not config.dynamic_thresholding
    is_high = config.super_resolution_guidance_scale > MAX_UNTHRESHOLDED_GUIDANCE
    remedy = f"give at most {MAX_UNTHRESHOLDED_GUIDANCE}, or leave dynamic_thresholding unset: colours would burn"
    yield Rule("super_resolution_guidance_scale", is_off and is_high, remedy)


def _of_prompt_to_prompt(asked: Asked) -> Iterator[Rule]:
    """What Prompt-to-Prompt needs of its prompts, and what it has no use for."""
    if asked.method != PROMPT_TO_PROMPT:
        return
    config, prompt = asked.config, asked.prompt
    remedy = "describe the picture as it is, in words like the prompt's: the edit takes its layout from them"
    yield Rule("base_prompt", not config.base_prompt.strip(), remedy)
    yield Rule("scheduler", config.scheduler not in ("", "ddim"), f"leave it unset: {PROMPT_TO_PROMPT} inverts ddim")
    remedy = f"leave it unset: {PROMPT_TO_PROMPT} reads base_prompt in a way of its own"
    yield Rule("prompt_guidance_scale", config.HasField("prompt_guidance_scale"), remedy)
    remedy = f"leave it unset: {PROMPT_TO_PROMPT} draws nothing, so other seeds give the same picture"
    yield Rule("resamples", config.resamples > 0, remedy)
    words = len(config.base_prompt.split()), len(prompt.split())
    remedy = f"choose refine, or leave it unset: base_prompt has {words[0]} words and prompt {words[1]}"
    yield Rule("alignment", config.alignment == "replace" and words[0] != words[1], remedy)
    for word in config.word_weights:
        yield Rule(
            "word_weights",
            not _is_in(word, prompt),
            "name a word of the prompt",
            str(shown(SAMPLING["word_weights"], word)),
        )
    for word in config.blend_words:
        is_wrong = not _is_in(word, prompt, config.base_prompt)
        yield Rule(
            "blend_words", is_wrong, "name a word of prompt or base_prompt", str(shown(SAMPLING["blend_words"], word))
        )


def _of_base_prompt(asked: Asked) -> Iterator[Rule]:
    """Where it is read, and where it is needed."""
    if asked.method == PROMPT_TO_PROMPT:
        return
    config = asked.config
    remedy = "describe the picture as it is; prompt_guidance_scale guides away from that"
    yield Rule("base_prompt", config.prompt_guidance_scale > 0 and not config.base_prompt.strip(), remedy)
    is_unread = not config.HasField("prompt_guidance_scale") and asked.source != "diffedit"
    remedy = "set prompt_guidance_scale or mask_source diffedit, which read it, or leave it unset"
    value = f"{len(config.base_prompt)} characters"
    yield Rule("base_prompt", bool(config.base_prompt) and is_unread, remedy, value)


def _is_in(word: str, *prompts: str) -> bool:
    return bool(word.strip()) and any(mentions(prompt, word) for prompt in prompts)


def fill_options(config: SamplingConfig, asked: SamplingConfig, mask: bytes) -> None:
    """Complete a filled config in place: the mask's source and what follows from it, and nothing that is not read."""
    config.mask_source = mask_source_of(asked.mask_source, mask, asked.mask_text)
    if config.mask_source != "difference" and not asked.HasField("interpolation"):
        config.interpolation = 1.0  # what a known mask keeps is kept exactly
    if config.automatic or any(asked.HasField(name) for name in ("guidance_scale", *GUIDANCE_INTERVAL)):
        for end in GUIDANCE_INTERVAL:  # the base model's own interval goes with its own guidance_scale, and as a whole
            if not asked.HasField(end):
                config.ClearField(end)
    if config.mask_source == "difference":
        config.ClearField("mask_blur")
    if config.inverted and not asked.scheduler:
        config.scheduler = INVERTIBLE
    if config.automatic:
        config.ClearField("strength")
        config.ClearField("guidance_scale")
    if config.gate and not config.HasField("resamples"):
        config.resamples = 0 if config.method == PROMPT_TO_PROMPT else DEFAULT_RESAMPLES
    if config.method == PROMPT_TO_PROMPT:
        config.ClearField("prompt_guidance_scale")
    clear_unread(config, config.method)


def check_gate_prompt(config: SamplingConfig, prompt: str, words: str) -> None:
    """Refuse a gate for a prompt of nothing but the words of its tuning: the gate reads what is left without them."""
    if (config.automatic or config.gate) and not without(prompt, words):
        remedy = f"say more than {words!r}, which the gate does not know, or leave automatic and gate unset"
        raise InvalidField("prompt", f"{len(prompt)} characters", remedy)


def check_mask_words(config: SamplingConfig, mask: bytes, base_model: BaseModel, field: str) -> None:
    """Refuse words that what finds them does not know: the base model, or with `word` a CLIPSeg, which knows all."""
    source = mask_source_of(config.mask_source, mask, config.mask_text)
    if source not in MASKS_OF_WORDS or (source == "word" and base_model.has_clipseg):
        return
    for word, nearest in unknown_words(" ".join(named_objects(config.mask_text)), base_model.vocabulary):
        remedy = f"the base model does not know it; name {' or '.join(nearest) or 'something of its vocabulary'}"
        raise InvalidField(f"{field}.mask_text", word, remedy)


def check_inverted(config: SamplingConfig, seeds: Sequence[int]) -> None:
    """Refuse several seeds of an inverted edit, which is the same for each."""
    if config.inverted and len(seeds) > 1:
        raise InvalidField("seeds", f"{len(seeds)} seeds", "give one: an inverted edit is the same for every seed")
