"""A prompt's conditioning, and the inputs of a denoiser that are made of it.

Conditioning is one array, (rows, width), so that guidance, mixtures and inversion treat it as one point. It has a row
for each token of the text embedding. Where the denoiser also takes a pooled embedding of the text (SDXL, arXiv
2307.01952, section 2.1), one more row holds that, padded with zeros. Such a denoiser is told a picture's size, too.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_SIZES = 6  # of a denoiser's time_ids


def num_rows(tokens: int, pooled_width: int) -> int:
    """The rows of a prompt's conditioning; `pooled_width` is 0 without a pooled embedding."""
    return tokens + (pooled_width > 0)


def size_ids(height: int, width: int) -> tuple[int, ...]:
    """SDXL's `time_ids` of a picture in pixels: original size, top and left of its crop, target size (section 2.2).

    All three are what the picture is worked on at, whatever its file has: uncropped and sharp, and the same in tuning
    and in every edit, so that a tuning binds nothing to a size.
    """
    return height, width, 0, 0, height, width


def denoiser_inputs(
    latents: NDArray[np.float32],
    timesteps: NDArray[np.int64],
    contexts: NDArray[np.float32],
    pooled_width: int = 0,
    pixels: int = 0,
) -> dict[str, NDArray[Any]]:
    """The inputs of a denoiser's graph, by name, of latents (n, channels, h, w) and conditioning (n, rows, width).

    `pixels` are a side of the picture for one of the latents.
    """
    if not pooled_width:
        return {"sample": latents, "timestep": timesteps, "encoder_hidden_states": contexts}
    sizes = size_ids(latents.shape[2] * pixels, latents.shape[3] * pixels)
    return {
        "sample": latents,
        "timestep": timesteps,
        "encoder_hidden_states": np.ascontiguousarray(contexts[:, :-1]),
        "text_embeds": np.ascontiguousarray(contexts[:, -1, :pooled_width]),
        "time_ids": np.tile(np.array(sizes, dtype=np.float32), (len(latents), 1)),
    }
