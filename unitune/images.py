"""Pictures: bytes to arrays and back, and the limits that every upload meets.

An array of pixels is uint8 (height, width, 3), RGB, upright. An image of the model is float32
(1, 3, height, width) in [-1, 1]. A mask is float32 (height, width) in [0, 1]: 1 is edited, 0 is kept.
"""

import io
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unitune.errors import InvalidArgument, InvalidField

MAX_BYTES = 16 * 1024**2  # of a picture's file
MAX_PIXELS = 64_000_000  # of a picture
MAX_CHUNK_BYTES = 256 * 1024  # of one upload message

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
EXIF_ORIENTATION = 0x0112
PNG_COMPRESSION = 1  # zlib level; 6 would save a fifth of the bytes and cost nine seconds for 12 megapixels

Pixels = NDArray[np.uint8]
ModelImage = NDArray[np.float32]
Mask = NDArray[np.float32]


@dataclass(frozen=True)
class ImageInfo:
    """What a picture's file holds: pixels after the orientation that the file asks for, and its kind."""

    width: int
    height: int
    media_type: str


def inspect(data: bytes) -> ImageInfo:
    """Check a picture's file: its kind and size from the header, then that all of it decodes.

    Raises InvalidArgument: UPLOAD_TOO_LARGE, IMAGE_TOO_LARGE (before anything is decoded), or IMAGE_UNDECODABLE.
    """
    image = _read(data, "image", MEDIA_TYPES)
    turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    width, height = reversed(image.size) if turned else image.size
    return ImageInfo(width, height, MEDIA_TYPES[image.format or ""])


def decode(data: bytes) -> Pixels:
    """The picture's pixels, upright, transparent parts over white. Raises as `inspect` does."""
    return np.array(_over("white", _read(data, "image", MEDIA_TYPES)).convert("RGB"))


def decode_mask(data: bytes, size: tuple[int, int]) -> Mask:
    """A given mask from its PNG: 1 where it is white, transparent parts black. `size` is the base image's.

    Raises InvalidArgument naming the field `mask`: as `inspect` does, and INVALID_FIELD for another size.
    """
    image = _over("black", _read(data, "mask", ("PNG",))).convert("L")
    if (image.height, image.width) != size:
        remedy = f"make it as large as the base image, {size[1]}x{size[0]}"
        raise InvalidField("mask", f"{image.width}x{image.height} pixels", remedy)
    return np.asarray(image, np.float32) / np.float32(255)


def encode_mask(mask: Mask) -> bytes:
    """A grey PNG of a mask."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * mask).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def to_model(pixels: Pixels, side: tuple[int, int]) -> ModelImage:
    """Pixels as the model takes them, resized to `side` (height, width) whatever their aspect.

    Where sizes agree, `from_model` gives the same pixels back.
    """
    scaled = _resize(pixels, side).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def from_model(image: ModelImage, size: tuple[int, int]) -> Pixels:
    """One image of the model as pixels, resized to `size` (height, width); values beyond [-1, 1] are clipped."""
    scaled = (image[0].transpose(1, 2, 0) + np.float32(1)) * np.float32(127.5)
    return _resize(np.rint(scaled.clip(0, 255)).astype(np.uint8), size)


def is_as_large(width: int, height: int, side: tuple[int, int]) -> bool:
    """Whether a picture's longer side reaches that of `side` (height, width), so that it has detail of that size."""
    return max(width / side[1], height / side[0]) >= 1


def too_small(side: tuple[int, int]) -> str:
    """The remedy for one that is not."""
    return f"super_resolution_updates needs a picture of {side[1]}x{side[0]} pixels or more; give one, or leave it 0"


def encode_png(pixels: Pixels) -> bytes:
    """A PNG file of the pixels; the same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=PNG_COMPRESSION)
    return file.getvalue()


def _read(data: bytes, field: str, formats: Collection[str]) -> Image.Image:
    """A decoded picture, not yet turned upright."""
    if len(data) > MAX_BYTES:
        remedy = f"send a file of at most {MAX_BYTES} bytes"
        raise _refusal(field, "UPLOAD_TOO_LARGE", f"{len(data)} bytes", remedy)
    too_large = f"send a picture of at most {MAX_PIXELS // 1_000_000} megapixels"
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(formats))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+(?= pixels)", str(error))  # Pillow's own count; it has read no further
        value = pixels[0] + " pixels" if pixels else "too many pixels"
        raise _refusal(field, "IMAGE_TOO_LARGE", value, too_large) from error
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes, and all mean this
        remedy = "send a PNG, JPEG or WebP picture" if len(formats) > 1 else "send a PNG picture"
        raise _refusal(field, "IMAGE_UNDECODABLE", f"{len(data)} bytes", remedy) from error
    if image.width * image.height > MAX_PIXELS:
        raise _refusal(field, "IMAGE_TOO_LARGE", f"{image.width}x{image.height} pixels", too_large)
    try:
        image.load()
        image.getexif()
    except Exception as error:  # as above
        remedy = "the file is damaged or cut short; send it whole"
        raise _refusal(field, "IMAGE_UNDECODABLE", f"{len(data)} bytes", remedy) from error
    return image


def _over(colour: str, image: Image.Image) -> Image.Image:
    """A picture turned upright, of 8 bits, its transparent parts over a colour."""
    image = _eight_bit(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, colour), image)
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits as 8 bits; Pillow's own conversion would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _refusal(field: str, reason: str, value: str, remedy: str) -> InvalidArgument:
    metadata = {"field": field, "value": value, "remedy": remedy}
    return InvalidArgument(f"{field} is {value}: {remedy}", reason=reason, metadata=metadata)
