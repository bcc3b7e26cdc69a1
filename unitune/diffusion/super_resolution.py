"""Super-resolution: a denoiser of pixels that enlarges the picture that the latent was decoded to.

It sees the noisy picture and, beside it, the small one, upsampled and noised to a level that it is told (conditioning
augmentation: Ho et al., arXiv 2106.15282; Imagen, arXiv 2205.11487, section 2.4). The level is a timestep of the
schedule, as in DeepFloyd IF, so that 0 is a little noise and not none. Networks that take several pixels as one (space
to depth) have blocks of more than one pixel; noise is the same in either order.
"""

import numpy as np
from numpy.typing import NDArray

from unitune.diffusion.schedule import Latents, Schedule, add_noise

Images = NDArray[np.float32]  # (n, 3, height, width) in about [-1, 1]

THRESHOLD_SHARE = 0.995  # of a picture's values that dynamic thresholding leaves within its range: diffusers' ratio


def to_blocks(image: Images, block: int) -> Latents:
    """Images (n, 3, height, width) as (n, 3 * block**2, height / block, width / block), as torch's pixel_unshuffle."""
    n, channels, height, width = image.shape
    cut = image.reshape(n, channels, height // block, block, width // block, block).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(cut.reshape(n, channels * block**2, height // block, width // block))


def from_blocks(blocks: Latents, block: int) -> Images:
    """What `to_blocks` was given."""
    n, channels, height, width = blocks.shape
    cut = blocks.reshape(n, channels // block**2, block, block, height, width).transpose(0, 1, 4, 2, 5, 3)
    return np.ascontiguousarray(cut.reshape(n, channels // block**2, height * block, width * block))


def enlarged(images: Images, side: tuple[int, int]) -> Images:
    """Bilinearly at `side` (height, width), no smaller than they are, pixel over pixel (align_corners False)."""
    rows, columns = (_bilinear_weights(before, after) for before, after in zip(images.shape[2:], side, strict=True))
    return np.ascontiguousarray(rows @ images @ columns.T)


def _bilinear_weights(before: int, after: int) -> NDArray[np.float32]:
    """How much of each old pixel each new one has, (after, before)."""
    places = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    return (1 - np.abs(places[:, None] - np.arange(before))).clip(min=0).astype(np.float32)


def augmented(low: Latents, noise: Latents, noise_level: int, schedule: Schedule) -> Latents:
    """The upsampled picture as the network sees it: noised to the timestep `noise_level`."""
    return add_noise(low, noise, float(schedule.alphas_cumprod[noise_level])).astype(np.float32)


def thresholded(denoised: Latents, share: float = THRESHOLD_SHARE) -> Latents:
    """Dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3), for pixels alone: a latent has no such range.

    `s` is the magnitude that this share of a picture's values keep to. If it is above 1, values are cut at s and
    divided by it; else they are cut at 1. What lies within [-1, 1] stays as it is.
    """
    flat = np.abs(denoised.reshape(len(denoised), -1))
    most = np.maximum(np.quantile(flat, share, axis=1), 1).astype(np.float32)[:, None, None, None]
    return np.clip(denoised, -most, most) / most
