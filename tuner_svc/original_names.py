"""The denoiser's names in single files (CompVis latent-diffusion) from those of diffusers.

`tuner_svc.single_file.convert` goes the other way, by diffusers. What is trained on SDXL elsewhere is named so, too.
"""

import re
from collections.abc import Mapping
from typing import Any

_OF_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_OF_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
# Block, kind of part, its number in the block, and a module within the part.
_IN_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_IN_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original_module(module: str, unet: Mapping[str, Any]) -> str:
    """The name of a module of the denoiser with this configuration, as in "input_blocks.1.0.in_layers.2".

    The blocks of a level are numbered through: a pair of resnet and attention is one, and so is a downsampler. An
    upsampler is the last part of the block before it. Raises ValueError for a name of no such denoiser.
    """
    if module in _OUTSIDE_OF_BLOCKS:
        return _OUTSIDE_OF_BLOCKS[module]
    if found := _IN_MIDDLE.fullmatch(module):
        kind, number, rest = found.groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(number)}.{_inner(rest)}"
    if not (found := _IN_BLOCK.fullmatch(module)):
        raise ValueError(f"{module} is no module of such a denoiser")
    way, level, kind, number, rest = found.groups()
    pairs = int(unet["layers_per_block"]) + 1  # of a level; on the way down the last one is the downsampler
    first = int(level) * pairs
    if kind == "downsamplers":
        return f"input_blocks.{first + pairs}.0.op"
    if kind == "upsamplers":
        parts = 1 + ("Attn" in unet["up_block_types"][int(level)])
        return f"output_blocks.{first + pairs - 1}.{parts}.{rest}"
    place = f"input_blocks.{first + int(number) + 1}" if way == "down" else f"output_blocks.{first + int(number)}"
    return f"{place}.0.{_inner(rest)}" if kind == "resnets" else f"{place}.1.{rest}"


def _inner(module: str) -> str:
    """A module within a resnet."""
    if module not in _OF_RESNET:
        raise ValueError(f"{module} is no module of such a denoiser")
    return _OF_RESNET[module]
