"""Super-resolution: a denoiser of pixels that enlarges the picture that the latent was decoded to.

It sees the noisy picture and, beside it, the small one, upsampled and noised to a level that it is told (conditioning
augmentation: Ho et al., arXiv 2106.15282; Imagen, arXiv 2205.11487, section 2.4). The level is a timestep of the
schedule, as in DeepFloyd IF, so 0 is a little noise. A network may take a block of pixels as one (space to depth);
adding noise before or after that is the same.
"""

import numpy as np
from numpy.typing import NDArray

from unitune.diffusion.schedule import Latents, Schedule, add_noise

Images = NDArray[np.float32]  # (n, 3, height, width) in about [-1, 1]

THRESHOLD_SHARE = 0.995  # of a picture's values that dynamic thresholding keeps in range: diffusers' ratio


def to_blocks(image: Images, block: int) -> Latents:
    """Images (n, 3, height, width) as (n, 3 * block**2, height / block, width / block), as torch's pixel_unshuffle."""
    n, channels, height, width = image.shape
    cut = image.reshape(n, channels, height // block, block, width // block, block).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(cut.reshape(n, channels * block**2, height // block, width // block))


def from_blocks(blocks: Latents, block: int) -> Images:
    """The inverse of `to_blocks`."""
    n, channels, height, width = blocks.shape
    cut = blocks.reshape(n, channels // block**2, block, block, height, width).transpose(0, 1, 4, 2, 5, 3)
    return np.ascontiguousarray(cut.reshape(n, channels // block**2, height * block, width * block))


def enlarged(images: Images, side: tuple[int, int]) -> Images:
    """Bilinear upsampling to `side` (height, width), with align_corners False."""
    rows, columns = (_bilinear_weights(before, after) for before, after in zip(images.shape[2:], side, strict=True))
    return np.ascontiguousarray(rows @ images @ columns.T)


def _bilinear_weights(before: int, after: int) -> NDArray[np.float32]:
    """The weight of each old pixel in each new one, (after, before)."""
    places = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    return (1 - np.abs(places[:, None] - np.arange(before))).clip(min=0).astype(np.float32)


def augmented(low: Latents, noise: Latents, noise_level: int, schedule: Schedule) -> Latents:
    """The upsampled picture as the network sees it: noised to the timestep `noise_level`."""
    return add_noise(low, noise, float(schedule.alphas_cumprod[noise_level])).astype(np.float32)


def thresholded(denoised: Latents, share: float = THRESHOLD_SHARE) -> Latents:
    """Dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3), only for pixels: a latent has no such range.

    `s` is the quantile of magnitudes at this share of a picture's values. If it is above 1, values are clipped to
    [-s, s] and divided by s; else they are clipped to [-1, 1].
    """
    flat = np.abs(denoised.reshape(len(denoised), -1))
    most = np.maximum(np.quantile(flat, share, axis=1), 1).astype(np.float32)[:, None, None, None]
    return np.clip(denoised, -most, most) / most
