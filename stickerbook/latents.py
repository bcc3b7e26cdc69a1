"""The training scenes as latents, computed once and kept on disk."""

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from stickerbook.batches import batches
from stickerbook.pictures import pictures


@torch.no_grad()
def normalise(autoencoder: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold a shift and a scale into the 1x1 convolutions around the latent, in place.

    Then every latent channel of `images` has mean 0 and deviation 1, and decoding is unchanged. So `scaling_factor` is
    1, and no channel dominates the diffusion.
    """
    modes = torch.cat([autoencoder.encode(batch).latent_dist.mode() for batch in images.split(16)])
    mean, deviation = modes.mean(dim=(0, 2, 3)), modes.std(dim=(0, 2, 3))
    channels = mean.numel()
    into, out = autoencoder.quant_conv, autoencoder.post_quant_conv
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += (out.weight[:, :, 0, 0] @ mean[:, None])[:, 0]
    out.weight *= deviation[None, :, None, None]
    autoencoder.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def cached_latents(
    path: Path, autoencoder: AutoencoderKL, scenes: int, device: str = "cpu", workers: int = 0
) -> np.ndarray:
    """Latents of the training scenes 0 to `scenes` - 1: float16, (scenes, 8, 16, 16).

    They are read from `path`, or computed and written there, the scenes painted by worker processes.
    """
    if path.exists():
        latents = np.load(path, mmap_mode="r")
        if len(latents) >= scenes:
            return latents
    chunks, started = [], time.monotonic()
    starts = range(0, scenes, 32)
    for start, batch in zip(starts, batches(partial(_chunk, scenes), starts, workers), strict=True):
        with torch.autocast(device, torch.bfloat16):
            mode = autoencoder.encode(batch.to(device, memory_format=torch.channels_last)).latent_dist.mode()
        chunks.append(mode.float().cpu().numpy().astype(np.float16))
        if start % 3200 == 0:
            print(f"encoded {start}/{scenes} scenes in {time.monotonic() - started:.0f} s", flush=True)
    temporary = path.with_suffix(".partial.npy")
    np.save(temporary, np.concatenate(chunks))
    os.replace(temporary, path)
    return np.load(path, mmap_mode="r")


def _chunk(scenes: int, start: int) -> torch.Tensor:
    return pictures(range(start, min(start + 32, scenes)))
