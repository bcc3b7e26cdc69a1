"""A mask estimated from the finished edit: the regions in which it really differs from the base image."""

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from unitune.images import Mask, Pixels

# Mean difference of the colour channels, of their whole range, after the blur. What the autoencoder and the sampler
# alter by accident can exceed the first figure anywhere, but seldom reaches the second. So a region above the first
# counts only if it reaches the second somewhere: hysteresis, as in Canny's edge detector (1986). Chosen on EditBench's
# development split (`python -m bench.editbench.thresholds`).
UNCHANGED, CHANGED = 0.06, 0.13
BLUR = 1 / 40  # of the picture's shorter side
EDGE = 1 / 80  # width of the mask's soft border, outside of the region, of the shorter side


def changed(edited: Pixels, base: Pixels, low: float = UNCHANGED, high: float = CHANGED) -> Mask:
    """Where the edit differs from the base image: 0 to 1, (h, w), soft at its border. Thresholds are 0 to 1."""
    difference = np.abs(edited.astype(np.int16) - base.astype(np.int16)).mean(axis=2)
    side = min(difference.shape)
    level = _blurred(difference.round(), BLUR * side) / 255
    region = ndimage.binary_propagation(level > high, mask=level > low)
    # At a straight border the blur is a half: doubled, the region is whole and its edge lies outside.
    mask: Mask = np.minimum(2 * _blurred(255.0 * region, EDGE * side) / 255, 1).astype(np.float32)
    return mask


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """Under a Gaussian; values 0 to 255."""
    return np.asarray(Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)), np.float32)
