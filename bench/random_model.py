"""Writes a base model of random weights in diffusers layout: Stable Diffusion 1.5 or XL in true shape, or smaller.

Layers are as PyTorch draws them, whose answers neither die out nor grow; norms and biases are disturbed, so that none
is left out of a sum. Tensors are drawn and written one by one.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tuner_svc.model_folder import SECOND_TEXT_ENCODER, weights_of
from tuner_svc.single_file.family import SD_1, SDXL, Family
from tuner_svc.single_file.model import Source, write_configs
from tuner_svc.single_file.prediction import PredictionType
from unitune.tensor_file import write_tensors


def _smaller(**unet: Any) -> Family:
    """A small model of Stable Diffusion 1.5's kind, with this denoiser."""
    vae = {"block_out_channels": [32, 64, 64, 64], "layers_per_block": 1, "sample_size": 128}
    text_encoder = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "projection_dim": 256,
    }
    return replace(
        SD_1,
        unet={**SD_1.unet, **unet},
        vae={**SD_1.vae, **vae},
        text_encoder={**SD_1.text_encoder, **text_encoder},
    )


# The denoisers of `small` and `shallow` have 50 million values, 200 MB. Those of `shallow` lie in few layers: an export
# takes as long as there are layers, whatever their size.
SHAPES: dict[str, Family] = {
    "sd15": SD_1,
    "sdxl": SDXL,
    "small": _smaller(
        sample_size=16,
        block_out_channels=[128, 256, 384],
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=256,
    ),
    "shallow": _smaller(
        sample_size=16,
        block_out_channels=[256, 512],
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        layers_per_block=1,
        cross_attention_dim=256,
    ),
}


def save_random_model(folder: Path, shape: str = "sd15", dtype: str = "float32", seed: int = 0) -> Path:
    """Write the folder; `dtype` of its files is float32 or float16. The same arguments give the same bytes."""
    family = SHAPES[shape]
    write_configs(folder, family, PredictionType("epsilon", "drawn at random"), Source(folder))
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(dict(family.unet)),
            "vae": AutoencoderKL.from_config(dict(family.vae)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**family.text_encoder)),
        }
        if family.second_text_encoder is not None:
            config = CLIPTextConfig(**family.second_text_encoder)
            modules[SECOND_TEXT_ENCODER] = CLIPTextModelWithProjection(config)
    for number, (part, module) in enumerate(modules.items()):
        shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
        generator = torch.Generator().manual_seed(seed + number)

        def drawn(name: str, shapes: Mapping[str, tuple[int, ...]] = shapes, draws: Any = generator) -> np.ndarray:
            return _drawn(name, shapes[name], draws).numpy().astype(dtype)

        write_tensors(folder / part / weights_of(part), {name: (dtype, shape) for name, shape in shapes.items()}, drawn)
    return folder


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        is_scale = name.endswith(".weight")  # of a norm
        return float(is_scale) + 0.1 * torch.randn(shape, generator=generator)
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (2 * torch.rand(shape, generator=generator) - 1) * bound
