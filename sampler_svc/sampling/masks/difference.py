"""A mask estimated from the finished edit: the regions in which it really differs from the base image."""

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from unitune.images import Mask, Pixels

# Mean difference of the colour channels, of their whole range, after the blur. What the autoencoder and the sampler
# alter by accident can exceed the first figure anywhere, but seldom reaches the second. So a region above the first
# counts only if it reaches the second somewhere: hysteresis, as in Canny's edge detector (1986).
#
# A fog, or a thing in the dark, changes less than that. Where the largest difference of all is small both are lower, so
# that the second is this share of the largest, down to a share of themselves that no accident should exceed. And beside
# a large region that changed a much smaller one is an accident.
#
# Chosen on EditBench's development split (`python -m bench.editbench.thresholds --points 1:2.5`).
UNCHANGED, CHANGED = 0.08, 0.13
OF_LARGEST, LEAST = 0.6, 0.33
SMALLEST = 0.1  # of the largest region's pixels
BLUR = 1 / 40  # of the picture's shorter side
EDGE = 1 / 80  # width of the mask's soft border, outside of the region, of the shorter side


def changed(
    edited: Pixels,
    base: Pixels,
    low: float = UNCHANGED,
    high: float = CHANGED,
    of_largest: float = OF_LARGEST,
    smallest: float = SMALLEST,
    least: float = LEAST,
) -> Mask:
    """Where the edit differs from the base image: 0 to 1, (h, w), soft at its border. All thresholds are 0 to 1."""
    difference = np.abs(edited.astype(np.int16) - base.astype(np.int16)).mean(axis=2)
    side = min(difference.shape)
    level = _blurred(difference.round(), BLUR * side) / 255
    share = min(max(of_largest * level.max() / high, least), 1)
    region = ndimage.binary_propagation(level > share * high, mask=level > share * low)
    region = _without_small(region, smallest)
    # At a straight border the blur is a half: doubled, the region is whole and its edge lies outside.
    mask: Mask = np.minimum(2 * _blurred(255.0 * region, EDGE * side) / 255, 1).astype(np.float32)
    return mask


def _without_small(region: np.ndarray, smallest: float) -> np.ndarray:
    """The connected parts that have at least this share of the largest one's pixels."""
    parts, _ = ndimage.label(region)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # what did not change
    large: np.ndarray = (sizes >= smallest * sizes.max()) & (sizes > 0)
    return large[parts]


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """Under a Gaussian; values 0 to 255."""
    return np.asarray(Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)), np.float32)
