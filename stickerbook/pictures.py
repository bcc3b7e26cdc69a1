"""Pictures as the networks take them."""

from typing import Literal

import numpy as np
import torch

from stickerbook.render import SIDE, render
from stickerbook.world import draw_scene


def as_images(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, side, side, 3) to float32 in [-1, 1], (n, 3, side, side)."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pixels(images: torch.Tensor) -> np.ndarray:
    """About [-1, 1], (n, 3, side, side), to uint8 (n, side, side, 3)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def pictures(seeds: range | list[int], split: Literal["train", "held_out"] = "train", side: int = SIDE) -> torch.Tensor:
    """Rendered scenes, float32 in [-1, 1], (n, 3, side, side)."""
    return as_images(np.stack([render(draw_scene(seed, split), side) for seed in seeds]))
