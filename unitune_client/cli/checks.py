"""What a server would refuse after the tuning, said before it. Every check raises InvalidField naming the argument."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from unitune.errors import InvalidArgument, InvalidField
from unitune.picture_file import flattened, read
from unitune.picture_header import KINDS, PNG, other_kind
from unitune_client import events
from unitune_client.options import EditOptions
from unitune_client.pictures import picture_bytes

TUNED_METHOD = "unitune"  # the default of every server
PROMPT_TO_PROMPT = "prompt_to_prompt"
MASKS_OF_WORDS = ("word", "attention")
WORD, ARTICLES = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*"), ("a", "an", "the")
# What a comparison has to be told for a method: only a caller can say it.
NEEDED = {"dreambooth": "class_noun", "textual_inversion": "initial_word", PROMPT_TO_PROMPT: "base_prompt"}


def check_prompts(info: events.ServerInfo, prompts: Sequence[str], options: EditOptions, method: str = "") -> None:
    """Prompts of the right length, and a base prompt where one is read."""
    for prompt in prompts:
        if not prompt.strip() or len(prompt) > info.limits.prompt_characters:
            remedy = f"describe the picture in 1 to {info.limits.prompt_characters} characters"
            raise InvalidField("PROMPT", f"{len(prompt)} characters" if prompt.strip() else "", remedy)
    for argument, prompt in (
        ("--negative-prompt", options.get("negative_prompt") or ""),
        ("--base-prompt", options.get("base_prompt") or ""),
    ):
        if len(prompt) > info.limits.prompt_characters:
            remedy = f"give at most {info.limits.prompt_characters} characters"
            raise InvalidField(argument, f"{len(prompt)} characters", remedy)
    base_prompt, scale = (options.get("base_prompt") or "").strip(), options.get("prompt_guidance_scale")
    if method == PROMPT_TO_PROMPT:
        if not base_prompt:
            remedy = "describe PHOTO as it is, in words like PROMPT's: the edit takes its layout from them"
            raise InvalidField("--base-prompt", "unset", remedy)
        return
    if scale and not base_prompt:
        raise InvalidField("--base-prompt", "unset", "describe PHOTO as it is; --prompt-guidance guides away from that")
    if base_prompt and scale is None and options.get("mask_source") != "diffedit":
        remedy = "give --prompt-guidance or --mask-source diffedit, which read it, or leave it out"
        raise InvalidField("--base-prompt", base_prompt, remedy)


def check_choices(info: events.ServerInfo, method: str, options: EditOptions) -> None:
    """Names that the server knows, numbers that it allows, and options that the method has."""
    _check_method(info, "--method", method)
    _check_seeds(info, options.get("seeds") or ())
    scheduler = options.get("scheduler")
    if scheduler is not None and scheduler not in info.schedulers:
        raise InvalidField("--scheduler", scheduler, f"give one of {', '.join(info.schedulers)}")
    repeats = options.get("repeats")
    if repeats is not None and method != "sdedit":
        raise InvalidField("--repeats", repeats, "leave it out, or give --method sdedit, which has it")
    for option in ("cross_replace", "self_replace", "inversion", "alignment", "word_weights", "blend_words"):
        if options.get(option) is not None and method != PROMPT_TO_PROMPT:
            argument = {"word_weights": "--weight", "blend_words": "--blend"}.get(
                option, f"--{option.replace('_', '-')}"
            )
            remedy = f"leave it out, or give --method {PROMPT_TO_PROMPT}, which has it"
            value = options[option]
            shown = ", ".join(value) if isinstance(value, (list, dict)) else str(value)
            raise InvalidField(argument, shown, remedy)
    low, high = options.get("guidance_sigma_low"), options.get("guidance_sigma_high")
    if low is not None and high is not None and low >= high:
        remedy = "give a LOW below HIGH; for no guidance at all give --guidance 1"
        raise InvalidField("--guidance-interval", f"{low:g} {high:g}", remedy)
    if options.get("eta") is not None and method != "imagic":
        raise InvalidField("--eta", options["eta"], "leave it out, or give --method imagic, which has it")


def check_words(info: events.ServerInfo, prompts: Sequence[str], method: str, **tuning: Any) -> None:
    """Refuse before the tuning a prompt without the words that its method binds. Raises InvalidField."""
    if method not in ("dreambooth", "textual_inversion"):
        return
    defaults = info.method_tuning_defaults.get(method, info.tuning_defaults)
    needed = [tuning.get("rare_tokens") or defaults.rare_tokens]
    if method == "dreambooth":
        if not tuning.get("class_noun"):
            raise InvalidField("--class-noun", "", "say what kind of thing the photos show, such as dog")
        needed.append(tuning["class_noun"])
    elif not tuning.get("initial_word"):
        raise InvalidField("--initial-word", "", "give one word that says what the photo shows, such as dog")
    for prompt in prompts:
        for words in needed:
            if words.lower() not in prompt.lower():
                raise InvalidField("PROMPT", prompt, f"with {method} it must have {' and '.join(needed)} in it")


def check_comparison(
    info: events.ServerInfo, prompt: str, methods: Sequence[str], said: Mapping[str, str | None], seeds: Sequence[int]
) -> None:
    """Methods that the server knows, each once, each with the word that it needs, and no word for nothing.

    `said` are class_noun, initial_word and base_prompt; no methods are all that can run.
    """
    check_prompts(info, [prompt], EditOptions())
    _check_seeds(info, seeds)
    for index, method in enumerate(methods):
        _check_method(info, "--methods", method)
        if method in methods[:index]:
            raise InvalidField("--methods", method, "name each method once")
    remedies = {
        "dreambooth": "say what kind of thing PHOTO shows, such as dog",
        "textual_inversion": "give one word that says what PHOTO shows, such as dog",
        PROMPT_TO_PROMPT: "describe PHOTO as it is, in words like PROMPT's",
    }
    for method, word in NEEDED.items():
        argument, given = f"--{word.replace('_', '-')}", said.get(word)
        if method in methods and not given:
            raise InvalidField(argument, "", remedies[method])
        if methods and method not in methods and given:
            raise InvalidField(argument, given, f"leave it out, or name {method} in --methods, which reads it")
        bound = info.method_tuning_defaults.get(method, info.tuning_defaults).rare_tokens
        if (
            given
            and word != "base_prompt"
            and not any(words and words.lower() in prompt.lower() for words in (given, bound))
        ):
            raise InvalidField("PROMPT", prompt, f"it must have {given} in it, where {method} puts its own words")


def check_mask_text(info: events.ServerInfo, options: EditOptions) -> None:
    """What the mask is of, if its source finds words: given, and known to what finds it."""
    text, source = options.get("mask_text"), _mask_source(options)
    if source not in MASKS_OF_WORDS:
        if text is not None:
            raise InvalidField("--mask-text", text, f"leave it out: the mask is {source}, or give --mask-source word")
        return
    words = [word for word in WORD.findall((text or "").lower()) if word not in ARTICLES]
    if not words:
        value = "unset" if text is None else text
        raise InvalidField("--mask-text", value, 'name what the mask is of, as in "the cat" or "cat, tree"')
    if len(text or "") > info.limits.prompt_characters:
        remedy = f"give at most {info.limits.prompt_characters} characters"
        raise InvalidField("--mask-text", f"{len(text or '')} characters", remedy)
    known = {word.lower() for word in info.base_model.vocabulary}
    if not known or (source == "word" and info.base_model.has_clipseg):
        return
    for word in words:
        if word not in known:
            near = " or ".join(get_close_matches(word, sorted(known))) or "a word of `unitune doctor --vocabulary`"
            raise InvalidField("--mask-text", word, f"the base model does not know it; name {near}")


def check_fast(info: events.ServerInfo, method: str, options: EditOptions) -> None:
    """Few steps that the base model names, if they are asked for, and nothing that does not go with them."""
    if not options.get("fast"):
        return
    if method != TUNED_METHOD:
        raise InvalidField("--fast", "given", f"leave it out, or give --method {TUNED_METHOD}, which has it")
    if options.get("num_inference_steps") is not None:
        raise InvalidField("--steps", options["num_inference_steps"], "leave it out, or leave out --fast")
    if options.get("automatic"):
        remedy = "leave it out, or leave out --fast: few steps round its strengths down far"
        raise InvalidField("--automatic", "given", remedy)
    if not info.base_model.fast_steps:
        remedy = f"give --steps instead: the base model {info.base_model.name} does not say how few still do"
        raise InvalidField("--fast", "given", remedy)


def check_super_resolution(info: events.ServerInfo, options: EditOptions) -> None:
    """Super-resolution, if it is asked for."""
    if options.get("super_resolution") and not info.base_model.super_resolution_width:
        remedy = f"leave it out: the base model {info.base_model.name} has no super-resolution"
        raise InvalidField("--super-resolution", "given", remedy)


def check_mask(options: EditOptions, picture: events.Image) -> None:
    """A mask that fits the picture, if one is needed, and options of masks only where there is one."""
    mask, source = options.get("mask"), _mask_source(options)
    if source == "given" and mask is None:
        raise InvalidField("--mask", "unset", "--mask-source given needs it; give a PNG file")
    if options.get("inverted"):
        _check_inverted(options, source, options.get("method"))
    if source != "given" and mask is not None:
        raise InvalidField("--mask", "given", f"leave it out: --mask-source {source} estimates its own")
    if options.get("only_masked") and source != "given":
        raise InvalidField("--only-masked", "given", "give --mask, too: it edits a crop around that")
    if options.get("mask_blur") is not None and source == "difference":
        remedy = "give --mask, --mask-text or --mask-source diffedit, too: it softens the edge of that"
        raise InvalidField("--mask-blur", options["mask_blur"], remedy)
    if isinstance(mask, bytes):
        _check_mask_file(mask, picture)


def _mask_source(options: EditOptions) -> str:
    """The source in force, as the server decides it."""
    implied = "given" if options.get("mask") is not None else "word" if options.get("mask_text") is not None else ""
    return options.get("mask_source") or implied or "difference"


def _check_inverted(options: EditOptions, source: str, method: str | None) -> None:
    if source in ("difference", "attention"):
        raise InvalidField("--inverted", "given", f"give --mask, --mask-text or --mask-source diffedit, not {source}")
    if len(options.get("seeds") or ()) > 1:
        raise InvalidField("--seed", f"{len(options['seeds'] or ())} seeds", "give one: --inverted is the same for all")
    if method == PROMPT_TO_PROMPT:
        raise InvalidField("--inverted", "given", f"leave it out: {PROMPT_TO_PROMPT} inverts PHOTO by itself")
    if options.get("clip_filter"):
        raise InvalidField(
            "--clip-filter", "given", "leave it out: --inverted is the same for every seed that it would try"
        )


def mask_of(path: str | None) -> bytes | None:
    """The mask's file, if there is one."""
    if path is None:
        return None
    try:
        data = picture_bytes(Path(path), "mask")
    except InvalidField as error:
        raise InvalidField("--mask", path, error.metadata["remedy"]) from None
    refuse_kind("--mask", path, data, (PNG,))
    return data


def refuse_kind(argument: str, path: str, data: bytes, kinds: Sequence[str] = KINDS) -> None:
    """Raise InvalidField for a file that is no picture of these kinds, naming what it is."""
    if wrong := other_kind(data, kinds):
        kind, remedy = wrong
        raise InvalidField(argument, path, f"it is {kind}; {remedy.replace('send', 'give', 1)}")


def _check_method(info: events.ServerInfo, argument: str, method: str) -> None:
    if method not in info.methods:
        raise InvalidField(argument, method, f"give one of {', '.join(info.methods)}")


def _check_seeds(info: events.ServerInfo, seeds: Sequence[int]) -> None:
    if len(seeds) > info.limits.seeds:
        raise InvalidField("--seed", f"{len(seeds)} seeds", f"give at most {info.limits.seeds}")


def _check_mask_file(data: bytes, picture: events.Image) -> None:
    try:
        mask = read(data, "--mask", (PNG,))
    except InvalidArgument as error:
        raise InvalidField("--mask", error.metadata["value"], error.metadata["remedy"]) from None
    if mask.size != (picture.width, picture.height):
        remedy = f"make it as large as PHOTO, {picture.width}x{picture.height}"
        raise InvalidField("--mask", f"{mask.width}x{mask.height} pixels", remedy)
    if flattened(mask, "L", "black").getextrema()[1] == 0:
        raise InvalidField("--mask", "all black", "make white what is to be edited; nothing is")
