"""A single file's tensors under the names of diffusers and transformers, all of them accounted for.

diffusers has the renaming. What it leaves to chance is held here: every tensor that the parts need is there once, in
its shape, and every tensor of theirs is used.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tuner_svc.model_folder import SECOND_TEXT_ENCODER, UnusableBaseModel
from tuner_svc.single_file.family import CLIP, EMA, FIRST_OF_PAIR, OPEN_CLIP, SECOND_OF_PAIR, UNET, VAE, Family
from tuner_svc.tensor_file import read_tensors
from unitune.tensor_file import FileHeader

Tensors = dict[str, Tensor]
TEXT = "text_model."  # begins the names of published text encoders; transformers takes them with it and without it
PROJECTION = "text_projection.weight"  # of SDXL's second text encoder: makes the pooled embedding
# Of a text encoder: recomputed, or of CLIP's other half.
_NOT_READ = ("position_ids", "logit_scale", "text_projection", PROJECTION)
# diffusers' own older names of an autoencoder's attention, which published files still have.
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NEW_NAMES = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
DIFFUSERS_VAE = "encoder.conv_norm_out.weight"  # is in an autoencoder's file that has diffusers' names already


class Unet(NamedTuple):
    """A denoiser that was read."""

    tensors: Tensors
    is_averaged: bool  # these are the averaged weights (EMA)
    original_names: dict[str, str]  # by name: what the file calls it, as in "input_blocks.1.0.in_layers.0.weight"


def read_unet(header: FileHeader, family: Family) -> Unet:
    """The denoiser; the averaged weights (EMA) are taken where all are there."""
    found = read_tensors(header, lambda name: name.startswith((UNET, EMA)))
    names = [name for name in found if name.startswith(UNET)]
    averages = {name: EMA + name.removeprefix("model.").replace(".", "") for name in names}
    is_averaged = all(average in found for average in averages.values())
    source = {name: found[averages[name] if is_averaged else name] for name in names}
    converted = convert_ldm_unet_checkpoint(source, dict(family.unet))
    new_names = {id(tensor): name for name, tensor in converted.items()}
    unused = [name for name, tensor in source.items() if id(tensor) not in new_names]
    _hold(header, "denoiser", converted, unet_shapes(family), unused)
    originals = {new_names[id(tensor)]: name.removeprefix(UNET) for name, tensor in source.items()}
    return Unet(converted, is_averaged, originals)


def read_vae(header: FileHeader, family: Family) -> Tensors:
    """The autoencoder's tensors, of a whole model or of a file of its own."""
    if DIFFUSERS_VAE in header.shapes:
        converted = {_NEW_NAMES.sub(_new_name, name): tensor for name, tensor in read_tensors(header).items()}
        unused = []
    else:
        is_whole = any(name.startswith(VAE) for name in header.shapes)
        source = read_tensors(header, lambda name: not is_whole or name.startswith(VAE))
        of_training = ("loss.", EMA)
        ours = {name: one for name, one in source.items() if not name.removeprefix(VAE).startswith(of_training)}
        converted = convert_ldm_vae_checkpoint(ours, dict(family.vae))
        unused = [] if len(converted) == len(ours) else [f"{len(ours) - len(converted)} names"]
    _hold(header, "autoencoder", converted, vae_shapes(family), unused)
    return converted


def _new_name(found: re.Match[str]) -> str:
    return _NEW[found[1]]


def has_vae(header: FileHeader) -> bool:
    """Whether a whole model brings its autoencoder."""
    return any(name.startswith(VAE) for name in header.shapes)


def read_text_encoders(header: FileHeader, family: Family) -> dict[str, Tensors]:
    """The text encoders' tensors by part, of CLIP or of OpenCLIP. What lies beyond their last layers is left out."""
    begins: dict[str, tuple[str, ...]] = {"text_encoder": (CLIP, OPEN_CLIP)}
    if family.second_text_encoder is not None:
        begins = {"text_encoder": (FIRST_OF_PAIR,), SECOND_TEXT_ENCODER: (SECOND_OF_PAIR,)}
    return {part: _read_text_encoder(header, family, part, names) for part, names in begins.items()}


def _read_text_encoder(header: FileHeader, family: Family, part: str, begins: tuple[str, ...]) -> Tensors:
    found = read_tensors(header, lambda name: name.startswith(begins))
    open_clip = next((begin for begin in (OPEN_CLIP, SECOND_OF_PAIR) if any(n.startswith(begin) for n in found)), None)
    if open_clip is not None:
        converted = convert_open_clip_checkpoint(_text_model(family.text_encoders[part]), found, prefix=open_clip)
    else:
        converted = convert_ldm_clip_checkpoint(found)
    converted = {_published(name): tensor for name, tensor in converted.items()}
    wanted = text_encoder_shapes(family)[part]
    layers = int(family.text_encoders[part].get("num_hidden_layers", 12))
    unused = [
        name
        for name in converted.keys() - wanted.keys()
        if not name.endswith(_NOT_READ) and not _is_beyond(name, layers)
    ]
    kept = {name: converted[name] for name in wanted if name in converted}
    _hold(header, part.replace("_", " "), kept, wanted, unused)
    return kept


def unet_shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes of the denoiser's tensors by name."""
    with torch.device("meta"):
        return _shapes(UNet2DConditionModel.from_config(dict(family.unet)).state_dict())


def vae_shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes of the autoencoder's tensors by name."""
    with torch.device("meta"):
        return _shapes(AutoencoderKL.from_config(dict(family.vae)).state_dict())


def text_encoder_shapes(family: Family) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of each text encoder's tensors by part and published name."""
    models = {part: _text_model(config) for part, config in family.text_encoders.items()}
    return {
        part: {
            _published(name): shape for name, shape in _shapes(model.state_dict()).items() if "position_ids" not in name
        }
        for part, model in models.items()
    }


def _text_model(config: Mapping[str, Any]) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Its shapes alone."""
    has_projection = "CLIPTextModelWithProjection" in config.get("architectures", ())
    kind = CLIPTextModelWithProjection if has_projection else CLIPTextModel
    with torch.device("meta"):
        return kind(CLIPTextConfig(**{name: value for name, value in config.items() if name != "architectures"}))


def _published(name: str) -> str:
    return name if name == PROJECTION else f"{TEXT}{name.removeprefix(TEXT)}"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _is_beyond(name: str, layers: int) -> bool:
    rest = name.removeprefix(f"{TEXT}encoder.layers.")
    number = rest.partition(".")[0]
    return rest != name and number.isdigit() and int(number) >= layers


def _hold(
    header: FileHeader, part: str, found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], unused: list[str]
) -> None:
    """Raises UnusableBaseModel unless the part's tensors are those that are wanted."""
    missing = sorted(wanted.keys() - found.keys())
    unused = sorted([*unused, *(found.keys() - wanted.keys())])
    other = [name for name in sorted(wanted.keys() & found.keys()) if tuple(found[name].shape) != wanted[name]]
    remedy = "give --config of a diffusers folder of the same architecture, or a model of another file"
    for what, names in (("lacks", missing), ("has unknown", unused), ("has of another shape", other)):
        if names:
            raise UnusableBaseModel(
                f"{header.path}: its {part} {what} {len(names)} tensors ({', '.join(names[:3])}); {remedy}"
            )
