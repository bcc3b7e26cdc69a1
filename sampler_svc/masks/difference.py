"""A mask estimated from the finished edit: where it differs from the base image."""

import numpy as np
from PIL import Image, ImageFilter

from unitune.images import Mask, Pixels

# Mean difference of the colour channels, of their whole range, after the blur. What the autoencoder and the sampler
# alter by accident lies below the first figure, what a person sees as a change lies above the second.
UNCHANGED, CHANGED = 0.05, 0.10
BLUR = 1 / 40  # of the picture's shorter side


def changed(edited: Pixels, base: Pixels) -> Mask:
    """Where the edit differs from the base image: 0 to 1, (h, w), soft at its border."""
    difference = np.abs(edited.astype(np.int16) - base.astype(np.int16)).mean(axis=2)
    radius = BLUR * min(difference.shape)
    blurred = Image.fromarray(difference.round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    level = (np.asarray(blurred, np.float32) / 255 - UNCHANGED) / (CHANGED - UNCHANGED)
    mask: Mask = np.clip(level, 0, 1)
    return mask
