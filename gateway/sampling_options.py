"""The options of sampling: which go together, and what each is when it is unset.

An option that nothing would read is refused, not ignored; a filled config has none, so that it can be sent again.
"""

from collections.abc import Sequence
from typing import Any

from unitune.choices import (
    DEFAULT_RESAMPLES,
    GUIDANCE_INTERVAL,
    MASKS_BEFORE,
    MASKS_OF_WORDS,
    MAX_UNTHRESHOLDED_GUIDANCE,
    MAX_WORD_CHARACTERS,
    METHODS_WITH,
    NULL_TEXT,
    PROMPT_TO_PROMPT,
    SUPER_RESOLUTION_OPTIONS,
    mask_source_of,
)
from unitune.errors import InvalidField
from unitune.prompts import mentions, things, unknown_words, without
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.server_pb2 import BaseModel

INVERTIBLE = "ddim"  # the scheduler of an inverted edit


def check_options(config: SamplingConfig, mask: bytes, field: str, method: str, prompt: str) -> None:
    """Refuse options that contradict each other or that nothing would read; each one's own range is checked elsewhere.

    `mask` is the request's, `field` the config's own place in it, `method` the edit's, which the config may leave out.
    """
    _check_methods(config, field, method)
    if config.fast:
        _check_fast_options(config, field)
    if config.inversion == NULL_TEXT:
        _check_null_text(config, field)
    _check_mask_options(config, mask, field)
    _check_gate_options(config, field)
    _check_super_resolution_options(config, field)
    if method == PROMPT_TO_PROMPT:
        _check_prompt_to_prompt(config, field, prompt)
        return
    source = mask_source_of(config.mask_source, mask, config.mask_text)
    low, high = config.guidance_sigma_low, config.guidance_sigma_high
    if config.HasField("guidance_sigma_high") and high <= low:
        remedy = f"it must be above guidance_sigma_low, {low}; for no guidance at all set guidance_scale to 1"
        raise InvalidField(f"{field}.guidance_sigma_high", high, remedy)
    if config.prompt_guidance_scale > 0 and not config.base_prompt.strip():
        remedy = "describe the picture as it is; prompt_guidance_scale guides away from that"
        raise InvalidField(f"{field}.base_prompt", "blank" if config.base_prompt else "unset", remedy)
    if config.base_prompt and not config.HasField("prompt_guidance_scale") and source != "diffedit":
        remedy = "set prompt_guidance_scale or mask_source diffedit, which read it, or leave it unset"
        raise InvalidField(f"{field}.base_prompt", f"{len(config.base_prompt)} characters", remedy)


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
    if not config.only_masked:
        config.ClearField("mask_padding")
    if config.inverted and not asked.scheduler:
        config.scheduler = INVERTIBLE
    if config.automatic:
        config.ClearField("strength")
        config.ClearField("guidance_scale")
    if config.gate and not config.HasField("resamples"):
        config.resamples = 0 if config.method == PROMPT_TO_PROMPT else DEFAULT_RESAMPLES
    if config.method == PROMPT_TO_PROMPT:
        config.ClearField("prompt_guidance_scale")
    if not config.super_resolution:
        for option in SUPER_RESOLUTION_OPTIONS:
            config.ClearField(option)
    for option, methods in METHODS_WITH.items():
        if config.method not in methods:
            config.ClearField(option)


def _check_methods(config: SamplingConfig, field: str, method: str) -> None:
    for option, methods in METHODS_WITH.items():
        value = _value(config, option)
        if value is not None and method not in methods:
            remedy = f"leave it unset: it is an option of method {' and '.join(methods)}, not of {method}"
            raise InvalidField(f"{field}.{option}", value, remedy)


def _check_fast_options(config: SamplingConfig, field: str) -> None:
    if config.HasField("num_inference_steps"):
        remedy = "leave it unset, or leave fast unset, which chooses it"
        raise InvalidField(f"{field}.num_inference_steps", config.num_inference_steps, remedy)
    if config.automatic:
        remedy = "leave it unset, or leave fast unset: its points are strengths, which few steps round down far"
        raise InvalidField(f"{field}.automatic", "true", remedy)


def _check_null_text(config: SamplingConfig, field: str) -> None:
    """What cannot be had with embeddings that are right for the whole picture, one guidance and no other empty text."""
    for option, why in (
        ("automatic", "its embeddings are for one guidance_scale"),
        ("only_masked", "its embeddings are for the whole picture"),
        ("negative_prompt", "its embeddings stand in that one's place"),
    ):
        value = getattr(config, option)
        if value:
            shown = f"{len(value)} characters" if isinstance(value, str) else "true"
            raise InvalidField(f"{field}.{option}", shown, f"leave it unset with inversion {NULL_TEXT}: {why}")
    if config.HasField("guidance_scale") and config.guidance_scale == 1:
        remedy = f"choose another: with 1 there is no guidance, which is what {NULL_TEXT} corrects"
        raise InvalidField(f"{field}.guidance_scale", config.guidance_scale, remedy)


def _check_prompt_to_prompt(config: SamplingConfig, field: str, prompt: str) -> None:
    """What Prompt-to-Prompt needs of its prompts, and what it has no use for."""
    if not config.base_prompt.strip():
        remedy = "describe the picture as it is, in words like the prompt's: the edit takes its layout from them"
        raise InvalidField(f"{field}.base_prompt", "blank" if config.base_prompt else "unset", remedy)
    if config.scheduler not in ("", "ddim"):
        raise InvalidField(f"{field}.scheduler", config.scheduler, f"leave it unset: {PROMPT_TO_PROMPT} inverts ddim")
    if config.inverted:
        raise InvalidField(f"{field}.inverted", True, f"leave it unset: {PROMPT_TO_PROMPT} inverts by itself")
    if config.HasField("prompt_guidance_scale"):
        remedy = f"leave it unset: {PROMPT_TO_PROMPT} reads base_prompt in a way of its own"
        raise InvalidField(f"{field}.prompt_guidance_scale", config.prompt_guidance_scale, remedy)
    for end in GUIDANCE_INTERVAL:
        if config.HasField(end):
            remedy = f"leave it unset: {PROMPT_TO_PROMPT} guides every step"
            raise InvalidField(f"{field}.{end}", getattr(config, end), remedy)
    if config.resamples > 0:
        remedy = f"leave it unset: {PROMPT_TO_PROMPT} draws nothing, so other seeds give the same picture"
        raise InvalidField(f"{field}.resamples", config.resamples, remedy)
    words = len(config.base_prompt.split()), len(prompt.split())
    if config.alignment == "replace" and words[0] != words[1]:
        remedy = f"choose refine, or leave it unset: base_prompt has {words[0]} words and prompt {words[1]}"
        raise InvalidField(f"{field}.alignment", config.alignment, remedy)
    for word in config.word_weights:
        if not word.strip() or not mentions(prompt, word):
            raise InvalidField(f"{field}.word_weights", _shown(word), "name a word of the prompt")
    for word in config.blend_words:
        if not word.strip() or not (mentions(prompt, word) or mentions(config.base_prompt, word)):
            raise InvalidField(f"{field}.blend_words", _shown(word), "name a word of prompt or base_prompt")


def _shown(word: str) -> str:
    """A word, as an error shows it; more than a word by its length, since it may be a prompt."""
    return word if len(word) <= MAX_WORD_CHARACTERS else f"{len(word)} characters"


def check_gate(config: SamplingConfig, has_gate: bool, field: str) -> None:
    """Refuse what needs a gate where the base model brings none."""
    for option in ("automatic", "gate"):
        if getattr(config, option) and not has_gate:
            raise InvalidField(
                f"{field}.{option}", "true", "leave it unset: this base model has no gate (a clip folder)"
            )


def check_fast(config: SamplingConfig, base_model: BaseModel, field: str) -> None:
    """Refuse a fast edit where the base model does not say how few steps still do."""
    if config.fast and not base_model.fast_steps:
        remedy = "leave it unset and give num_inference_steps: this base model's preset has no fast_steps"
        raise InvalidField(f"{field}.fast", "true", remedy)


def check_super_resolution(config: SamplingConfig, base_model: BaseModel, field: str) -> None:
    """Refuse a second stage where the base model brings none."""
    if config.super_resolution and not base_model.super_resolution_width:
        remedy = "leave it unset: this base model has no second stage (a super_resolution folder)"
        raise InvalidField(f"{field}.super_resolution", "true", remedy)


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
    for word, nearest in unknown_words(" ".join(things(config.mask_text)), base_model.vocabulary):
        remedy = f"the base model does not know it; name {' or '.join(nearest) or 'something of its vocabulary'}"
        raise InvalidField(f"{field}.mask_text", word, remedy)


def check_inverted(config: SamplingConfig, seeds: Sequence[int]) -> None:
    """Refuse several seeds of an inverted edit, which is the same for each."""
    if config.inverted and len(seeds) > 1:
        raise InvalidField("seeds", f"{len(seeds)} seeds", "give one: an inverted edit is the same for every seed")


def _check_gate_options(config: SamplingConfig, field: str) -> None:
    for option in ("strength", "guidance_scale"):
        if config.automatic and config.HasField(option):
            raise InvalidField(f"{field}.{option}", getattr(config, option), "leave it unset: automatic chooses it")
    if config.automatic and config.gate:
        raise InvalidField(f"{field}.gate", "true", "leave it unset: automatic uses the gate by itself")
    if config.HasField("resamples") and not config.gate:
        raise InvalidField(f"{field}.resamples", config.resamples, "leave it unset, or set gate, too")


def _check_super_resolution_options(config: SamplingConfig, field: str) -> None:
    for option in SUPER_RESOLUTION_OPTIONS:
        if config.HasField(option) and not config.super_resolution:
            remedy = "leave it unset, or set super_resolution, too"
            raise InvalidField(f"{field}.{option}", getattr(config, option), remedy)
    scale = config.super_resolution_guidance_scale
    is_off = config.HasField("dynamic_thresholding") and not config.dynamic_thresholding
    if is_off and scale > MAX_UNTHRESHOLDED_GUIDANCE:
        remedy = f"give at most {MAX_UNTHRESHOLDED_GUIDANCE}, or leave dynamic_thresholding unset: colours would burn"
        raise InvalidField(f"{field}.super_resolution_guidance_scale", scale, remedy)


def _check_mask_options(config: SamplingConfig, mask: bytes, field: str) -> None:
    source = mask_source_of(config.mask_source, mask, config.mask_text)
    if source == "given" and not mask:
        remedy = "mask_source given needs the PNG of a mask; send one, or choose another source"
        raise InvalidField("mask", "unset", remedy)
    if source != "given" and mask:
        remedy = f"leave it unset, since mask_source {source} estimates its own, or choose mask_source given"
        raise InvalidField("mask", f"{len(mask)} bytes", remedy)
    if config.mask_text and source not in MASKS_OF_WORDS:
        remedy = f"leave it unset, since mask_source is {source}, or choose {' or '.join(MASKS_OF_WORDS)}"
        if mask:
            remedy = "leave it unset, since a mask is given, or leave that out"
        raise InvalidField(f"{field}.mask_text", f"{len(config.mask_text)} characters", remedy)
    if source in MASKS_OF_WORDS and not things(config.mask_text):
        value = f"{len(config.mask_text)} characters" if config.mask_text.strip() else config.mask_text and "blank"
        remedy = 'name what the mask is of, as in "the cat" or "cat, tree"'
        raise InvalidField(f"{field}.mask_text", value or "unset", remedy)
    if config.inverted:
        for is_wrong, why in (
            (source not in MASKS_BEFORE, f"the mask must be known before the first step, and {source} is not"),
            (config.scheduler not in ("", INVERTIBLE), f"it inverts {INVERTIBLE}, not {config.scheduler}"),
            (config.repeats > 1, "repeats begin with fresh noise each time"),
            (config.gate, "it is the same for every seed, and the gate would try others"),
        ):
            if is_wrong:
                raise InvalidField(f"{field}.inverted", True, f"leave it unset: {why}")
    for option in ("only_masked", "mask_keeps"):
        if getattr(config, option) and source != "given":
            raise InvalidField(f"{field}.{option}", True, "leave it unset, or give a mask: it says how to use that one")
    if config.HasField("mask_blur") and source == "difference":
        remedy = "leave it unset, or give a mask or choose another source: difference has a soft edge of its own"
        raise InvalidField(f"{field}.mask_blur", config.mask_blur, remedy)
    if config.HasField("mask_padding") and not config.only_masked:
        raise InvalidField(f"{field}.mask_padding", config.mask_padding, "leave it unset, or set only_masked, too")


def _value(config: SamplingConfig, option: str) -> Any:
    """What an option was set to; None if it was not."""
    has_presence = SamplingConfig.DESCRIPTOR.fields_by_name[option].has_presence
    is_set = config.HasField(option) if has_presence else bool(getattr(config, option))
    if not is_set:
        return None
    value = getattr(config, option)
    is_list = not isinstance(value, (str, int, float))
    return f"{len(value)} of them" if is_list else value
