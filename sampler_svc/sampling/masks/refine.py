"""Refines a coarse map to a mask of the picture, with borders where the picture's colours change.

Like GrabCut (Rother et al., 2004) it alternates between estimating the colours of inside and outside, and the mask. The
colours are histograms. In place of the graph cut there is a guided filter (He et al., 2013), guided by the picture.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sampler_svc.sampling.masks.shape import enlarged
from unitune.images import Mask, Pixels
from unitune.working_size import Box

Floats = NDArray[np.float64]

SIDE = 256  # pixels of the longer side that are used, at most
ITERATIONS = 4
LOW, HIGH = 5, 99  # percentiles of the map that count as outside and as inside
MIDDLE, STEEPNESS = 0.55, 6.0  # of the logistic from the map's range to a probability
BINS = 24  # of each colour channel
COLOUR_WEIGHT, MOST_COLOUR = 0.75, 3.0  # of the colours' log-likelihood ratio
RARE = 1e-4  # share that is added to each colour on both sides
RADIUS, EPSILON = 1 / 16, 1e-3  # of the guided filter: of the shorter side, and of squared colour
FLAT = 1e-6  # of the largest value: a map of smaller range means nothing


def refined(coarse: NDArray[np.float32], picture: Pixels, box: Box | None = None) -> Mask:
    """1 where the map (h, w) and the picture's colours indicate inside, else 0; of the picture's size. The picture lies
    in `box` of the map, or fills it.

    A uniform map gives an empty mask.
    """
    size = picture.shape[0], picture.shape[1]
    shrink = min(1.0, SIDE / max(size))
    height, width = max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1)
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
    values = enlarged(np.asarray(coarse, np.float32), (height, width), box).astype(np.float64)
    low, high = np.percentile(values, (LOW, HIGH))
    if high - low <= FLAT * np.abs(values).max():
        return np.zeros(size, np.float32)
    spatial = STEEPNESS * (np.clip((values - low) / (high - low), 0, 1) - MIDDLE)
    bins = (small.astype(np.int64) * BINS // 256) @ np.array([BINS * BINS, BINS, 1])
    guide, radius = small / 255, max(round(RADIUS * min(height, width)), 1)
    inside = 1 / (1 + np.exp(-spatial))
    for _ in range(ITERATIONS):
        ratio = np.log((_share(bins, inside) + RARE) / (_share(bins, 1 - inside) + RARE))
        inside = 1 / (1 + np.exp(-spatial - COLOUR_WEIGHT * np.clip(ratio, -MOST_COLOUR, MOST_COLOUR)))
        inside = np.clip(_guided(inside, guide, radius), 0, 1)
    return (enlarged(inside.astype(np.float32), size) > 0.5).astype(np.float32)


def _share(bins: NDArray[np.int64], weights: Floats) -> Floats:
    """The share of the weights in each pixel's bin."""
    counts = np.bincount(bins.ravel(), weights.ravel(), BINS**3)
    share: Floats = counts[bins] / max(float(weights.sum()), 1e-9)
    return share


def _guided(values: Floats, guide: Floats, radius: int) -> Floats:
    """The guided filter: in every window it fits the values by a linear function of the guide's colours."""
    mean_guide, mean = _box(guide, radius), _box(values, radius)
    covariance = _box(guide * values[..., None], radius) - mean_guide * mean[..., None]
    outer = _box(guide[..., :, None] * guide[..., None, :], radius)
    variance = outer - mean_guide[..., :, None] * mean_guide[..., None, :]
    solved = np.linalg.solve(variance + EPSILON * np.eye(3), covariance[..., None])
    slope = solved[..., 0].astype(np.float64)
    offset = mean - (slope * mean_guide).sum(axis=-1)
    filtered: Floats = (_box(slope, radius) * guide).sum(axis=-1) + _box(offset, radius)
    return filtered


def _box(values: Floats, radius: int) -> Floats:
    """Means over windows of 2 radius + 1, cut at the border, along the first two axes."""
    for axis in (0, 1):
        moved = np.moveaxis(values, axis, 0)
        sums = np.concatenate([np.zeros_like(moved[:1]), np.cumsum(moved, axis=0)])
        places = np.arange(len(moved))
        first, last = np.maximum(places - radius, 0), np.minimum(places + radius + 1, len(moved))
        counts = (last - first).reshape(-1, *[1] * (moved.ndim - 1))
        values = np.moveaxis((sums[last] - sums[first]) / counts, 0, axis)
    return values
