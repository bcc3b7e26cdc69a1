"""Interpolation: bring details of the base image back where the edit left it nearly alone (UniTune, arXiv 2210.09477).

The paper mixes edit and base image in pixel space after sampling and does not print its formula. Ours is
reconstructed: mask * edit + (1 - mask) * ((1 - weight) * edit + weight * base), with a mask estimated from how much
every region changed.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from unitune.images import Pixels

Mask = NDArray[np.float32]

# Mean difference of the colour channels, of their whole range, after the blur. What the autoencoder and the sampler
# alter by accident lies below the first figure, what a person sees as a change lies above the second.
UNCHANGED, CHANGED = 0.05, 0.10
BLUR = 1 / 40  # of the picture's shorter side


def interpolate(edited: Pixels, base: Pixels, weight: float) -> Pixels:
    """The edit with the base image's own pixels where it changed little. Both uint8 (h, w, 3).

    A weight of 0 is the edit, bit for bit. With 1 a pixel of mask 0 is the base image's, exactly.
    """
    if weight == 0:
        return edited
    return mix(edited, base, weight, changed(edited, base))


def mix(edited: Pixels, base: Pixels, weight: float, mask: Mask) -> Pixels:
    """mask * edited + (1 - mask) * ((1 - weight) * edited + weight * base); the mask is (h, w), 1 keeps the edit."""
    share = (weight * (1 - mask))[..., None]
    mixed = (1 - share) * edited.astype(np.float32) + share * base.astype(np.float32)
    return mixed.round().astype(np.uint8)


def changed(edited: Pixels, base: Pixels) -> Mask:
    """Where the edit differs from the base image: 0 to 1, (h, w), soft at its border."""
    difference = np.abs(edited.astype(np.int16) - base.astype(np.int16)).mean(axis=2)
    radius = BLUR * min(difference.shape)
    blurred = Image.fromarray(difference.round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    level = (np.asarray(blurred, np.float32) / 255 - UNCHANGED) / (CHANGED - UNCHANGED)
    mask: Mask = np.clip(level, 0, 1)
    return mask
