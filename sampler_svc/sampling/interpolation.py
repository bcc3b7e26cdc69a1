"""Interpolation: bring the base image back outside of a mask (UniTune, arXiv 2210.09477).

The paper mixes edit and base image in pixel space after sampling, without a formula. This one is reconstructed:
mask * edit + (1 - mask) * ((1 - weight) * edit + weight * base).
"""

import numpy as np

from unitune.images import Mask, Pixels, strips_of


def mix(edited: Pixels, base: Pixels, weight: float, mask: Mask, out: Pixels | None = None) -> Pixels:
    """The edit inside the mask, mixed with a share `weight` of the base image outside. Both uint8 (h, w, 3).

    It is written into `out`, which may be the edit, to save a copy of a large picture. A weight of 0 gives the edit,
    bit for bit. With a weight of 1, a pixel of mask 0 is exactly the base image's.
    """
    mixed = np.empty_like(edited) if out is None else out
    for rows in strips_of(edited):
        share = (weight * (1 - mask[rows]))[..., None]
        mixed[rows] = ((1 - share) * edited[rows].astype(np.float32) + share * base[rows].astype(np.float32)).round()
    return mixed
