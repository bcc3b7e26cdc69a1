"""Interpolation: bring the base image back outside of a mask (UniTune, arXiv 2210.09477).

The paper mixes edit and base image in pixel space after sampling and does not print its formula. Ours is
reconstructed: mask * edit + (1 - mask) * ((1 - weight) * edit + weight * base).
"""

import numpy as np

from unitune.images import Mask, Pixels


def mix(edited: Pixels, base: Pixels, weight: float, mask: Mask) -> Pixels:
    """The edit inside the mask, and outside of it the base image to a share of `weight`. Both uint8 (h, w, 3).

    A weight of 0 is the edit, bit for bit. With 1 a pixel of mask 0 is the base image's, exactly.
    """
    share = (weight * (1 - mask))[..., None]
    mixed = (1 - share) * edited.astype(np.float32) + share * base.astype(np.float32)
    return mixed.round().astype(np.uint8)
