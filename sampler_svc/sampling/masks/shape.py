"""Geometry of masks: a soft edge, the latent's resolution, and the region around a mask."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from unitune import images
from unitune.diffusion.schedule import Latents
from unitune.images import Mask
from unitune.working_size import Box, Fit, Size

D = TypeVar("D", bound=np.generic)


def softened(mask: Mask, blur: float) -> Mask:
    """The mask under a Gaussian of this radius in pixels; a radius of 0 changes nothing."""
    if blur == 0:
        return mask
    soft = np.asarray(Image.fromarray(images.grey(mask)).filter(ImageFilter.GaussianBlur(blur)))
    return (np.arange(256, dtype=np.float32) / np.float32(255))[soft]


def to_latent(mask: Mask, side: tuple[int, int], fit: Fit) -> Latents:
    """The mask (1, 1, h, w) over a latent of `side` (h, w): each value is the mean over its area. `fit` is the
    picture's; its reflection is edited where the picture is."""
    if fit.is_padded:
        mask = at_working_size(mask, fit)
    return _averaged(mask, side)[None, None]


def at_working_size(mask: Mask, fit: Fit) -> Mask:
    """The mask over a picture, over its working size."""
    return fit.padded(_averaged(mask, (fit.height, fit.width)))


def _averaged(mask: Mask, size: tuple[int, int]) -> Mask:
    height, width = size
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.BOX))


def enlarged(mask: Mask, size: tuple[int, int], box: Box | None = None) -> Mask:
    """A small mask, enlarged to a picture of `size` (height, width) by linear interpolation. The picture lies in `box`
    of the mask, or fills it."""
    height, width = size
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR, box))


class Region(NamedTuple):
    """A rectangle of the picture, in pixels; `bottom` and `right` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def crop(self, array: NDArray[D]) -> NDArray[D]:
        """This part of a picture or a mask."""
        return array[self.slices]

    def scaled(self, factor: int) -> "Region":
        """The same in a picture that is `factor` times as large."""
        return Region(*(factor * side for side in self))

    def pasted(self, part: NDArray[Any], picture: NDArray[Any]) -> NDArray[Any]:
        """A copy of the picture with this part replaced; the part itself if it is the whole picture."""
        if part.shape == picture.shape:
            return part
        copy = picture.copy()
        copy[self.slices] = part
        return copy


def whole_picture(size: tuple[int, int]) -> Region:
    """All of a picture of `size` (height, width)."""
    return Region(0, 0, *size)


def region_around(mask: Mask, padding: int, working_size: Callable[[Size], Size]) -> Region:
    """The mask's bounding box with `padding` pixels on each side, grown to the aspect of its own working size.

    It is moved inwards at the picture's border. If the picture is too small for the aspect, it has the picture's size
    in that direction. For an empty mask it is the whole picture.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return whole_picture((mask.shape[0], mask.shape[1]))
    height, width = mask.shape
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    side = working_size((bottom - top, right - left))
    aspect = side[1] / side[0]
    if right - left > aspect * (bottom - top):
        top, bottom = _grown(top, bottom, round((right - left) / aspect), height)
    else:
        left, right = _grown(left, right, round((bottom - top) * aspect), width)
    return Region(top, left, bottom, right)


def _grown(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """The interval grown on both sides to a length, within 0 and the limit."""
    length = min(max(length, stop - start), limit)
    start = min(max(start - (length - (stop - start)) // 2, 0), limit - length)
    return start, start + length
