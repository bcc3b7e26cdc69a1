"""Base images to test with."""

import numpy as np

from unitune import images


def picture(height: int = 48, width: int = 48) -> bytes:
    """A PNG of soft random colours, the same every time."""
    coarse = np.random.default_rng(3).integers(0, 256, (4, 4, 3)).astype(np.float64)
    rows, columns = (np.linspace(0, 3, side) for side in (height, width))
    along = np.stack([[np.interp(columns, range(4), coarse[row, :, c]) for c in range(3)] for row in range(4)])
    pixels = np.stack([[np.interp(rows, range(4), along[:, c, x]) for c in range(3)] for x in range(width)])
    return images.encode_png(pixels.transpose(2, 0, 1).round().astype(np.uint8))


def mask(height: int = 48, width: int = 48, *, box: tuple[int, int, int, int] | None = None) -> bytes:
    """A mask's PNG, white in a box of (top, left, bottom, right); all white without one."""
    pixels = np.zeros((height, width), np.float32)
    top, left, bottom, right = box or (0, 0, height, width)
    pixels[top:bottom, left:right] = 1
    return images.encode_mask(pixels)
