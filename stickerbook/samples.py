"""Samples pictures from noise with plain PyTorch, to watch the training and to judge the model."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from stickerbook.pictures import as_pixels


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    autoencoder: AutoencoderKL,
    scheduler: DDIMScheduler,
    prompts: list[str],
    *,
    steps: int = 30,
    guidance_scale: float = 4.0,
    seed: int = 0,
) -> np.ndarray:
    """One picture per prompt: uint8, (n, 64, 64, 3). DDIM with classifier-free guidance."""
    device = unet.device
    tokens = tokenizer(
        [*prompts, *[""] * len(prompts)],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    context = text_encoder(tokens.to(device)).last_hidden_state
    side = unet.config.sample_size
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn((len(prompts), unet.config.in_channels, side, side), generator=generator).to(device)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        conditional, unconditional = unet(torch.cat([latents, latents]), timestep, context).sample.chunk(2)
        guided = guidance_scale * conditional + (1 - guidance_scale) * unconditional
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return as_pixels(autoencoder.decode(latents / autoencoder.config.scaling_factor).sample)


def contact_sheet(images: np.ndarray, columns: int, enlarge: int = 3) -> np.ndarray:
    """Pictures side by side, `columns` in a row, each pixel `enlarge` pixels wide."""
    missing = -len(images) % columns
    padded = np.concatenate([images, np.full((missing, *images.shape[1:]), 255, images.dtype)])
    rows = [np.concatenate(list(padded[start : start + columns]), axis=1) for start in range(0, len(padded), columns)]
    return np.concatenate(rows).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
