"""A linear map from latents to colours: previews without the decoder."""

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate

from tuner_svc.base_model import BaseModel

PICTURES = 6
BLOTCHES = 5  # of colour along a side
LARGEST_SIDE = 128  # pixels of a picture: 256 latent pixels of Stable Diffusion for 5 unknowns each


@torch.no_grad()
def latent_to_rgb(model: BaseModel, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    """(channels + 1, 3), by least squares: a latent pixel times the rows, plus the last row, is a colour in [-1, 1].

    It is fitted to random blotches of colour after their round trip: latents of noise are unlike those of pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    blotches = 2 * torch.rand((PICTURES, 3, BLOTCHES, BLOTCHES), generator=generator) - 1
    pixels = model.image_side[0] // model.latent_side[0]
    side = [min(side, LARGEST_SIDE // pixels) * pixels for side in model.latent_side]
    features, colours = [], []
    for picture in interpolate(blotches, side, mode="bilinear").split(1):
        latent = model.image_encoder(picture)
        colours.append(avg_pool2d(model.image_decoder(latent).clamp(-1, 1), pixels).flatten(2)[0].T)
        features.append(latent.flatten(2)[0].T)
    latents = torch.cat(features).numpy().astype(np.float64)
    constant = np.ones((len(latents), 1))
    weights, *_ = np.linalg.lstsq(np.hstack([latents, constant]), torch.cat(colours).numpy(), rcond=None)
    return tuple(tuple(row) for row in weights.tolist())
