"""A base model of random weights: the denoiser alone, which is all that an update and a step of an edit run."""

from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tuner_svc.base_model import BaseModel, DenoiserModule
from unitune.base_model import NoiseSchedule, Preset

LATENT_CHANNELS = 4
# Name to the UNet's config, and the tokens of a prompt. `sd15` is that of Stable Diffusion 1.5, 860 million values.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "sd15": (
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            "layers_per_block": 2,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,  # diffusers reads it as the number of heads
        },
        77,
    ),
    "tiny": (
        {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
        16,
    ),
}


@torch.no_grad()
def random_model(shape: str, device: torch.device, seed: int = 0) -> BaseModel:
    """The base model, fp32, made where it is to be. It has no tokenizer, no text encoder and no autoencoder.

    Layers are as PyTorch draws them, whose answers neither die out nor leave fp16's range; norms and biases are
    disturbed, so that none is left out of a sum.
    """
    config, tokens = SHAPES[shape]
    torch.manual_seed(seed)
    with device:
        unet = UNet2DConditionModel(in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, **config)
        for parameter in unet.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    absent = cast(Any, None)
    side = config["sample_size"]
    return BaseModel(
        name=f"random {shape}",
        digest=f"random {shape} {seed}",
        device=device,
        tokenizer=absent,
        text_encoder=cast(Any, torch.nn.Module()),  # an update's footprint asks for its parameters
        image_encoder=absent,
        image_decoder=absent,
        denoiser=DenoiserModule(unet.requires_grad_(False).eval()),
        schedule=NoiseSchedule(),
        preset=Preset(),
        vocabulary=(),
        image_side=(8 * side, 8 * side),
        latent_side=(side, side),
        latent_channels=LATENT_CHANNELS,
        context_tokens=tokens,
        context_width=config["cross_attention_dim"],
    )


@torch.no_grad()
def other_weights(model: BaseModel, seed: int = 1) -> dict[str, Tensor]:
    """A set of weights unlike the model's in every tensor, exact in fp16; drawn as `self_test_tensors` does, but where
    the model is, since a processor takes a minute for 860 million draws."""
    generator = torch.Generator(model.device).manual_seed(seed)
    drawn = {}
    for name, tensor in model.tensors().items():
        values = torch.randn(tensor.shape, generator=generator, device=model.device)
        if tensor.dim() > 1:
            values *= tensor[0].numel() ** -0.5
        else:
            values = 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
        drawn[name] = values.half().float()
    return drawn
