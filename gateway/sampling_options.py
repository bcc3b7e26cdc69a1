"""The options of sampling: what each is when it is unset, and what is refused with the request around them.

A filled config holds only options that will be read, so that a client can send it again. unitune.sampling_rules says
which options go together.
"""

from collections.abc import Sequence, Sized

from unitune.choices import DEFAULT_RESAMPLES, GUIDANCE_INTERVAL, MASKS_OF_WORDS, PROMPT_TO_PROMPT, mask_source_of
from unitune.diffusion.solvers import DEFAULT_TCD_GAMMA, OWN_TIMESTEPS
from unitune.errors import InvalidField, length_of
from unitune.options import EDIT, SAMPLING, Flat, clear_unread, put_words, refuse_unread
from unitune.prompts import named_objects, unknown_words, without
from unitune.sampling_rules import INVERTIBLE, TCD, Asked, check_rules
from unitune.v1.edit_pb2 import SamplingConfig
from unitune.v1.server_pb2 import BaseModel

SWITCHES = tuple(field for field in SAMPLING.values() if field.is_switch)


def check_options(config: SamplingConfig, mask: Sized, field: str, method: str, prompt: str) -> None:
    """Refuse options that contradict each other or that nothing would read; each one's own range is checked elsewhere.

    `mask` is as long as the request's, `field` the config's own place in it, `method` the edit's, which the config may
    leave out.
    """
    refuse_unread(config, method, f"{field}.")
    check_rules(Asked(config, mask, method, prompt, has_mask=bool(mask)), field)


def fill_options(config: SamplingConfig, asked: SamplingConfig, mask: Sized) -> None:
    """Complete a filled config in place: the mask's source and what follows from it, and nothing that is not read."""
    filled, said = Flat(config), Flat(asked)
    for switch in SWITCHES:  # the defaults say what is in it when it is on
        if not switch.is_set(asked):
            switch.clear(config)
    put_words(config, {"mask_source": mask_source_of(said.mask_source, mask, said.mask_text)})
    if filled.mask_source != "difference" and not said.has("interpolation"):
        config.interpolation = 1.0  # what a known mask keeps is kept exactly
    if filled.automatic or filled.fast_lora or any(said.has(name) for name in ("guidance_scale", *GUIDANCE_INTERVAL)):
        # The base model's own interval goes with its own guidance_scale and weights, and as a whole.
        for end in GUIDANCE_INTERVAL:
            if not said.has(end):
                SAMPLING[end].clear(config)
    if filled.mask_source == "difference":
        SAMPLING["mask_blur"].clear(config)
    if filled.inverted and not said.scheduler:
        put_words(config, {"scheduler": INVERTIBLE})
    if filled.scheduler in OWN_TIMESTEPS:
        SAMPLING["timestep_spacing"].clear(config)
    if filled.scheduler == TCD and not filled.has("tcd_gamma"):
        put_words(config, {"tcd_gamma": DEFAULT_TCD_GAMMA})
    if filled.automatic:
        config.ClearField("strength")
        config.ClearField("guidance_scale")
    if filled.clip_filter and not filled.has("resamples"):
        config.clip_filter.resamples = 0 if filled.method == PROMPT_TO_PROMPT else DEFAULT_RESAMPLES
    if filled.method == PROMPT_TO_PROMPT:
        config.ClearField("prompt_guidance_scale")
    clear_unread(config, filled.method)


def check_clip_filter_prompt(config: SamplingConfig, prompt: str, words: str) -> None:
    """Refuse a CLIP filter for a prompt of nothing but the words of its tuning: it reads what is left without them."""
    if (config.automatic or config.HasField("clip_filter")) and not without(prompt, words):
        leave = "leave config.automatic and config.clip_filter unset"
        remedy = f"say more than {words!r}, which CLIP does not know, or {leave}"
        raise InvalidField("prompt", length_of(prompt), remedy)


def check_mask_words(config: SamplingConfig, mask: Sized, base_model: BaseModel, field: str) -> None:
    """Refuse words that what finds them does not know: the base model, or with `word` a CLIPSeg, which knows all."""
    asked = Flat(config)
    source = mask_source_of(asked.mask_source, mask, asked.mask_text)
    if source not in MASKS_OF_WORDS or (source == "word" and base_model.has_clipseg):
        return
    for word, nearest in unknown_words(" ".join(named_objects(asked.mask_text)), base_model.vocabulary):
        remedy = f"the base model does not know it; name {' or '.join(nearest) or 'something of its vocabulary'}"
        raise InvalidField(f"{field}.{SAMPLING['mask_text'].path}", word, remedy)


def check_inverted(config: SamplingConfig, seeds: Sequence[int]) -> None:
    """Refuse several seeds of an inverted edit, which is the same for each."""
    if config.inverted and len(seeds) > 1:
        remedy = "give one: an inverted edit is the same for every seed"
        raise InvalidField("seeds", EDIT["seeds"].number_of(seeds), remedy)
