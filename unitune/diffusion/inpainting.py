"""What a denoiser for inpainting is shown beside the latents: where to paint, and the picture without that.

Its input has more channels (Rombach et al., arXiv 2112.10752, section 4.5): the noisy latents, a mask that is 1 where
the picture is hidden, and the latents of the picture with what is hidden in grey. So it paints what fits the rest. With
all hidden it is a model that makes pictures from text alone.
"""

import numpy as np
from numpy.typing import NDArray

from unitune.diffusion.schedule import Latents

Floats = NDArray[np.float32]

HIDDEN = 0.5  # a mask's value from which a pixel is hidden: the network knows no half hidden ones


def num_channels(latent_channels: int) -> int:
    """The channels of the denoiser's input."""
    return 2 * latent_channels + 1


def without_hidden(image: Floats, mask: Floats) -> Floats:
    """The model image (1, 3, height, width) in grey where the mask (height, width) hides it."""
    return np.where(mask >= HIDDEN, np.float32(0), image)


def shown(mask: Floats, masked_latent: Latents) -> Latents:
    """The channels beside the latents, (1, 1 + channels, h, w), for a mask (height, width) of the picture.

    A place of the latent is hidden if the first of its pixels is: so were the networks trained.
    """
    height, width = masked_latent.shape[2:]
    rows, columns = mask.shape[0] // height, mask.shape[1] // width
    hidden = (mask[::rows, ::columns] >= HIDDEN).astype(np.float32)
    return np.concatenate([hidden[None, None], masked_latent], axis=1)


def beside(latents: Latents, channels: Latents) -> Floats:
    """The denoiser's input for latents (n, channels, h, w) and what `shown` gives."""
    return np.concatenate([latents, np.repeat(channels, len(latents), axis=0)], axis=1)
