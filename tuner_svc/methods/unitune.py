"""UniTune (arXiv 2210.09477): the hot path.

One picture, one prompt of only the rare tokens, a few updates; text encoder and autoencoder are frozen. From a warm
start fewer updates are needed (tuner_svc.warm_start): it begins at other weights, and ends with the mean of the last.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tuner_svc.adafactor import Adafactor
from tuner_svc.arrangement import Update
from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import StageState
from tuner_svc.denoising import Draws, Noising, denoising_loss, draw, mixed_precision
from tuner_svc.methods.tuned import Tuned
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.trainable import Trainable, trainable
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.update_graph import UpdateGraph
from tuner_svc.weight_average import WeightAverage
from unitune.prompts import with_rare_tokens


def tune(model: BaseModel, latent: Tensor, config: TuningConfig, tracker: ProgressTracker) -> Tuned:
    """Bind the rare tokens to the picture, in the denoiser's weights."""
    chosen, _ = bound(model, latent, config, tracker)
    tensors = {name: tensor.detach() for name, tensor in chosen.weights().items()}
    return Tuned(tensors, tracker.losses, chosen.factors())


def bound(
    model: BaseModel, latent: Tensor, config: TuningConfig, tracker: ProgressTracker
) -> tuple[Trainable, Adafactor]:
    """The weights after the updates, and the optimizer that made these."""
    generator = torch.Generator().manual_seed(config.seed)  # on the CPU, so that every device sees the same draws
    chosen = trainable(model.denoiser.unet, config.mode, generator)
    context = model.encode_prompt(with_rare_tokens(config.rare_tokens, ""))
    parameters = chosen.parameters()
    optimizer = Adafactor(parameters, config.learning_rate)
    if config.warm_start and model.warm_start is not None:
        model.warm_start.begin(chosen.weights(), optimizer)
    average = WeightAverage(parameters, config.updates) if config.warm_start else None
    update = update_of(
        model, chosen, latent, context, config.learning_rate, config.mode, tracker.warn, optimizer=optimizer
    )

    run = UpdateGraph(update, parameters, model.device)
    state = StageState([*parameters, *(average.tensors if average else ())], optimizer, [generator])
    for index in tracker.updates(config.updates, config.learning_rate, config.stop_loss_ratio, state):
        draws = draw(config.batch, latent, model.schedule.num_train_timesteps, generator, stratified=True)
        tracker.record(run(draws.timesteps, draws.noise))
        if average is not None:
            average.add(index)
    if average is not None:
        average.put()
    return chosen, optimizer


def update_of(
    model: BaseModel,
    chosen: Trainable,
    latent: Tensor,
    context: Tensor,
    learning_rate: float,
    mode: str = "full",
    warn: Callable[[str], None] = lambda text: None,
    *,
    optimizer: Adafactor | None = None,
) -> Update:
    """A function that makes one update, from drawn timesteps and noise, and returns its loss."""
    noising = Noising(model.schedule, model.device)

    def loss(timesteps: Tensor, noise: Tensor) -> Tensor:
        with mixed_precision(model.device):
            return denoising_loss(model, chosen.replacements(), latent, context, noising, Draws(timesteps, noise))

    optimizer = optimizer or Adafactor(chosen.parameters(), learning_rate)
    return Update(model, loss, optimizer, chosen.parameters(), ("unitune", mode), warn)
