"""LoRA files merged into a base model's weights: W + weight * (alpha / rank) * up @ down (Hu et al., 2021).

Names of kohya's trainer, of PEFT and of older diffusers are understood. Those of kohya have underscores for dots and
cannot be split: they are looked up among the names of the model's own modules.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from tuner_svc.model_folder import SECOND_TEXT_ENCODER, UnusableBaseModel
from tuner_svc.tensor_file import read_header, read_tensors

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}  # by part
KOHYA_OF_PAIR = {**KOHYA, "text_encoder": "lora_te1_", SECOND_TEXT_ENCODER: "lora_te2_"}  # of SDXL
# Adapters that cannot be merged: what is in their names, and what people call them.
OTHER_ADAPTERS = (
    ("lora_transformer_", "a LoRA of a transformer model"),
    ("hada_w1", "a LoHa"),
    ("lokr_w", "a LoKr"),
)
UNKNOWN_KINDS = (
    *OTHER_ADAPTERS,
    ("lora_mid", "a LoRA of three factors"),
    ("dora_scale", "a DoRA"),
    ("oft_", "an OFT"),
)
_OF_PAIR = (("lora_te1_", "a LoRA of an SDXL model"), ("lora_te2_", "a LoRA of an SDXL model"))
# An older name of diffusers, and the modules that it means: of the denoiser, and of a text encoder.
_OLDER = re.compile(r"(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora$")
_OLDER_UNET = {"to_q": ".to_q", "to_k": ".to_k", "to_v": ".to_v", "to_out": ".to_out.0"}
_OLDER_TEXT = {"to_q": ".q_proj", "to_k": ".k_proj", "to_v": ".v_proj", "to_out": ".out_proj"}
_PEFT_MODEL = "base_model.model."  # begins the names of a denoiser that PEFT itself has saved
_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_A.weight": "down",
    ".lora.down.weight": "down",
    ".lora_linear_layer.down.weight": "down",
    "_lora.down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_B.weight": "up",
    ".lora.up.weight": "up",
    ".lora_linear_layer.up.weight": "up",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}


@dataclass
class Factors:
    """One module's change: down (rank, in ...), up (out, rank ...), and alpha, the rank where it is missing."""

    weight: float
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """By which the product of the factors is multiplied."""
        rank = self.tensors["down"].shape[0]
        alpha = float(self.tensors["alpha"]) if "alpha" in self.tensors else float(rank)
        return self.weight * (alpha / rank)

    def delta(self, shape: tuple[int, ...]) -> Tensor:
        """What is added to the module's weight of this shape, float32."""
        down, up = self.tensors["down"].float(), self.tensors["up"].float()
        rank = down.shape[0]
        return self.scale * (up.reshape(-1, rank) @ down.reshape(rank, -1)).reshape(shape)


Changes = dict[str, dict[str, list[Factors]]]  # part -> the weight's name -> what every LoRA adds to it


def read_lora(
    path: Path,
    weight: float,
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    original_names: Mapping[str, str] = MappingProxyType({}),
) -> Changes:
    """A LoRA's changes to the weights of a model, whose shapes are given by part and name.

    `original_names` are those of the denoiser's weights in single files, which kohya's trainer takes for SDXL.

    Raises UnusableBaseModel for a file of another kind, for names that the model has not and for other shapes.
    """
    header = read_header(path)
    for word, what in (*UNKNOWN_KINDS, *(() if SECOND_TEXT_ENCODER in shapes else _OF_PAIR)):
        if any(word in name for name in header.shapes):
            raise UnusableBaseModel(f"{path} is {what}, which cannot be merged: give a plain LoRA of this family")
    modules = _modules(shapes, original_names)
    found: dict[tuple[str, str], Factors] = {}
    unmatched: list[str] = []
    for name, tensor in read_tensors(header).items():
        ending = next((ending for ending in _ENDINGS if name.endswith(ending)), None)
        place = modules.get(_module(name, ending)) if ending is not None else None
        if ending is None or place is None:
            unmatched.append(name)
        else:
            found.setdefault(place, Factors(weight)).tensors[_ENDINGS[ending]] = tensor
    if unmatched or not found:
        some = ", ".join(sorted(unmatched)[:3])
        raise UnusableBaseModel(
            f"{path} does not fit this model: {len(unmatched)} of its {len(header.shapes)} tensors have no place in it "
            f"({some}); give a LoRA of the same family"
        )
    changes: Changes = {part: {} for part in shapes}
    for (part, target), factors in found.items():
        _check(path, target, factors, shapes[part][target])
        changes[part].setdefault(target, []).append(factors)
    return changes


def merged(base: Tensor, factors: Iterable[Factors]) -> Tensor:
    """The weight with every LoRA of a weight other than 0 added in float32, rounded once to its own dtype."""
    some = [one for one in factors if one.weight]
    if not some:
        return base
    total = base.float()
    for one in some:
        total = total + one.delta(tuple(base.shape))
    rounded = total.to(base.dtype)
    if not bool(rounded.isfinite().all()):
        raise UnusableBaseModel("a LoRA's sum with the weights is not finite in their type: give a smaller weight")
    return rounded


def _modules(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], original_names: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Every name that a LoRA may call a module by -> its part and its weight's name."""
    names = {}
    for part, prefix in (KOHYA_OF_PAIR if SECOND_TEXT_ENCODER in shapes else KOHYA).items():
        for target in shapes[part]:
            if target.endswith(".weight"):
                module = target.removesuffix(".weight")
                names[prefix + module.replace(".", "_")] = names[f"{part}.{module}"] = (part, target)
                if part == "unet":  # as a denoiser saves its own adapters
                    names[module] = names[_PEFT_MODEL + module] = (part, target)
                    original = original_names.get(target, target).removesuffix(".weight")
                    names[prefix + original.replace(".", "_")] = (part, target)
    return names


def _module(name: str, ending: str) -> str:
    module = name.removesuffix(ending)
    if ending.startswith("_lora"):
        module += "_lora"
    if found := _OLDER.search(module):
        meant = _OLDER_TEXT if module[: found.start()].endswith(".self_attn") else _OLDER_UNET
        module = module[: found.start()] + meant[found[1]]
    return module


def _check(path: Path, target: str, factors: Factors, shape: tuple[int, ...]) -> None:
    if missing := {"down", "up"} - factors.tensors.keys():
        raise UnusableBaseModel(f"{path} is not whole: {target} lacks its factor {min(missing)}")
    down, up = factors.tensors["down"], factors.tensors["up"]
    if min(down.dim(), up.dim()) < 2 or down.shape[0] == 0:
        raise UnusableBaseModel(f"{path} is damaged: the factors of {target} are no matrices")
    inner = down.numel() // down.shape[0]
    wanted = 1
    for side in shape[1:]:
        wanted *= side
    if up.shape[1] != down.shape[0] or up.shape[0] != shape[0] or inner != wanted:
        raise UnusableBaseModel(
            f"{path} does not fit this model: {target} is {shape}, and its factors are {tuple(up.shape)} and "
            f"{tuple(down.shape)}; give a LoRA of the same family"
        )
