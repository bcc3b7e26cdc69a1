"""Tune the super-resolution stages on the picture, too: UniTune (arXiv 2210.09477) and Imagic (arXiv 2210.09276, 3.2).

A stage is tuned on what it will see: the noisy picture, beside the result of what is before it, upsampled and noised to
a random noise level that the network is told, as in its own training. For the first stage that result is the decoded
latent, for the second one the first stage's picture of that. The inputs are never two noisy copies of the picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
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
from tuner_svc.super_resolver import SuperResolver
from tuner_svc.trainable import trainable
from tuner_svc.tuning_config import TuningConfig
from unitune.base_model import SuperResolutionSpec
from unitune.diffusion.guidance import classifier_free
from unitune.super_resolution import enlarge

MAX_NOISE_LEVEL = 250  # of the noise on the small picture, as in stickerbook's training; Imagen's are up to 300


@dataclass(frozen=True)
class Pair:
    """The picture, and the upsampled small one, in blocks, (1, channels, h, w)."""

    large: Tensor
    low: Tensor

    def crop(self, stage: SuperResolutionSpec, generator: torch.Generator) -> "Pair":
        """At a random place, as large as the pictures that the stage enlarges."""
        starts, sides = [], []
        for length, image_side in zip(self.large.shape[2:], stage.image_side, strict=True):
            side = min(length, max(image_side // stage.block // stage.step, 1) * stage.step)
            starts.append(int(torch.randint(length - side + 1, (1,), generator=generator)))
            sides.append(side)
        (top, left), (rows, columns) = starts, sides
        return Pair(*(part[..., top : top + rows, left : left + columns] for part in (self.large, self.low)))


@torch.no_grad()
def pair_of(stage: SuperResolutionSpec, image: Tensor, small: Tensor) -> Pair:
    """From the picture at the size that the stage makes, (1, 3, height, width) in [-1, 1], and the small one."""
    low = interpolate(small.clamp(-1, 1), image.shape[-2:], mode="bilinear", align_corners=False)
    return Pair(pixel_unshuffle(image, stage.block), pixel_unshuffle(low, stage.block))


def tune_stages(
    model: BaseModel,
    pictures: Mapping[str, Tensor],
    latent: Tensor,
    context: Tensor,
    config: TuningConfig,
    tracker: ProgressTracker,
    optimizer_of: Callable[[list[Tensor], float], Adafactor | Optimizer],
) -> dict[str, dict[str, Tensor]]:
    """The changed tensors by name, of each stage that has a picture of its size, under one text embedding, (1, tokens,
    width)."""
    with torch.no_grad():
        small = model.image_decoder(latent)
    tuned: dict[str, dict[str, Tensor]] = {}
    for resolver in model.super_resolution:
        name = resolver.spec.name
        if name in pictures:
            pair = pair_of(resolver.spec, pictures[name], small)
            tuned[name] = tune_stage(model, resolver, pair, context, config, tracker, optimizer_of)
        if len(tuned) == len(pictures):
            break
        small = enlarged_by(resolver, small, context, tuned.get(name, {}), config.seed)
    return tuned


def tune_stage(
    model: BaseModel,
    resolver: SuperResolver,
    pair: Pair,
    context: Tensor,
    config: TuningConfig,
    tracker: ProgressTracker,
    optimizer_of: Callable[[list[Tensor], float], Adafactor | Optimizer],
) -> dict[str, Tensor]:
    """The changed tensors by name, after the stage's updates. A stage of convolutions has no attention that a mode
    could choose, so that all its tensors change, and sees another crop of the picture in every update."""
    stage = resolver.spec
    generator = torch.Generator().manual_seed(config.seed)
    chosen = trainable(resolver.unet, "full" if stage.is_local else config.mode, generator)
    parameters = chosen.parameters()
    # A stage has no warm start, whose updates are larger.
    learning_rate = model.preset.learning_rate if config.warm_start else config.learning_rate
    optimizer = optimizer_of(parameters, learning_rate)
    noising = Noising(stage.schedule, model.device)
    state = StageState(parameters, optimizer, [generator])
    for _ in tracker.updates(config.stage_updates(stage.name), learning_rate, state=state):
        seen = pair.crop(stage, generator) if stage.is_local else pair
        draws = draw(config.batch, seen.large, noising.num_timesteps, generator)
        shown = draw(config.batch, seen.low, noising.num_timesteps, generator)
        noise_levels = (
            MAX_NOISE_LEVEL * shown.timesteps.square() // noising.num_timesteps**2
        )  # half of them in the lowest quarter
        shown = Draws(noise_levels, shown.noise)
        noisy = noising.noised(seen.large, draws)
        if stage.is_preconditioned:
            noisy = noising.signal(draws) * noisy
        sample = torch.cat([noisy, noising.noised(seen.low, shown)], dim=1)
        timesteps = torch.stack([draws.timesteps, shown.timesteps], dim=1)
        arguments = (sample, timesteps, context.expand(config.batch, -1, -1))
        weights = {f"unet.{name}": tensor for name, tensor in chosen.replacements().items()}
        with mixed_precision(model.device):
            output = functional_call(resolver, weights, arguments).float()
        if stage.is_preconditioned:
            output = seen.low + output
        loss = mse_loss(output, noising.target(seen.large, draws))
        tracker.record(loss)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in chosen.weights().items()}


@torch.no_grad()
def enlarged_by(
    resolver: SuperResolver, small: Tensor, context: Tensor, tensors: Mapping[str, Tensor], seed: int
) -> Tensor:
    """The picture (1, 3, h, w) as an edit enlarges it by this stage at its defaults, with `tensors` in place of its
    own."""
    weights = {f"unet.{name}": tensor for name, tensor in tensors.items()}

    def run(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        arguments = tuple(torch.from_numpy(array).to(small.device) for array in (latents, timesteps, contexts))
        answer: np.ndarray = functional_call(resolver, weights, arguments).float().cpu().numpy()
        return answer

    text = context[0].float().cpu().numpy()
    terms = classifier_free(resolver.spec.guidance_scale, text, np.zeros_like(text))
    return torch.from_numpy(enlarge(resolver.spec, run, terms, small.cpu().numpy(), seed)).to(small.device)
