"""What a text names, found by the base model's cross-attention: each thing alone as the prompt, its own tokens' maps.

The maps (Hertz et al., arXiv 2208.01626) are a few positions wide, so their borders are drawn by the picture's colours
(`sampler_svc/masks/refine.py`).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sampler_svc.base_graphs import BaseGraphs
from sampler_svc.engine import Array
from sampler_svc.masks.refine import refined
from sampler_svc.masks.scene import Find
from unitune import images
from unitune.diffusion.schedule import Schedule, add_noise
from unitune.errors import Cancelled
from unitune.images import Mask, Pixels

Maps = Callable[[Array, NDArray[np.int64], Array], Array]  # latents, timesteps, contexts -> (n, tokens, h, w)

STRENGTHS = (0.1, 0.3, 0.5, 0.7)  # how far up the schedule the picture is noised
NOISES_EACH = 2
NOISE_SEED = 0  # the mask is the same for every seed of an edit


def finder(
    graphs: BaseGraphs, schedule: Schedule, maps: Maps, things: Sequence[str], cancelled: Callable[[], bool]
) -> Find:
    """What finds these things in a picture. It raises Cancelled (EDIT_CANCELLED) before a thing's passes."""

    def find(picture: Pixels) -> Mask:
        latent = graphs.encode(images.to_model(picture, graphs.spec.image_side))
        mask = np.zeros(picture.shape[:2], np.float32)
        for thing in things:
            if cancelled():
                raise Cancelled("the edit was cancelled", reason="EDIT_CANCELLED")
            mask = np.maximum(mask, refined(_attended(latent, graphs, schedule, maps, thing), picture))
        return mask

    return find


def _attended(latent: Array, graphs: BaseGraphs, schedule: Schedule, maps: Maps, thing: str) -> Array:
    """The mean map of the thing's own tokens, (h, w), over noise levels and noises."""
    timesteps = np.repeat([int(strength * len(schedule)) for strength in STRENGTHS], NOISES_EACH)
    rng = np.random.default_rng(NOISE_SEED)
    noised = np.concatenate(
        [
            add_noise(latent, rng.standard_normal(latent.shape, dtype=np.float32), float(schedule.alphas_cumprod[t]))
            for t in timesteps
        ]
    ).astype(np.float32)
    contexts = np.repeat(graphs.embed(thing)[None], len(timesteps), axis=0)
    found = maps(noised, timesteps, contexts)
    last = min(1 + graphs.num_tokens(thing), found.shape[1])  # the first token is the prompt's beginning
    attended: Array = found[:, 1:last].mean(axis=(0, 1))
    return attended
