"""Null-text inversion (arXiv 2211.09794), section 3.3: guidance that reproduces the picture.

The picture is inverted by DDIM under its base prompt, without guidance. The inverted latents are the pivots. A guided
run from the last one drifts away from them. So at every step the empty prompt's embedding is optimized until the guided
step ends at the next pivot. Nothing is random, and the model does not change.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import Adam

from tuner_svc.base_model import BaseModel
from tuner_svc.methods.tuned import Tuned
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.tuning_config import TuningConfig
from unitune.choices import BOUND_TO_NULL_TEXT
from unitune.diffusion.denoiser import predict
from unitune.diffusion.inversion import inverted
from unitune.diffusion.schedule import Latents, Schedule
from unitune.diffusion.solvers import SCHEDULERS, DenoisingRun, FirstOrder

ENOUGH, ENOUGH_PER_STEP = (
    1e-5,
    2e-5,
)  # the loss that ends a step's updates, and its growth per step, as in the authors' code


@dataclass(frozen=True)
class GuidedStep:
    """One step of the guided run, as a function of its null embedding."""

    model: BaseModel
    latents: Tensor  # before the step
    timestep: int
    prompt: Tensor  # the denoiser's output for the base prompt
    latents_factor: float  # DDIM's factors of latents and output
    output_factor: float
    guidance_scale: float

    def landing(self, null: Tensor) -> Tensor:
        """The latents after the step, differentiable in `null` (1, tokens, width)."""
        empty = predicted(self.model, self.latents, self.timestep, null)
        guided = self.guidance_scale * self.prompt + (1 - self.guidance_scale) * empty
        return self.latents_factor * self.latents + self.output_factor * guided


def tune(model: BaseModel, latent: Tensor, config: TuningConfig, tracker: ProgressTracker) -> Tuned:
    """Find the null embedding of each step, (steps, tokens, width), from the noisiest step down.

    Each starts from the one before, the first from the empty prompt's. So without updates all are the empty prompt's.
    """
    run = SCHEDULERS["ddim"].run(Schedule(**vars(model.schedule)), config.num_inference_steps)
    base_prompt, null = model.encode_prompt(config.base_prompt), model.encode_prompt("")
    latents, *pivots = inverted_latents(model, latent, base_prompt, run, tracker)
    nulls = []
    for index, ((timestep, level, next_level), pivot) in enumerate(zip(run, pivots, strict=True)):
        tracker.refuse_cancelled()
        with torch.no_grad():
            prompt = predicted(model, latents, timestep, base_prompt)
        factors = ddim_factors(level, next_level, model.schedule.prediction_type)
        step = GuidedStep(model, latents, timestep, prompt, *factors, config.guidance_scale)
        null = optimized(step, null, pivot, config, index, tracker)
        nulls.append(null)
        with torch.no_grad():
            latents = step.landing(null)
    bound_to = {name: getattr(config, name) for name in BOUND_TO_NULL_TEXT}
    return Tuned({}, tracker.losses, extras={"nulls": torch.cat(nulls)}, bound_to=bound_to)


def total(config: TuningConfig) -> int:
    """The updates of all steps; a step that is near enough to its pivot needs fewer."""
    return config.num_inference_steps * config.updates


def inverted_latents(
    model: BaseModel, latent: Tensor, base_prompt: Tensor, run: DenoisingRun, tracker: ProgressTracker
) -> list[Tensor]:
    """The inverted latents at every level of the run, from the noisiest, where an edit starts, to the picture's."""

    @torch.no_grad()
    def output(latents: Latents, timestep: int) -> Latents:
        tracker.refuse_cancelled()
        found: Latents = (
            predicted(model, torch.from_numpy(latents).to(model.device), timestep, base_prompt).cpu().numpy()
        )
        return found

    up = inverted(latent.cpu().numpy(), run, output, model.schedule.prediction_type)
    return [latent, *(torch.from_numpy(latents).to(model.device) for latents in up)][::-1]


def optimized(
    step: GuidedStep, null: Tensor, pivot: Tensor, config: TuningConfig, index: int, tracker: ProgressTracker
) -> Tensor:
    """Of all null embeddings during Adam's updates from `null`, the one whose step ends nearest to the pivot.

    The authors take the last one. With the nearest, more updates are never worse.
    """
    rate = config.learning_rate * (
        1 - index / (2 * config.num_inference_steps)
    )  # falls to a half over the steps, as the authors'
    moving = null.clone().requires_grad_()
    optimizer = Adam([moving], rate)
    nearest, least = null, math.inf
    for _ in tracker.updates(config.updates, rate):
        loss = mse_loss(step.landing(moving), pivot)
        tracker.record(loss)
        if loss.item() < least:
            nearest, least = moving.detach().clone(), loss.item()
        if least < ENOUGH + index * ENOUGH_PER_STEP:
            return nearest
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        is_nearer = mse_loss(step.landing(moving), pivot).item() < least
    return moving.detach() if is_nearer else nearest


def ddim_factors(level: float, next_level: float, prediction_type: str) -> tuple[float, float]:
    """A DDIM step's factors of the latents and of the denoiser's output: it is linear in both."""

    def stepped(latents: float, output: float) -> float:
        x, y = np.full(1, latents, dtype=np.float32), np.full(1, output, dtype=np.float32)
        return float(FirstOrder().step(x, predict(y, x, level, prediction_type), level, next_level)[0])

    return stepped(1, 0), stepped(0, 1)


def predicted(model: BaseModel, latents: Tensor, timestep: int, context: Tensor) -> Tensor:
    """The denoiser's output in full fp32: the sampler inverts the picture again, and must get the same latents."""
    timesteps = torch.tensor([timestep], device=model.device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return model.predicted(latents, timesteps, context)
