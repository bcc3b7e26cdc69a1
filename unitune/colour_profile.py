"""Colour profiles (ICC) of pictures: from their colours to the model's, which are sRGB, and back.

It needs Pillow alone.
"""

import io
from functools import cached_property
from typing import cast

from PIL import Image, ImageChops, ImageCms

MAX_BYTES = 4 << 20  # of a profile; those of printers have about one million
SAME_LEVELS = 1  # of 255: a profile that changes no colour by more is sRGB's own

# Pillow's modes by the colours that a profile is of.
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_PIXEL_MODES = {"RGB": ("RGB", "RGBA", "RGBX", "P", "PA"), "L": ("1", "L", "LA", "I", "I;16"), "CMYK": ("CMYK",)}
_INTENT, _FLAGS = ImageCms.Intent.PERCEPTUAL, ImageCms.Flags.BLACKPOINTCOMPENSATION


class UnusableProfile(ValueError):
    """The bytes are no profile, or one of other colours than the picture's."""


class ColourProfile:
    """A picture's own profile. Pictures that are given to it have 8 bits."""

    def __init__(self, data: bytes, mode: str) -> None:
        """`mode` is the picture's. Raises UnusableProfile."""
        if len(data) > MAX_BYTES:
            raise UnusableProfile(f"{len(data)} bytes")
        try:
            self._profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
            self.mode = _MODES.get(self._profile.profile.xcolor_space, "")
            if mode not in _PIXEL_MODES.get(self.mode, ()):
                raise UnusableProfile(f"of {self.mode or 'other colours'}, for a picture of mode {mode}")
            self._to_srgb = self._between(self._profile, self.mode, _srgb(), "RGB")
        except (OSError, ImageCms.PyCMSError) as error:
            raise UnusableProfile(str(error)) from error
        self.data = data

    @cached_property
    def is_srgb(self) -> bool:
        """Whether its colours are sRGB's, so that none needs to be converted."""
        if self.mode != "RGB":
            return False
        levels = range(0, 256, 17)
        cube = bytes(level for red in levels for green in levels for blue in levels for level in (red, green, blue))
        colours = Image.frombytes("RGB", (64, 64), cube)
        return largest_difference(colours, _applied(self._to_srgb, colours)) <= SAME_LEVELS

    @cached_property
    def is_kept(self) -> bool:
        """Whether results can be in it: it is of RGB, as results are, and has a way back."""
        return self.mode == "RGB" and (self.is_srgb or self._from_srgb is not None)

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """The picture without its transparency in sRGB, of mode RGB."""
        image = image if image.mode == self.mode else image.convert(self.mode)
        return image if self.is_srgb else _applied(self._to_srgb, image)

    def from_srgb(self, image: Image.Image) -> Image.Image:
        """An RGB picture of sRGB in this profile. Raises ValueError if `is_kept` is false."""
        if self.is_srgb:
            return image
        if not self.is_kept or self._from_srgb is None:
            raise ValueError("no results are in this profile")
        return _applied(self._from_srgb, image)

    @cached_property
    def _from_srgb(self) -> ImageCms.ImageCmsTransform | None:
        try:
            return self._between(_srgb(), "RGB", self._profile, self.mode)
        except ImageCms.PyCMSError:  # some profiles, such as scanners', only say what their colours are
            return None

    @staticmethod
    def _between(
        source: ImageCms.ImageCmsProfile, source_mode: str, target: ImageCms.ImageCmsProfile, target_mode: str
    ) -> ImageCms.ImageCmsTransform:
        return ImageCms.buildTransform(source, target, source_mode, target_mode, _INTENT, _FLAGS)


def profile_of(image: Image.Image) -> ColourProfile | None:
    """The profile that the picture's file brings, if there is one. Raises UnusableProfile."""
    if "icc_profile" not in image.info:
        return None
    if not (data := image.info["icc_profile"]):  # so Pillow tells of one that it could not read
        raise UnusableProfile("it cannot be read")
    return ColourProfile(data, image.mode)


def usable_profile_of(image: Image.Image) -> ColourProfile | None:
    """The same, and None for one that is unusable: its colours are taken as sRGB."""
    try:
        return profile_of(image)
    except UnusableProfile:
        return None


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    """Of two pictures of one size and mode, in levels of 255."""
    bands = ImageChops.difference(one, other).split()
    return max(cast(tuple[int, int], band.getextrema())[1] for band in bands)


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    applied = ImageCms.applyTransform(image, transform)
    assert applied is not None  # it is None in place alone
    return applied
