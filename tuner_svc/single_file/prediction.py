"""What a single file's denoiser predicts, epsilon or v, and who says so. A wrong answer makes every picture noise."""

import re
from typing import NamedTuple

from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.family import Family
from unitune.tensor_file import FileHeader

PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}  # by the word of the option
_WORDS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}  # of modelspec
_YAML = re.compile(r"^\s*parameterization\s*:\s*[\"']?(v|eps)\b", re.MULTILINE)


class PredictionType(NamedTuple):
    """A prediction type in diffusers' words, and its source in words for people."""

    kind: str
    source: str
    has_zero_snr: bool = False  # the last timestep is pure noise (arXiv 2305.08891)


class UntoldPrediction(UnusableBaseModel):
    """Nothing says what a file predicts."""


def prediction_of(header: FileHeader, family: Family, given: str | None) -> PredictionType:
    """The prediction type: the caller's word, else the file's, else its family's.

    Raises UnusableBaseModel when the file says another one than the caller, and UntoldPrediction when nothing says it.
    """
    has_zero_snr = "ztsnr" in header.shapes
    said = _said(header)
    if given is not None:
        wanted = PREDICTION_TYPES[given]
        if said is not None and said.kind != wanted:
            raise UnusableBaseModel(f"--prediction is {given}: {said.source} says {said.kind}; leave --prediction out")
        return PredictionType(wanted, "--prediction", has_zero_snr)
    if said is not None:
        return said._replace(has_zero_snr=has_zero_snr)
    if kind := family.scheduler.get("prediction_type"):
        return PredictionType(kind, "the family's own", has_zero_snr)
    raise UntoldPrediction(
        f"{header.path} does not say what it predicts: `unitune import FILE` with --prediction v for a model of 768 "
        "pixels, --prediction epsilon for one of 512, writes it as a folder"
    )


def _said(header: FileHeader) -> PredictionType | None:
    metadata = header.metadata
    if word := metadata.get("modelspec.prediction_type"):
        if word not in _WORDS:
            known = ", ".join(_WORDS)
            raise UnusableBaseModel(f"{header.path} says that it predicts {word!r}, which is none of {known}")
        return PredictionType(_WORDS[word], "its modelspec.prediction_type")
    if "768-v" in metadata.get("modelspec.architecture", ""):
        return PredictionType("v_prediction", "its modelspec.architecture")
    if "v_pred" in header.shapes:
        return PredictionType("v_prediction", "its tensor v_pred")
    beside = header.path.with_suffix(".yaml")
    if beside.is_file() and (found := _YAML.search(beside.read_text(errors="replace"))):
        return PredictionType("v_prediction" if found[1] == "v" else "epsilon", f"{beside.name} beside it")
    return None
