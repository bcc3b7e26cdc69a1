"""Denoisers of an inpainting model, which is shown the picture outside of the mask (unitune.diffusion.inpainting)."""

import numpy as np
from numpy.typing import NDArray

from sampler_svc.sampling.base_graphs import BaseGraphs
from unitune.diffusion.guidance import Denoiser
from unitune.diffusion.inpainting import beside, shown, without_hidden
from unitune.diffusion.schedule import Latents
from unitune.images import Mask, ModelImage


def shown_outside(graphs: BaseGraphs, image: ModelImage, mask: Mask) -> Latents:
    """The channels beside the latents for a picture and its mask, both of a working size."""
    return shown(mask, graphs.encode(without_hidden(image, mask)))


def seeing(denoiser: Denoiser, channels: Latents) -> Denoiser:
    """The denoiser of latents alone, that sees these channels beside them."""

    def run(latents: Latents, timesteps: NDArray[np.int64], contexts: NDArray[np.float32]) -> Latents:
        return denoiser(beside(latents, channels), timesteps, contexts)

    return run


def seeing_nothing(graphs: BaseGraphs, denoiser: Denoiser) -> Denoiser:
    """The denoiser of latents of any size, from which all of the picture is hidden; the same one of another model."""
    if not graphs.spec.is_inpainting:
        return denoiser

    def run(latents: Latents, timesteps: NDArray[np.int64], contexts: NDArray[np.float32]) -> Latents:
        hidden = graphs.all_hidden((latents.shape[2], latents.shape[3]))
        return denoiser(beside(latents, hidden), timesteps, contexts)

    return run
