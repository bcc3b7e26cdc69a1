"""A photograph as its file has it, beside what the model sees of it, so that an edit can be put back into the file's
own pixels.

The model sees sRGB over white. A result is in the photograph's own colour profile, with its own transparency. Where a
result cannot be in that profile, it is in sRGB: `picture_file.check` warns of that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitune import images, picture_file, sixteen_bits
from unitune.colour_profile import ColourProfile, usable_profile_of
from unitune.images import Opacity, Pixels, strips_of
from unitune.sixteen_bits import Values

WHITE = 255


@dataclass(frozen=True)
class Photograph:
    """All arrays are of one height and width. `own` is `seen` itself where the file adds nothing."""

    seen: Pixels  # by the model: sRGB, transparent parts over white
    own: Pixels  # in the file's own profile
    opacity: Opacity | None = None
    profile: ColourProfile | None = None  # that results are in; None is sRGB
    # `own` and `opacity` with all 16 bits that the file has of each value; None where it has 8, or results cannot keep
    # them.
    own_16_bits: Values | None = None
    opacity_16_bits: NDArray[np.uint16] | None = None

    @classmethod
    def decode(cls, data: bytes) -> "Photograph":
        """A photograph's file, upright. Raises as `picture_file.read` does."""
        image = picture_file.read(data)
        found = usable_profile_of(image)
        profile = found if found is not None and found.is_kept else None
        seen = np.empty((image.height, image.width, 3), np.uint8)
        is_seen_alike = not image.has_transparency_data and (profile is None or profile.is_srgb)
        own = seen if is_seen_alike else np.empty_like(seen)
        opacity = np.empty(seen.shape[:2], np.uint8) if image.has_transparency_data else None
        values = _values_of(data, image) if picture_file.keeps_16_bits(data, image, found) else None
        for top, bottom, strip in picture_file.strips(image):
            seen[top:bottom] = np.asarray(picture_file.flattened(strip, profile=found))
            if own is not seen:
                own[top:bottom] = np.asarray(picture_file.own_colours(strip, found))
            if opacity is not None:
                opacity[top:bottom] = np.asarray(picture_file.opacity(strip))
        if values is None or values.shape[2] == 3:
            return cls(seen, own, opacity, profile, values)
        return cls(seen, own, opacity, profile, values[..., :3], values[..., 3])

    def crop(self, rows: slice, columns: slice) -> "Photograph":
        """A part of it."""
        seen = self.seen[rows, columns]
        own = seen if self.own is self.seen else self.own[rows, columns]
        opacity = self.opacity[rows, columns] if self.opacity is not None else None
        own_16_bits = self.own_16_bits[rows, columns] if self.own_16_bits is not None else None
        opacity_16_bits = self.opacity_16_bits[rows, columns] if self.opacity_16_bits is not None else None
        return Photograph(seen, own, opacity, self.profile, own_16_bits, opacity_16_bits)

    def resized(self, size: tuple[int, int]) -> "Photograph":
        """It in another `size` (height, width), with 8 bits."""
        seen = images.resized(self.seen, size)
        own = seen if self.own is self.seen else images.resized(self.own, size)
        opacity = None
        if self.opacity is not None:
            large = Image.fromarray(self.opacity).resize((size[1], size[0]), Image.Resampling.LANCZOS)
            opacity = np.asarray(large)
        return Photograph(seen, own, opacity, self.profile)

    def to_own(self, edited: Pixels) -> Pixels:
        """An edit of what the model sees, in the photograph's own colours; it may be `edited` itself.

        Over white and with the photograph's transparency it looks like the edit, as far as there are such colours.
        Where the photograph is wholly transparent its own colours stay.
        """
        if self.own is self.seen:
            return edited
        own = np.empty_like(edited)
        for rows in strips_of(edited):
            strip = edited[rows] if self.opacity is None else _without_white(edited[rows], self.opacity[rows])
            if self.profile is not None:
                strip = np.asarray(self.profile.from_srgb(Image.fromarray(strip)))
            own[rows] = strip
            if self.opacity is not None:
                clear = self.opacity[rows] == 0
                own[rows][clear] = self.own[rows][clear]
        return own

    @property
    def kept(self) -> NDArray[Any]:
        """`own`, of 16 bits where results can have them: what comes back where a result keeps pixels."""
        return self.own if self.own_16_bits is None else self.own_16_bits

    def file_of(self, pixels: NDArray[Any]) -> bytes:
        """The PNG of pixels in the photograph's own colours, of 8 or 16 bits, as large as it is."""
        profile = self.profile.data if self.profile is not None else None
        if pixels.dtype == np.uint16:
            return sixteen_bits.encoded(pixels, self.opacity_16_bits, profile)
        return images.encode_png(pixels, self.opacity, profile)


def _values_of(data: bytes, image: Image.Image) -> Values:
    """All bits of a picture's values."""
    lower = None if image.mode == picture_file.GREY_16_BITS else picture_file.read_lower_bytes(data)
    values = np.empty((image.height, image.width, 4 if image.mode == "RGBA" else 3), np.uint16)
    for top, bottom, strip in picture_file.strips(image):
        below = None if lower is None else lower.crop((0, top, image.width, bottom))
        values[top:bottom] = sixteen_bits.values_of(strip, below)
    return values


def _without_white(seen: Pixels, opacity: Opacity) -> Pixels:
    """The colours that over white look like `seen`: seen = share * colour + (1 - share) * white."""
    share = np.maximum(opacity, 1)[..., None].astype(np.float32) / np.float32(255)
    colours: np.ndarray[Any, np.dtype[np.float32]] = WHITE - (WHITE - seen.astype(np.float32)) / share
    return colours.clip(0, 255).round().astype(np.uint8)
