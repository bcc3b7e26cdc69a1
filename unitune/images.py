"""Pictures as arrays: from files and back, and to and from the model.

An array of pixels is uint8 (height, width, 3), RGB, upright. An image of the model is float32
(1, 3, height, width) in [-1, 1]. A mask is float32 (height, width) in [0, 1]: 1 is edited, 0 is kept.
A large picture is processed in strips: a copy of 64 megapixels takes 200 MB, and 800 MB in floats.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitune import picture_file
from unitune.colour_profile import usable_profile_of
from unitune.errors import InvalidField
from unitune.picture_header import MAX_BYTES, PNG

MAX_CHUNK_BYTES = 256 * 1024  # of one upload message

PNG_COMPRESSION = 1  # zlib level; 6 saves a fifth of the bytes, but takes nine seconds for 12 megapixels

Pixels = NDArray[np.uint8]
Opacity = NDArray[np.uint8]  # (height, width), 255 is opaque
ModelImage = NDArray[np.float32]
Mask = NDArray[np.float32]


def decode(data: bytes, *, max_bytes: int | None = MAX_BYTES) -> Pixels:
    """The picture's pixels in sRGB, upright, transparent parts over white. Raises as `picture_file.read` does.

    `max_bytes` None is for files of the product, which may be larger than an upload.
    """
    image = picture_file.read(data, max_bytes=max_bytes)
    profile = usable_profile_of(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, bottom, strip in picture_file.strips(image):
        pixels[top:bottom] = np.asarray(picture_file.flattened(strip, profile=profile))
    return pixels


def decode_mask(data: bytes, size: tuple[int, int]) -> Mask:
    """A given mask from its PNG: 1 where it is white, transparent parts black. `size` is the base image's.

    Raises InvalidArgument naming the field `mask`: as `picture_file.read` does, and INVALID_FIELD for another size.
    """
    image = picture_file.read(data, "mask", (PNG,))
    check_mask_size(image.width, image.height, size)
    mask = np.empty(size, np.float32)
    for top, bottom, strip in picture_file.strips(image):
        mask[top:bottom] = np.asarray(picture_file.flattened(strip, "L", "black"))
        mask[top:bottom] /= np.float32(255)
    return mask


def check_mask_size(width: int, height: int, size: tuple[int, int], field: str = "mask") -> None:
    """Raise InvalidField unless a mask is as large as the base image, whose `size` is (height, width)."""
    if (height, width) != size:
        remedy = f"make it as large as the base image, {size[1]}x{size[0]}"
        raise InvalidField(field, f"{width}x{height} pixels", remedy)


def encode_mask(mask: Mask) -> bytes:
    """A grey PNG of a mask."""
    file = io.BytesIO()
    Image.fromarray(grey(mask)).save(file, "PNG")
    return file.getvalue()


def grey(mask: Mask) -> NDArray[np.uint8]:
    """A mask's values, 0 to 255, (height, width)."""
    values = np.empty(mask.shape, np.uint8)
    for rows in strips_of(mask):
        values[rows] = np.rint(255 * mask[rows])
    return values


def strips_of(array: NDArray) -> list[slice]:
    """The rows of a picture or a mask, in parts of about a megapixel."""
    height, width = array.shape[:2]
    rows = max(1, picture_file.STRIP_PIXELS // width)
    return [slice(top, top + rows) for top in range(0, height, rows)]


def to_model(pixels: Pixels, side: tuple[int, int]) -> ModelImage:
    """Pixels as a model image, resized to `side` (height, width) without keeping the aspect.

    If sizes agree, `from_model` returns the same pixels.
    """
    scaled = resized(pixels, side).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def from_model(image: ModelImage, size: tuple[int, int]) -> Pixels:
    """One image of the model as pixels, resized to `size` (height, width); values beyond [-1, 1] are clipped."""
    scaled = (image[0].transpose(1, 2, 0) + np.float32(1)) * np.float32(127.5)
    return resized(np.rint(scaled.clip(0, 255)).astype(np.uint8), size)


def is_as_large(width: int, height: int, side: tuple[int, int]) -> bool:
    """Whether a picture's longer side reaches that of `side` (height, width), so that it has detail of that size."""
    return max(width / side[1], height / side[0]) >= 1


def too_small(side: tuple[int, int], stage: str) -> str:
    """The remedy for a picture that is not, of a tuning of a super-resolution stage."""
    return f"{stage}_updates needs a picture of {side[1]}x{side[0]} pixels or more; give one, or leave it 0"


def encode_png(pixels: Pixels, opacity: Opacity | None = None, icc_profile: bytes | None = None) -> bytes:
    """A PNG file of the pixels; the same pixels give the same bytes."""
    file, image = io.BytesIO(), Image.fromarray(pixels)
    if opacity is not None:
        image.putalpha(Image.fromarray(opacity))
    image.save(file, "PNG", compress_level=PNG_COMPRESSION, icc_profile=icc_profile)
    return file.getvalue()


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Pixels of another `size` (height, width), without keeping the aspect."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    # Like Pillow, first along the rows and then along the columns. Rows and columns are independent, so working in
    # strips gives the same result without a copy of a large picture.
    wide = Image.new("RGB", (width, pixels.shape[0]))
    for rows in strips_of(pixels):
        strip = Image.fromarray(pixels[rows])
        wide.paste(strip.resize((width, strip.height), Image.Resampling.LANCZOS), (0, rows.start))
    resized = np.empty((height, width, 3), np.uint8)
    columns = max(1, picture_file.STRIP_PIXELS // height)
    for left in range(0, width, columns):
        right = min(left + columns, width)
        part = wide.crop((left, 0, right, wide.height)).resize((right - left, height), Image.Resampling.LANCZOS)
        resized[:, left:right] = np.asarray(part)
    return resized
