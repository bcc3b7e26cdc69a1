"""What a denoiser's output means, whichever of epsilon, v or the clean latent the network was trained to predict."""

import math
from typing import NamedTuple

import numpy as np

from unitune.diffusion.schedule import Latents


class Prediction(NamedTuple):
    """The same output twice: the clean latent it implies, and the noise."""

    denoised: Latents
    epsilon: Latents


def predict(output: Latents, latents: Latents, alpha_cumprod: float, prediction_type: str) -> Prediction:
    """Read a denoiser's output for latents at a level; v is sqrt(alpha) epsilon - sqrt(1 - alpha) latent, and "sample"
    is the clean latent itself.

    Epsilon says nothing about the clean latent at alpha_cumprod 0, so there only the others give finite numbers
    (Salimans and Ho, 2022).
    """
    signal, noise = np.float32(math.sqrt(alpha_cumprod)), np.float32(math.sqrt(1 - alpha_cumprod))
    if prediction_type == "v_prediction":
        return Prediction(signal * latents - noise * output, signal * output + noise * latents)
    if prediction_type == "sample":
        return Prediction(output, np.divide(latents - signal * output, noise))
    return Prediction(np.divide(latents - noise * output, signal), output)
