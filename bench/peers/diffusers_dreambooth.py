"""The training loop that diffusers' DreamBooth example has, without prior preservation, for one picture.

Like the example, every update encodes the picture and the prompt again. The optimizer is transformers' Adafactor.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch.nn import functional
from transformers.optimization import Adafactor


def dreambooth(folder: Path, image: np.ndarray, prompt: str, updates: int, batch: int, learning_rate: float) -> None:
    """Fine-tune the UNet of a folder on a model image, float32 (1, 3, height, width) in [-1, 1]."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    unet, autoencoder, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    autoencoder.requires_grad_(False)
    text_encoder.requires_grad_(False)
    unet.train()
    optimizer = Adafactor(unet.parameters(), lr=learning_rate, scale_parameter=False, relative_step=False)
    scheduler = pipeline.scheduler
    pixels = torch.from_numpy(image).repeat(batch, 1, 1, 1)
    for _ in range(updates):
        latents = autoencoder.encode(pixels).latent_dist.sample() * autoencoder.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,))
        ids = pipeline.tokenizer(
            [prompt] * batch,
            padding="max_length",
            truncation=True,
            max_length=pipeline.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        context = text_encoder(ids)[0]
        prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        is_v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if is_v else noise
        loss = functional.mse_loss(prediction, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
