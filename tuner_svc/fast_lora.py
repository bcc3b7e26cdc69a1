"""The fast LoRA of a base model: it distils the denoiser to few steps, and is added while sampling, never while tuning.

A tuning is of the plain base model: its loss would undo a distillation. Changes of weights add up, so that an edit can
be sampled with the base model's weights, the tuning's changes and the LoRA's together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from tuner_svc.lora_file import Factors, read_lora
from tuner_svc.model_folder import (
    FAST_LORA_FOLDER,
    FAST_LORA_WEIGHTS,
    SECOND_TEXT_ENCODER,
    UnusableBaseModel,
    has_two_text_encoders,
    read_fast_lora_settings,
)
from tuner_svc.original_names import original_module
from tuner_svc.tensor_file import read_header
from unitune.base_model import FastLoraSpec
from unitune.codecs import DecodedTensors

_OF_TEXT = ("lora_te", "text_encoder")  # begin the names of a text encoder's changes


@dataclass(frozen=True)
class FastLora:
    """The LoRA in memory. Its factors lie in their file's memory map."""

    spec: FastLoraSpec
    factors: Mapping[str, Factors]  # by the denoiser's tensor

    def stored(self) -> dict[str, NDArray[Any]]:
        """Its changes as unitune.codecs stores them, by codec `lora`; weight and alpha are in the first factor."""
        found: dict[str, NDArray[Any]] = {}
        for name, factors in self.factors.items():
            up, down = factors.tensors["up"].flatten(1), factors.tensors["down"].flatten(1)
            found[f"{name}#up"] = _array(up if factors.scale == 1 else up.float() * factors.scale)
            found[f"{name}#down"] = _array(down)
        return found

    def added_to(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that it changes, with its changes; `tensors` are all of the denoiser's."""
        own = {name: tensors[name].cpu().numpy() for name in self.factors}
        return {name: torch.from_numpy(tensor) for name, tensor in DecodedTensors(self.stored(), own, "lora").items()}


def read_fast_lora(folder: Path, unet: UNet2DConditionModel) -> FastLora | None:
    """That of a base model's folder, if it has one. Raises UnusableBaseModel for one that does not fit."""
    settings = read_fast_lora_settings(folder)
    if settings is None:
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    is_pair = has_two_text_encoders(folder)
    names = (
        {name: f"{original_module(name.removesuffix('.weight'), unet.config)}.weight" for name in shapes}
        if is_pair
        else {}
    )
    path = folder / FAST_LORA_FOLDER / FAST_LORA_WEIGHTS
    return FastLora(settings.spec, read_factors(path, settings.weight, shapes, names, is_pair=is_pair))


def read_factors(
    path: Path,
    weight: float,
    shapes: Mapping[str, tuple[int, ...]],
    original_names: Mapping[str, str],
    *,
    is_pair: bool,
) -> dict[str, Factors]:
    """A LoRA's factors by the denoiser's tensor, whose shapes are given; `is_pair` of SDXL's two text encoders.

    Raises UnusableBaseModel as `read_lora`, and for one that changes a text encoder, which no edit changes.
    """
    of_text = [name for name in read_header(path).shapes if name.startswith(_OF_TEXT)]
    if of_text:
        raise UnusableBaseModel(
            f"{path} changes a text encoder, too ({of_text[0]}), which is one for all edits: give a LoRA of the "
            "denoiser alone, or merge it by --lora"
        )
    encoders = ("text_encoder", *([SECOND_TEXT_ENCODER] if is_pair else []))
    parts = {"unet": shapes, **{encoder: {} for encoder in encoders}}
    return {name: factors for name, (factors,) in read_lora(path, weight, parts, original_names)["unet"].items()}


def _array(factor: Tensor) -> NDArray[Any]:
    return (factor if factor.dtype in (torch.float16, torch.float32) else factor.float()).numpy()
