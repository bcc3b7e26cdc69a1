"""Checks an edit's texts before its tuning is made: what the text encoders do not read of them."""

from dataclasses import dataclass

from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.clip_filter import ClipFilter
from sampler_svc.sampling.clipseg import ClipSeg
from sampler_svc.sampling.local_blend import branches_with, place_of
from sampler_svc.sampling.prompt_to_prompt import Controller
from sampler_svc.sampling.request import Request
from unitune.choices import MASKS_OF_WORDS
from unitune.errors import InvalidField
from unitune.prompts import named_objects, without
from unitune.reading import TuningTexts, check_tuning, checked, shown, warnings_of

NAME_WORDS = "describe the edited picture in words"


@dataclass(frozen=True)
class Texts:
    """The texts of a request, as they were sent."""

    wanted: Request
    rare_tokens: str  # before prompt and base prompt
    base_prompt: str
    bound: str  # the words that the tuning binds, which CLIP does not know
    vectors: tuple[str, int]  # the placeholder of Textual Inversion, and its number of vectors
    tuning: TuningTexts | None  # those of the tuning, if it is not made yet
    is_scored: bool  # the CLIP filter reads the prompt


def check_texts(graphs: BaseGraphs, clip_filter: ClipFilter | None, clipseg: ClipSeg | None, texts: Texts) -> list[str]:
    """Warnings in plain words.

    Raises InvalidField for a needed text of which nothing is read, and for words that are not in the part of a prompt
    that is read.
    """
    wanted, before, reader = texts.wanted, texts.rare_tokens, graphs.reader
    prompt = wanted.untuned_prompt
    warnings = checked(reader, "prompt", prompt, before=before, vectors=texts.vectors, remedy=NAME_WORDS)
    if wanted.negative_prompt.strip():
        reading = reader.read(wanted.negative_prompt)
        if reading.says_nothing:
            warnings.append("config.negative_prompt does nothing: nothing of it is a word that the base model reads")
        else:
            warnings += warnings_of(reading, reader, "config.negative_prompt")
    if texts.base_prompt.strip():
        remedy = "describe the picture as it is in words"
        warnings += checked(reader, "config.base_prompt", texts.base_prompt, before=before, remedy=remedy)
    if wanted.mask_source in MASKS_OF_WORDS:
        finds = clipseg.reader if clipseg is not None and wanted.mask_source == "word" else reader
        for thing in named_objects(wanted.mask_text):
            warnings += checked(finds, "config.mask.text", thing, remedy="name what the mask is of in words")
    if wanted.attention is not None:
        base, edited = graphs.text(wanted.base_prompt), graphs.text(wanted.prompt)
        Controller(wanted.attention, base, edited, graphs.spec.context_tokens, wanted.num_inference_steps)
        for index, word in enumerate(wanted.attention.blend_words):
            branches_with(word, base, edited, place_of(index))
            if reader.read(word).says_nothing:
                remedy = "the base model reads nothing of it; name words of prompt or config.base_prompt"
                raise InvalidField(place_of(index), word, remedy)
    if texts.tuning is not None:
        warnings += check_tuning(reader, texts.tuning, "tuning_config")
    if clip_filter is not None and texts.is_scored:
        unread = reader.read(prompt, before, texts.vectors).unread
        warnings += _clip_filter_warnings(clip_filter, without(prompt, texts.bound), unread)
    return list(dict.fromkeys(warnings))


def _clip_filter_warnings(clip_filter: ClipFilter, prompt: str, unread: str) -> list[str]:
    """A warning where the CLIP filter reads less of a prompt than the text encoder, which does not read `unread`."""
    reading = clip_filter.reader.read(prompt)
    if reading.says_nothing:
        return ["the CLIP filter reads nothing of prompt: its scores and its choice mean nothing"]
    if len(reading.unread.split()) > len(unread.split()):
        return [f"the CLIP filter does not read all of prompt: it judges without {shown(reading.unread)}"]
    return []
