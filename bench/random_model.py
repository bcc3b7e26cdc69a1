"""Writes a base model of random weights in diffusers layout, of Stable Diffusion 1.5's true shape or of a smaller one.

Layers are as PyTorch draws them, whose answers neither die out nor grow; norms and biases are disturbed, so that none
is left out of a sum. Tensors are drawn and written one by one.
"""

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from tuner_svc.model_folder import WEIGHTS
from tuner_svc.single_file.family import SD_1
from tuner_svc.single_file.model import MERGES, PARTS, vocabulary
from unitune.tensor_file import write_tensors

# The denoisers of `small` and `shallow` have 50 million values, 200 MB. Those of `shallow` lie in few layers: an export
# takes as long as there are layers, whatever their size.
SMALL: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [32, 64, 64, 64], "layers_per_block": 1, "sample_size": 128},
    "text_encoder": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "projection_dim": 256,
    },
}
# Name to what differs from Stable Diffusion 1.5, by part.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"unet": {}, "vae": {}, "text_encoder": {}},
    "small": {
        "unet": {
            "sample_size": 16,
            "block_out_channels": [128, 256, 384],
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "cross_attention_dim": 256,
        },
        **SMALL,
    },
    "shallow": {
        "unet": {
            "sample_size": 16,
            "block_out_channels": [256, 512],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "cross_attention_dim": 256,
        },
        **SMALL,
    },
}


def save_random_model(folder: Path, shape: str = "sd15", dtype: str = "float32", seed: int = 0) -> Path:
    """Write the folder; `dtype` of its files is float32 or float16. The same arguments give the same bytes."""
    configs = {part: {**getattr(SD_1, part), **changed} for part, changed in SHAPES[shape].items()}
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        }
    index = {"_class_name": "StableDiffusionPipeline", **{part: list(kind) for part, kind in PARTS.items()}}
    _write(folder / "model_index.json", index)
    _write(folder / "scheduler" / "scheduler_config.json", SD_1.scheduler)
    merges = gzip.decompress(MERGES.read_bytes()).decode()
    _write(folder / "tokenizer" / "tokenizer_config.json", SD_1.tokenizer)
    _write(folder / "tokenizer" / "vocab.json", vocabulary(merges))
    (folder / "tokenizer" / "merges.txt").write_text(merges, encoding="utf-8")
    for number, (part, module) in enumerate(modules.items()):
        _write(folder / part / "config.json", configs[part])
        shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
        generator = torch.Generator().manual_seed(seed + number)

        def drawn(name: str, shapes: Mapping[str, tuple[int, ...]] = shapes, draws: Any = generator) -> np.ndarray:
            return _drawn(name, shapes[name], draws).numpy().astype(dtype)

        write_tensors(folder / part / WEIGHTS[part], {name: (dtype, shape) for name, shape in shapes.items()}, drawn)
    return folder


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        is_scale = name.endswith(".weight")  # of a norm
        return float(is_scale) + 0.1 * torch.randn(shape, generator=generator)
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
