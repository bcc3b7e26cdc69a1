"""Interpolation: bring the base image back outside of a mask (UniTune, arXiv 2210.09477).

The paper mixes edit and base image in pixel space after sampling, without a formula. This one is reconstructed:
mask * edit + (1 - mask) * ((1 - weight) * edit + weight * base).
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unitune.images import Mask, Pixels, strips_of
from unitune.sixteen_bits import FROM_EIGHT

D = TypeVar("D", bound=np.generic)


def mix(edited: Pixels, base: NDArray[D], weight: float, mask: Mask, out: NDArray[D] | None = None) -> NDArray[D]:
    """The edit inside the mask, mixed with a share `weight` of the base image outside. Both (h, w, 3); of a base image
    of 16 bits, the result has them, too.

    It is written into `out`, which may be the edit, to save a copy of a large picture. A weight of 0 gives the edit,
    bit for bit. With a weight of 1, a pixel of mask 0 is exactly the base image's.
    """
    is_deep = base.dtype == np.uint16
    mixed = np.empty(edited.shape, base.dtype) if out is None or is_deep else out
    levels = np.float32(FROM_EIGHT if is_deep else 1)  # of the base image for one of the edit
    for rows in strips_of(edited):
        share = (weight * (1 - mask[rows]))[..., None]
        mixed[rows] = (
            (1 - share) * levels * edited[rows].astype(np.float32) + share * base[rows].astype(np.float32)
        ).round()
    return mixed
