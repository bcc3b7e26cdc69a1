"""Imagic (arXiv 2210.09276), section 3.2: first the text's embedding is moved to the picture, then the denoiser.

One tuning per picture and text. At sampling the two embeddings are mixed (sampler_svc.conditioning).
"""

import torch
from torch import Tensor
from torch.optim import Adam

from tuner_svc.base_model import BaseModel
from tuner_svc.course import Course
from tuner_svc.denoising import Noising, denoising_loss, draw, half_precision
from tuner_svc.methods.tuned import Tuned
from tuner_svc.trainable import trainable
from tuner_svc.tuning_config import TuningConfig


def tune(model: BaseModel, latent: Tensor, config: TuningConfig, course: Course) -> Tuned:
    """Find e_opt near the text's own embedding e_tgt, then tune the denoiser at e_opt, which stays as it is."""
    generator = torch.Generator().manual_seed(config.seed)
    noising = Noising(model.schedule, model.device)

    target = model.encode_prompt(config.prompt)
    embedding = target.clone().requires_grad_()
    optimizer = Adam([embedding], config.embedding_learning_rate)
    for _ in course.updates(config.embedding_updates, config.embedding_learning_rate):
        draws = draw(config.batch, latent, noising.num_timesteps, generator)
        with half_precision(model.device):
            loss = denoising_loss(model, {}, latent, embedding, noising, draws)
        course.note(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimized = embedding.detach()
    chosen = trainable(model.denoiser.unet, config.mode, generator)
    optimizer = Adam(chosen.parameters(), config.learning_rate)
    for _ in course.updates(config.updates, config.learning_rate):
        draws = draw(config.batch, latent, noising.num_timesteps, generator)
        with half_precision(model.device):
            loss = denoising_loss(model, chosen.weights(), latent, optimized, noising, draws)
        course.note(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    tensors = {name: tensor.detach() for name, tensor in chosen.weights().items()}
    extras = {"prompt": target[0], "optimized": optimized[0]}
    return Tuned(tensors, course.losses, chosen.factors(), extras)


def total(config: TuningConfig) -> int:
    """The updates of both stages."""
    return config.embedding_updates + config.updates
