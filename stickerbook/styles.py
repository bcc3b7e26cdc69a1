"""Picture styles: functions from a picture to the same scene in another style; both uint8 (side, side, 3).

Lengths are in pixels of a 64 px picture; larger pictures scale them.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

GREY = np.array([0.299, 0.587, 0.114])
SIDE = 64
MOSAIC_TILE = 4  # grout included
PIXEL = 2


def drawing(pixels: np.ndarray) -> np.ndarray:
    """As it is painted."""
    return pixels


def black_and_white(pixels: np.ndarray) -> np.ndarray:
    """Grey, with a little contrast, as on old film."""
    return _grey(128 + 1.15 * (pixels @ GREY - 128))


def pencil_sketch(pixels: np.ndarray) -> np.ndarray:
    """Dark outlines and light shading on warm paper."""
    light = pixels @ GREY
    around = _blurred(light, 2.0 * _scale(pixels))
    lines = np.clip(light / np.maximum(around, 8), 0, 1) ** 2  # 1 where nothing changes, dark along edges
    graphite = 255 * lines * (0.55 + 0.45 * light / 255)
    return np.clip(graphite[..., None] * np.array([1.0, 0.985, 0.94]) + 8, 0, 255).round().astype(np.uint8)


def pixel_art(pixels: np.ndarray) -> np.ndarray:
    """Squares of two pixels in few, strong colours."""
    square = PIXEL * _scale(pixels)
    side = len(pixels) // square
    coarse = pixels.reshape(side, square, side, square, 3).mean(axis=(1, 3))
    vivid = coarse.mean(axis=2, keepdims=True) + 1.35 * (coarse - coarse.mean(axis=2, keepdims=True))
    few = np.clip((np.clip(vivid, 0, 255) / 51).round() * 51, 0, 255)
    return few.repeat(square, axis=0).repeat(square, axis=1).astype(np.uint8)


def watercolour(pixels: np.ndarray) -> np.ndarray:
    """Flat washes that run into each other, pale, with darker rims where a wash ends."""
    scale = _scale(pixels)
    flat = Image.fromarray(pixels).filter(ImageFilter.ModeFilter(2 * scale + 1))
    washed = np.asarray(flat.filter(ImageFilter.GaussianBlur(0.7 * scale)))
    light = washed @ GREY
    rims = np.clip(np.abs(light - _blurred(light, 1.5 * scale)) / 40, 0, 1)[..., None]
    pale = 255 - 0.74 * (255 - washed.astype(float))
    return np.clip(pale * (1 - 0.30 * rims) + np.array([4, 2, -6]), 0, 255).round().astype(np.uint8)


def mosaic(pixels: np.ndarray) -> np.ndarray:
    """Small square tiles with dark grout between them."""
    scale = _scale(pixels)
    tile = MOSAIC_TILE * scale
    side = len(pixels) // tile
    tiles = pixels.reshape(side, tile, side, tile, 3).mean(axis=(1, 3))
    tiles = tiles.repeat(tile, axis=0).repeat(tile, axis=1)
    laid = 0.45 * tiles + 0.55 * pixels
    grout = (np.arange(len(pixels)) % tile) < scale
    laid[grout[:, None] | grout[None, :]] *= 0.62
    return laid.round().astype(np.uint8)


STYLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "drawing": drawing,
    "black and white": black_and_white,
    "pencil sketch": pencil_sketch,
    "pixel art": pixel_art,
    "watercolour": watercolour,
    "mosaic": mosaic,
}


def _scale(pixels: np.ndarray) -> int:
    return len(pixels) // SIDE


def _grey(light: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(light, 0, 255)[..., None], 3, axis=2).round().astype(np.uint8)


def _blurred(light: np.ndarray, radius: float) -> np.ndarray:
    grey = Image.fromarray(light.round().astype(np.uint8))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius))).astype(float)
