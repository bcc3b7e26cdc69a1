"""Interpolation: bring the base image back outside of a mask (UniTune, arXiv 2210.09477).

The paper mixes edit and base image in pixel space after sampling and does not print its formula. Ours is
reconstructed: mask * edit + (1 - mask) * ((1 - weight) * edit + weight * base).
"""

import numpy as np

from unitune.images import Mask, Pixels, strips_of


def mix(edited: Pixels, base: Pixels, weight: float, mask: Mask, out: Pixels | None = None) -> Pixels:
    """The edit inside the mask, and outside of it the base image to a share of `weight`. Both uint8 (h, w, 3).

    It is written into `out`, which may be the edit, so that there is no other copy of a large picture.
    A weight of 0 is the edit, bit for bit. With 1 a pixel of mask 0 is the base image's, exactly.
    """
    mixed = np.empty_like(edited) if out is None else out
    for rows in strips_of(edited):
        share = (weight * (1 - mask[rows]))[..., None]
        mixed[rows] = ((1 - share) * edited[rows].astype(np.float32) + share * base[rows].astype(np.float32)).round()
    return mixed
