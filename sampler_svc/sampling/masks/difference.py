"""A mask estimated from the finished edit: the regions in which it clearly differs from the base image."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from sampler_svc.sampling.masks.shape import enlarged
from unitune.images import Mask, Pixels, strips_of

# Mean difference of the colour channels, as a share of their range, after the blur. What the autoencoder and the
# sampler alter by accident may exceed UNCHANGED anywhere, but seldom reaches CHANGED. So a region above UNCHANGED
# counts only if it reaches CHANGED somewhere: hysteresis, as in Canny's edge detector (1986).
#
# Fog, or an object in the dark, changes less than that. Where the largest difference is small, both thresholds are
# lowered: CHANGED to OF_LARGEST of it, but to no less than LEAST of its own value. And a region that is much smaller
# than the largest one is an accident.
#
# Chosen on EditBench's development split (`python -m bench.editbench.thresholds --points 1:2.5`).
UNCHANGED, CHANGED = 0.08, 0.13
OF_LARGEST, LEAST = 0.6, 0.33
SMALLEST = 0.1  # of the largest region's pixels
BLUR = 1 / 40  # of the picture's shorter side
EDGE = 1 / 80  # width of the mask's soft border, outside of the region, of the shorter side
SIDE = 2048  # pixels of the longer side that are compared, at most; the blur leaves nothing finer


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
    differences = _difference(edited, base)
    size = differences.shape[0], differences.shape[1]
    if max(size) > SIDE:
        differences = np.asarray(Image.fromarray(differences).reduce(-(-max(size) // SIDE)))
    side = min(differences.shape)
    blurred = _blurred(differences, BLUR * side)
    fraction = np.arange(256, dtype=np.float32) / 255
    share = min(max(of_largest * fraction[blurred.max()] / high, least), 1)
    region = ndimage.binary_propagation((fraction > share * high)[blurred], mask=(fraction > share * low)[blurred])
    region = _large_parts(region, smallest)
    # At a straight border the blurred region is a half. Doubled, the region is 1 and its edge lies outside.
    soft = np.minimum(2 * fraction, 1)[_blurred(255 * region.astype(np.uint8), EDGE * side)]
    return soft if soft.shape == size else enlarged(soft, size)


def _difference(edited: Pixels, base: Pixels) -> NDArray[np.uint8]:
    """The mean of the colour channels' differences, (h, w), 0 to 255."""
    differences = np.empty(edited.shape[:2], np.uint8)
    for rows in strips_of(edited):
        differences[rows] = np.abs(edited[rows].astype(np.int16) - base[rows].astype(np.int16)).mean(axis=2).round()
    return differences


def _large_parts(region: np.ndarray, smallest: float) -> np.ndarray:
    """The connected parts with at least this share of the largest one's pixels."""
    parts, _ = ndimage.label(region)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # what did not change
    large: np.ndarray = (sizes >= smallest * sizes.max()) & (sizes > 0)
    return large[parts]


def _blurred(differences: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    """Under a Gaussian; values 0 to 255."""
    return np.asarray(Image.fromarray(differences).filter(ImageFilter.GaussianBlur(radius)))
