"""One picture from the stock diffusers pipeline, PyTorch eager or compiled: same model, steps, guidance and noise."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline


class DiffusersEdit:
    """The pipeline of a folder, in fp32. `compiled` puts its denoiser through torch.compile, at the first call."""

    def __init__(self, folder: Path, *, compiled: bool = False) -> None:
        self._pipeline = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True
        )
        self._pipeline.set_progress_bar_config(disable=True)
        if compiled:
            self._pipeline.unet = torch.compile(self._pipeline.unet)

    def __call__(self, prompt: str, steps: int, guidance_scale: float, noise: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3), from `noise` (1, channels, h, w)."""
        result = self._pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            latents=torch.from_numpy(noise.copy()),
            output_type="np",
        )
        return (result.images[0] * 255).round().astype(np.uint8)
