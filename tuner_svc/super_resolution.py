"""Tune the super-resolution model on the picture, too: UniTune (arXiv 2210.09477) and Imagic (arXiv 2210.09276, 3.2).

It is tuned on what it will see: the noisy picture, beside the decoded latent, upsampled and noised
to a random noise level that the network is told, as in its own training. The inputs are never two noisy copies of the
picture.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import interpolate, mse_loss, pixel_unshuffle
from torch.optim import Optimizer

from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import StageState
from tuner_svc.denoising import Draws, Noising, draw, mixed_precision
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.trainable import trainable
from tuner_svc.tuning_config import TuningConfig

MAX_NOISE_LEVEL = 250  # of the noise on the small picture, as in stickerbook's training; Imagen's are up to 300


@dataclass(frozen=True)
class Pair:
    """The picture, and its upsampled decoded latent, in blocks, (1, channels, h, w)."""

    large: Tensor
    low: Tensor


@torch.no_grad()
def pair_of(model: BaseModel, image: Tensor, latent: Tensor) -> Pair:
    """From the picture at the size that super-resolution makes, (1, 3, height, width) in [-1, 1], and its latent."""
    stage = model.super_resolution
    assert stage is not None
    small = model.image_decoder(latent).clamp(-1, 1)
    low = interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)
    return Pair(pixel_unshuffle(image, stage.block), pixel_unshuffle(low, stage.block))


def tune_super_resolution(
    model: BaseModel,
    pair: Pair,
    context: Tensor,
    config: TuningConfig,
    tracker: ProgressTracker,
    optimizer_of: Callable[[list[Tensor], float], Adafactor | Optimizer],
) -> dict[str, Tensor]:
    """The changed tensors by name, after `super_resolution_updates` under one text embedding, (1, tokens, width)."""
    resolver, stage = model.super_resolver, model.super_resolution
    assert resolver is not None and stage is not None
    generator = torch.Generator().manual_seed(config.seed)
    chosen = trainable(resolver.unet, config.mode, generator)
    parameters = chosen.parameters()
    optimizer = optimizer_of(parameters, config.learning_rate)
    noising = Noising(stage.schedule, model.device)
    state = StageState(parameters, optimizer, [generator])
    for _ in tracker.updates(config.super_resolution_updates, config.learning_rate, state=state):
        draws = draw(config.batch, pair.large, noising.num_timesteps, generator)
        shown = draw(config.batch, pair.low, noising.num_timesteps, generator)
        noise_levels = (
            MAX_NOISE_LEVEL * shown.timesteps.square() // noising.num_timesteps**2
        )  # half of them in the lowest quarter
        shown = Draws(noise_levels, shown.noise)
        noisy = noising.noised(pair.large, draws)
        if stage.is_preconditioned:
            noisy = noising.signal(draws) * noisy
        sample = torch.cat([noisy, noising.noised(pair.low, shown)], dim=1)
        timesteps = torch.stack([draws.timesteps, shown.timesteps], dim=1)
        arguments = (sample, timesteps, context.expand(config.batch, -1, -1))
        weights = {f"unet.{name}": tensor for name, tensor in chosen.replacements().items()}
        with mixed_precision(model.device):
            output = functional_call(resolver, weights, arguments).float()
        if stage.is_preconditioned:
            output = pair.low + output
        loss = mse_loss(output, noising.target(pair.large, draws))
        tracker.record(loss)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in chosen.weights().items()}
