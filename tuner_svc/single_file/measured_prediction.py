"""What a denoiser predicts, found by trying: the reading of its output that gives noised pictures back."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tuner_svc.base_model import BaseModel
from unitune.diffusion.denoiser import predict
from unitune.diffusion.schedule import Schedule, add_noise

PICTURES = 4
TIMESTEPS = (999, 500)  # of 1000: nearly pure noise, and half
CLEAR = 2.0  # times as large an error of the other reading
_GRID = 6  # colours along a side of a picture

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # sample, timestep, encoder_hidden_states -> output


class Errors(NamedTuple):
    """Mean squared errors of the clean latents that epsilon and v imply: the geometric mean over timesteps, since those
    of one would outweigh the others."""

    epsilon: float
    v_prediction: float
    is_sensible: bool  # whether the better one is nearer to the latents, at half noise, than no picture at all


def measure(model: BaseModel, denoise: Denoise | None = None) -> Errors:
    """Noise smooth pictures, have the denoiser predict, and read its outputs both ways. The prompt is empty."""
    latents = model.encode_image(_pictures(model.image_side))
    context = model.encode_prompt("").expand(PICTURES, -1, -1)
    schedule, denoiser = Schedule(**vars(model.schedule)), denoise or model.predicted
    generator = np.random.default_rng(0)
    clean = latents.cpu().numpy()
    found = {kind: [] for kind in ("epsilon", "v_prediction")}  # type: dict[str, list[float]]
    for share in TIMESTEPS:
        timestep = share * len(schedule) // 1000
        level = float(schedule.alphas_cumprod[timestep])
        noised = add_noise(clean, generator.standard_normal(clean.shape, dtype=np.float32), level)
        with torch.no_grad():
            given = torch.from_numpy(noised).to(model.device), torch.full((PICTURES,), timestep, device=model.device)
            output = denoiser(*given, context).cpu().numpy()
        for kind, errors in found.items():
            errors.append(float(np.square(predict(output, noised, level, kind).denoised - clean).mean()))
    epsilon, v_prediction = (math.prod(errors) ** (1 / len(errors)) for errors in found.values())
    better = found["epsilon"] if epsilon < v_prediction else found["v_prediction"]
    return Errors(epsilon, v_prediction, better[-1] < float(np.square(clean).mean()))


def kind_of(errors: Errors) -> str | None:
    """The prediction type that the errors show, or None where they do not show it clearly."""
    low, high = sorted(errors[:2])
    if not np.isfinite(low) or high < CLEAR * low or not errors.is_sensible:
        return None
    return "epsilon" if errors.epsilon < errors.v_prediction else "v_prediction"


def _pictures(side: tuple[int, int]) -> np.ndarray:
    """Pictures of soft colours, as model images (PICTURES, 3, height, width)."""
    generator, (height, width) = np.random.default_rng(0), side
    grids = generator.integers(0, 256, (PICTURES, _GRID, _GRID, 3), dtype=np.uint8)
    soft = [Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC) for grid in grids]
    return (np.stack([np.asarray(one, dtype=np.float32) for one in soft]) / 127.5 - 1).transpose(0, 3, 1, 2).copy()
