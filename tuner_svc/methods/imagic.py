"""Imagic (arXiv 2210.09276), section 3.2: first the text's embedding is optimized for the picture, then the denoiser.

One tuning per picture and text. At sampling the two embeddings are mixed (sampler_svc.sampling.conditioning).
"""

import torch
from torch import Tensor

from tuner_svc.arrangement import Update
from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import StageState
from tuner_svc.denoising import Draws, Noising, denoising_loss, draw, mixed_precision
from tuner_svc.methods.tuned import Tuned
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.trainable import trainable
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.update_graph import UpdateGraph, adam


def tune(model: BaseModel, latent: Tensor, config: TuningConfig, tracker: ProgressTracker) -> Tuned:
    """Find e_opt near the text's own embedding e_tgt, then tune the denoiser at the fixed e_opt."""
    generator = torch.Generator().manual_seed(config.seed)
    noising = Noising(model.schedule, model.device)

    target = model.encode_prompt(config.prompt)
    embedding = target.clone().requires_grad_()

    def embedding_loss(timesteps: Tensor, noise: Tensor) -> Tensor:
        with mixed_precision(model.device):
            return denoising_loss(model, {}, latent, embedding, noising, Draws(timesteps, noise))

    optimizer = adam([embedding], config.embedding_learning_rate)
    update = Update(model, embedding_loss, optimizer, [embedding], "an embedding", tracker.warn)
    run = UpdateGraph(update, [embedding], model.device)
    state = StageState([embedding], optimizer, [generator])
    for _ in tracker.updates(config.embedding_updates, config.embedding_learning_rate, state=state):
        draws = draw(config.batch, latent, noising.num_timesteps, generator)
        tracker.record(run(draws.timesteps, draws.noise))

    optimized = embedding.detach()
    chosen = trainable(model.denoiser.unet, config.mode, generator)

    def denoiser_loss(timesteps: Tensor, noise: Tensor) -> Tensor:
        with mixed_precision(model.device):
            return denoising_loss(model, chosen.replacements(), latent, optimized, noising, Draws(timesteps, noise))

    optimizer = adam(chosen.parameters(), config.learning_rate)
    update = Update(model, denoiser_loss, optimizer, chosen.parameters(), ("imagic", config.mode), tracker.warn)
    run = UpdateGraph(update, chosen.parameters(), model.device)
    state = StageState(chosen.parameters(), optimizer, [generator])
    for _ in tracker.updates(config.updates, config.learning_rate, state=state):
        draws = draw(config.batch, latent, noising.num_timesteps, generator)
        tracker.record(run(draws.timesteps, draws.noise))

    tensors = {name: tensor.detach() for name, tensor in chosen.weights().items()}
    extras = {"prompt": target[0], "optimized": optimized[0]}
    return Tuned(tensors, tracker.losses, chosen.factors(), extras)


def total(config: TuningConfig) -> int:
    """The updates of both stages."""
    return config.embedding_updates + config.updates
