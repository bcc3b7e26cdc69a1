"""The metadata of an edited picture, as the server wrote it: read, and turned into options again.

EditedImage.png in edit.proto tells its form. A picture may come from anybody, so every field is checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from unitune import png_text
from unitune.errors import InvalidField
from unitune_client.options import SHARED_OPTIONS, EditOptions, TuningOptions

VERSION = 1
KEYWORD = "unitune"  # of a picture's text
SHEET_KEYWORD = "unitune-sheet"  # of a contact sheet's text
NO_RECORD = "it does not say how it was made: it is not by UniTune, or was made or saved again without that"
MASK_OPTIONS = ("mask_source", "mask_text", "mask_blur", "mask_keeps", "mask_padding", "only_masked", "interpolation")
CHOSEN_BY_AUTOMATIC = ("strength", "guidance_scale")
# Of a picture that was made without the fast LoRA they are for many steps.
CHOSEN_BY_FAST_LORA = ("scheduler", "num_inference_steps", "guidance_scale", "timestep_spacing", "tcd_gamma")
OLD_NAMES = {"gate": "clip_filter"}  # of settings, in records of earlier versions


@dataclass(frozen=True)
class Record:
    """How a picture was made. Digests are sha256 of files, hexadecimal; `mask` is empty if none was given."""

    prompt: str
    seed: int
    method: str
    sampling: Mapping[str, Any]
    tuning: Mapping[str, Any]
    base_model: str
    base_model_name: str
    photo: str
    mask: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)
    further_photos: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # all of it, as it is in the file

    @classmethod
    def read(cls, path: str, argument: str) -> "Record":
        """What the picture at a path says. Raises InvalidField naming `argument`."""
        return parsed(texts_of(path, argument), path, argument)

    def options(self, asked: EditOptions, *, has_fast_lora: bool = False) -> EditOptions:
        """The options that make this picture again, except those that are asked for.

        With another method than the picture's, only the seed is the picture's. `has_fast_lora` is the base model's.
        """
        given = _given(asked)
        if given.get("method", self.method) != self.method:
            return cast(EditOptions, {"seeds": [self.seed], **given})
        recorded = {"automatic": False, **self.sampling, "method": self.method}
        if recorded["automatic"] and (
            given.get("automatic") is False
            or any(name in given for name in (*CHOSEN_BY_AUTOMATIC, "clip_filter", "fast", "fast_lora"))
        ):
            recorded |= {**self.chosen, "automatic": False}
        leaves = self._left_out(given, has_fast_lora=has_fast_lora)
        kept = {name: value for name, value in recorded.items() if name not in leaves}
        return cast(EditOptions, {"seeds": [self.seed], **kept, **given})

    def tuning_options(self, asked: TuningOptions, method: str | None) -> TuningOptions:
        """The options of its tuning. Its prompt, and what else it has in common with the edit, are the edit's own.

        `method` is the one asked for.
        """
        if (method or self.method) != self.method:
            return asked
        kept = {name: value for name, value in self.tuning.items() if name not in (*SHARED_OPTIONS, "prompt")}
        if "seed" in kept:
            kept["tuning_seed"] = kept.pop("seed")
        return cast(TuningOptions, {**kept, **_given(asked)})

    def _left_out(self, given: Mapping[str, Any], *, has_fast_lora: bool) -> set[str]:
        """The recorded options that do not go with those that are given."""
        leaves = set()
        if given.get("fast"):
            leaves |= {"num_inference_steps"}
        with_fast_lora = given.get("fast_lora") or (given.get("fast") and has_fast_lora)
        if with_fast_lora and not self.sampling.get("fast_lora"):
            leaves |= set(CHOSEN_BY_FAST_LORA)
        if given.get("automatic"):
            leaves |= {*CHOSEN_BY_AUTOMATIC, "clip_filter", "resamples", "guidance_sigma_low", "guidance_sigma_high"}
        recorded = self.sampling.get("mask_source")
        implied = "given" if "mask" in given else "word" if "mask_text" in given else recorded
        if given.get("mask_source", implied) != recorded:
            leaves |= set(MASK_OPTIONS)
        return leaves


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, [])}


def texts_of(path: str, argument: str) -> dict[str, str]:
    """The texts of a PNG file. Raises InvalidField naming `argument`."""
    try:
        return png_text.texts_of(Path(path).read_bytes())
    except png_text.NotPng as error:
        raise InvalidField(argument, Path(path), f"{error}; give a PNG file that UniTune made") from None
    except OSError as error:
        raise InvalidField(
            argument, Path(path), f"{error.strerror or error}; give a PNG file that UniTune made"
        ) from None


def pictures_of_sheet(texts: Mapping[str, str]) -> list[str] | None:
    """The names of the pictures on a contact sheet, by the texts of its file; None for any other picture."""
    try:
        return [_text(name) for name in json.loads(texts[SHEET_KEYWORD])["pictures"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def parsed(texts: Mapping[str, str], path: str, argument: str) -> Record:
    """What the texts of a picture at a path say. Raises InvalidField naming `argument`."""
    if (pictures := pictures_of_sheet(texts)) is not None:
        such = f", such as {pictures[0]}" if pictures else ""
        raise InvalidField(argument, Path(path), f"it is a contact sheet; give one of its pictures{such}")
    text = texts.get(KEYWORD, "")
    if not text:
        raise InvalidField(argument, Path(path), NO_RECORD)
    try:
        said = json.loads(text)
        version = said["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InvalidField(argument, Path(path), "what it says of its making is damaged") from None
    if version != VERSION:
        remedy = f"a UniTune of another version wrote it (form {str(version)[:8]}, not {VERSION}); update this one"
        raise InvalidField(argument, Path(path), remedy)
    try:
        tuning = said.get("tuning", {})
        record = Record(
            prompt=_text(said["prompt"]),
            seed=_number(said["seed"]),
            method=_text(said["method"]),
            sampling={OLD_NAMES.get(name, name): value for name, value in _table(said["sampling"]).items()},
            tuning=_table(tuning.get("config", {})),
            base_model=_text(said["base_model"]["digest"]),
            base_model_name=_text(said["base_model"]["name"]),
            photo=_text(said["picture"]["sha256"]),
            mask=_text(said.get("mask", {}).get("sha256", "")),
            chosen={name: float(said["chosen"][name]) for name in CHOSEN_BY_AUTOMATIC} if "chosen" in said else {},
            further_photos=tuple(map(_text, tuning.get("further_pictures", ()))),
            facts=said,
        )
        unknown = (record.sampling.keys() - EditOptions.__annotations__.keys()) | (
            record.tuning.keys() - {*TuningOptions.__annotations__, "seed", "prompt"}
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidField(argument, Path(path), "what it says of its making is damaged") from None
    if unknown:
        remedy = f"it was made with settings that this UniTune does not know ({', '.join(sorted(unknown))[:80]})"
        raise InvalidField(argument, Path(path), remedy)
    return record


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(value)
    return value


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return value
