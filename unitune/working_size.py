"""The working size of a picture: the height and width at which it is tuned on and sampled, and how it lies in them.

A base model was trained on pictures of one area. So a working size has about that area in the picture's own aspect, in
multiples of the step that the model's networks need. The picture is scaled to lie within it, and what is left at its
edges is filled by the picture's reflection, and cut off again afterwards. So nothing is squeezed, and nothing is lost.
"""

import math
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unitune import images
from unitune.images import ModelImage, Pixels

MOST_AREA = 1.02  # of the model's own
MOST_ASPECT = 2.5  # of the longer side to the shorter; more would leave few pixels across
ASPECT_WEIGHT = 2.0  # of an error in the aspect, against a loss of area, both as logarithms

Size = tuple[int, int]  # height, width
Box = tuple[float, float, float, float]  # left, top, right, bottom
D = TypeVar("D", bound=np.generic)


@lru_cache(maxsize=1024)
def working_size(size: Size, image_side: Size, step: int) -> Size:
    """The working size of a picture of `size`, for a base model of this image_side and size_step.

    A step of 0 allows image_side alone. A picture of that aspect always has it.
    """
    if step == 0:
        return image_side
    area = image_side[0] * image_side[1]
    aspect = min(max(size[0] / size[1], 1 / MOST_ASPECT), MOST_ASPECT)

    def loss(candidate: Size) -> float:
        height, width = candidate
        return ASPECT_WEIGHT * abs(math.log(height / width / aspect)) + abs(math.log(height * width / area))

    return min(working_sizes(image_side, step), key=loss)


@lru_cache(maxsize=8)
def working_sizes(image_side: Size, step: int) -> list[Size]:
    """All working sizes of a base model."""
    if step == 0:
        return [image_side]
    most = MOST_AREA * image_side[0] * image_side[1]
    return [image_side] + [
        (height, width)
        for height in range(step, int(most / step) + 1, step)
        for width in range(step, int(most / height) + 1, step)
        if max(height / width, width / height) <= MOST_ASPECT
    ]


class Fit(NamedTuple):
    """How a picture lies in its working size. Where it fills it, nothing is added or cut off."""

    size: Size  # the working size
    top: int
    left: int
    height: int  # this and the next: of the picture, scaled
    width: int

    @property
    def is_padded(self) -> bool:
        """Whether something is left at the picture's edges."""
        return (self.height, self.width) != self.size

    def to_model(self, pixels: Pixels) -> ModelImage:
        """The picture as a model image of the working size."""
        return self.padded(images.to_model(pixels, (self.height, self.width)))

    def from_model(self, image: ModelImage, size: Size) -> Pixels:
        """The picture in a model image, resized to `size`. The image may be smaller or larger than the working size."""
        left, top, right, bottom = (round(place) for place in self.box((image.shape[2], image.shape[3])))
        return images.from_model(image[:, :, top : max(bottom, top + 1), left : max(right, left + 1)], size)

    def padded(self, array: NDArray[D]) -> NDArray[D]:
        """An array over the scaled picture, (..., height, width), with its reflection at its edges."""
        if not self.is_padded:
            return array
        rows = self.top, self.size[0] - self.top - self.height
        columns = self.left, self.size[1] - self.left - self.width
        padded: NDArray[D] = np.pad(array, [(0, 0)] * (array.ndim - 2) + [rows, columns], mode="symmetric")
        return padded

    def cut(self, pixels: Pixels) -> Pixels:
        """The scaled picture within pixels of the working size."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]

    def box(self, size: Size) -> Box:
        """The picture's place in an array over the working size that has other rows and columns."""
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        right, bottom = self.left + self.width, self.top + self.height
        return self.left * across, self.top * down, right * across, bottom * down

    def scaled(self, size: Size) -> "Fit":
        """The same in a working size of other pixels."""
        left, top, right, bottom = (round(place) for place in self.box(size))
        return Fit(size, top, left, max(bottom - top, 1), max(right - left, 1))


def fit(size: Size, into: Size) -> Fit:
    """A picture of `size` in the middle of a working size, as large as it can be in its own aspect."""
    height, width = into
    if size[0] * width >= size[1] * height:
        width = max(round(height * size[1] / size[0]), 1)
    else:
        height = max(round(width * size[0] / size[1]), 1)
    return Fit(into, (into[0] - height) // 2, (into[1] - width) // 2, height, width)


def enlarged(size: Size, place: Fit, scale: float, step: int) -> Fit | None:
    """A picture of `size` in a size that is `scale` times the working size in which it lies at `place`, or as large as
    the picture itself if that is less, in multiples of `step`. None unless the picture `leaves_detail`."""
    if not leaves_detail(size, place):
        return None
    scale = min(scale, size[0] / place.height, size[1] / place.width)
    height, width = (step * math.ceil(scale * side / step) for side in place.size)
    return fit(size, (height, width))


def leaves_detail(size: Size, place: Fit) -> bool:
    """Whether a picture of `size` is larger than in its working size, so that a second pass can add detail."""
    return size[0] > place.height and size[1] > place.width


def too_small_for_second_pass(size: Size, into: Size) -> str:
    """The warning for a picture of `size` in its working size, or a part of one, that leaves nothing to a second
    pass."""
    return (
        f"what is edited has {size[1]}x{size[0]} pixels, no more than the {into[1]}x{into[0]} that it is sampled at: "
        "there is no second pass; leave second_pass unset, or give a larger picture"
    )


def warnings_of(size: Size) -> list[str]:
    """At most one warning for a picture of `size`: one that is longer than any working size."""
    aspect = max(size) / min(size)
    if aspect <= MOST_ASPECT:
        return []
    return [
        f"the picture is {aspect:.1f} times as long as it is wide, and at most {MOST_ASPECT:g} times is worked at: "
        "edits have little detail; crop it, or edit a part of it by a mask and config.mask.only_masked"
    ]


def size_of(pixels: Pixels) -> Size:
    """Height and width of a picture."""
    return pixels.shape[0], pixels.shape[1]
