"""Reads a denoiser's output, which is epsilon, v or the clean latent, depending on its training."""

import math
from typing import NamedTuple

import numpy as np

from unitune.diffusion.schedule import Latents


class Prediction(NamedTuple):
    """An output as the clean latent, and as the noise."""

    denoised: Latents
    epsilon: Latents


def predict(output: Latents, latents: Latents, alpha_cumprod: float, prediction_type: str) -> Prediction:
    """Read a denoiser's output for latents at a level: v is sqrt(alpha) epsilon - sqrt(1 - alpha) latent, and "sample"
    is the clean latent.

    At alpha_cumprod 0 epsilon does not determine the clean latent, so only the others give finite numbers (Salimans and
    Ho, 2022).
    """
    signal, noise = np.float32(math.sqrt(alpha_cumprod)), np.float32(math.sqrt(1 - alpha_cumprod))
    if prediction_type == "v_prediction":
        return Prediction(signal * latents - noise * output, signal * output + noise * latents)
    if prediction_type == "sample":
        return Prediction(output, np.divide(latents - signal * output, noise))
    return Prediction(np.divide(latents - noise * output, signal), output)
