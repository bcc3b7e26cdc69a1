"""A single file's tensors under the names of diffusers and transformers, all of them accounted for.

diffusers has the renaming. What it leaves to chance is held here: every tensor that the parts need is there once, in
its shape, and every tensor of theirs is used.
"""

import re
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.family import CLIP, EMA, OPEN_CLIP, UNET, VAE, Family
from tuner_svc.single_file.tensor_file import FileHeader, read_tensors

Tensors = dict[str, Tensor]
TEXT = "text_model."  # begins the names of published text encoders; transformers takes them with it and without it
# Of a text encoder: recomputed, or of CLIP's other half.
_NOT_READ = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")
# diffusers' own older names of an autoencoder's attention, which published files still have.
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NEW_NAMES = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
DIFFUSERS_VAE = "encoder.conv_norm_out.weight"  # is in an autoencoder's file that has diffusers' names already


def read_unet(header: FileHeader, family: Family) -> tuple[Tensors, bool]:
    """The denoiser's tensors, and whether they are the averaged ones (EMA), which are taken where all are there."""
    found = read_tensors(header, lambda name: name.startswith((UNET, EMA)))
    names = [name for name in found if name.startswith(UNET)]
    averages = {name: EMA + name.removeprefix("model.").replace(".", "") for name in names}
    is_averaged = all(average in found for average in averages.values())
    source = {name: found[averages[name] if is_averaged else name] for name in names}
    converted = convert_ldm_unet_checkpoint(source, dict(family.unet))
    used = {id(tensor) for tensor in converted.values()}
    unused = [name for name, tensor in source.items() if id(tensor) not in used]
    _hold(header, "denoiser", converted, unet_shapes(family), unused)
    return converted, is_averaged


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


def read_text_encoder(header: FileHeader, family: Family) -> Tensors:
    """The text encoder's tensors, of CLIP or of OpenCLIP. What lies beyond its last layer is left out."""
    found = read_tensors(header, lambda name: name.startswith((CLIP, OPEN_CLIP)))
    if any(name.startswith(OPEN_CLIP) for name in found):
        with torch.device("meta"):
            converted = convert_open_clip_checkpoint(CLIPTextModel(_text_config(family)), found, prefix=OPEN_CLIP)
    else:
        converted = convert_ldm_clip_checkpoint(found)
    converted = {f"{TEXT}{name.removeprefix(TEXT)}": tensor for name, tensor in converted.items()}
    wanted = text_encoder_shapes(family)
    layers = int(family.text_encoder["num_hidden_layers"])
    unused = [
        name
        for name in converted.keys() - wanted.keys()
        if not name.endswith(_NOT_READ) and not _is_beyond(name, layers)
    ]
    kept = {name: converted[name] for name in wanted if name in converted}
    _hold(header, "text encoder", kept, wanted, unused)
    return kept


def unet_shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes of the denoiser's tensors by name."""
    with torch.device("meta"):
        return _shapes(UNet2DConditionModel.from_config(dict(family.unet)).state_dict())


def vae_shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes of the autoencoder's tensors by name."""
    with torch.device("meta"):
        return _shapes(AutoencoderKL.from_config(dict(family.vae)).state_dict())


def text_encoder_shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes of the text encoder's tensors by their published names."""
    with torch.device("meta"):
        shapes = _shapes(CLIPTextModel(_text_config(family)).state_dict())
    return {f"{TEXT}{name.removeprefix(TEXT)}": shape for name, shape in shapes.items() if "position_ids" not in name}


def _text_config(family: Family) -> CLIPTextConfig:
    return CLIPTextConfig(**{name: value for name, value in family.text_encoder.items() if name != "architectures"})


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
