"""A photograph as its file has it, beside what the model sees of it, so that an edit can be put back into the file's
own pixels.

The model sees sRGB over white. A result is in the photograph's own colour profile, with its own transparency. Where a
result cannot be in that profile, it is in sRGB: `picture_file.check` warns of that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from unitune import images, picture_file
from unitune.colour_profile import ColourProfile, usable_profile_of
from unitune.images import Opacity, Pixels, strips_of

WHITE = 255


@dataclass(frozen=True)
class Photograph:
    """All arrays are of one height and width. `own` is `seen` itself where the file adds nothing."""

    seen: Pixels  # by the model: sRGB, transparent parts over white
    own: Pixels  # in the file's own profile
    opacity: Opacity | None = None
    profile: ColourProfile | None = None  # that results are in; None is sRGB

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
        for top, bottom, strip in picture_file.strips(image):
            seen[top:bottom] = np.asarray(picture_file.flattened(strip, profile=found))
            if own is not seen:
                own[top:bottom] = np.asarray(picture_file.own_colours(strip, found))
            if opacity is not None:
                opacity[top:bottom] = np.asarray(picture_file.opacity(strip))
        return cls(seen, own, opacity, profile)

    def crop(self, rows: slice, columns: slice) -> "Photograph":
        """A part of it."""
        seen = self.seen[rows, columns]
        own = seen if self.own is self.seen else self.own[rows, columns]
        opacity = self.opacity[rows, columns] if self.opacity is not None else None
        return Photograph(seen, own, opacity, self.profile)

    def resized(self, size: tuple[int, int]) -> "Photograph":
        """It in another `size` (height, width)."""
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

    def file_of(self, pixels: Pixels) -> bytes:
        """The PNG of pixels in the photograph's own colours, as large as it is."""
        return images.encode_png(pixels, self.opacity, self.profile.data if self.profile is not None else None)


def _without_white(seen: Pixels, opacity: Opacity) -> Pixels:
    """The colours that over white look like `seen`: seen = share * colour + (1 - share) * white."""
    share = np.maximum(opacity, 1)[..., None].astype(np.float32) / np.float32(255)
    colours: np.ndarray[Any, np.dtype[np.float32]] = WHITE - (WHITE - seen.astype(np.float32)) / share
    return colours.clip(0, 255).round().astype(np.uint8)
