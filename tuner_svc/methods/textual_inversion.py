"""Textual Inversion (arXiv 2208.01618), section 3: it learns only new vectors for a placeholder.

They start from the embedding of an initial word. Text transformer, denoiser and all other rows of the embedding table
stay frozen. The picture is never mirrored, since it is the picture to be edited.
"""

import torch
from torch import Tensor
from torch.optim import Adam

from tuner_svc.arrangement import Update
from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import StageState
from tuner_svc.denoising import Draws, Noising, denoising_loss, draw, mixed_precision
from tuner_svc.methods.tuned import Tuned
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.tuning_config import TuningConfig
from unitune.prompts import ids_with_vectors

# Neutral sentences, as in the paper. A base model with a closed vocabulary gets only the placeholder.
TEMPLATES = ("a photo of {}", "a picture of {}", "a rendering of {}", "an image of {}", "{}")


def tune(model: BaseModel, latent: Tensor, config: TuningConfig, tracker: ProgressTracker) -> Tuned:
    """Optimize the placeholder's vectors until the frozen model reproduces the picture from them."""
    generator = torch.Generator().manual_seed(config.seed)
    noising = Noising(model.schedule, model.device)
    vectors = initial_vectors(model, config).requires_grad_()
    rate = effective_learning_rate(config)
    templates = TEMPLATES if not model.vocabulary else TEMPLATES[-1:]
    prompts = [placeholder_ids(model, template.format(config.rare_tokens), config) for template in templates]

    def loss(timesteps: Tensor, noise: Tensor, ids: Tensor) -> Tensor:
        with mixed_precision(model.device):
            context = model.text_encoder(ids[:1], vectors)  # all rows have the same ids
            return denoising_loss(model, {}, latent, context, noising, Draws(timesteps, noise))

    optimizer = Adam([vectors], rate)
    update = Update(model, loss, optimizer, [vectors], "vectors", tracker.warn)
    state = StageState([vectors], optimizer, [generator])
    for _ in tracker.updates(config.updates, rate, state=state):
        ids = prompts[int(torch.randint(0, len(prompts), (), generator=generator))]
        draws = draw(config.batch, latent, noising.num_timesteps, generator)
        found = update(draws.timesteps, draws.noise, ids.expand(config.batch, *ids.shape[1:]))
        tracker.record(found.detach())

    return Tuned({}, tracker.losses, extras={"vectors": vectors.detach()})


def initial_vectors(model: BaseModel, config: TuningConfig) -> Tensor:
    """(num_vectors, width): copies of the initial word's embedding."""
    token = _token(model, config.initial_word)
    assert token is not None  # unitune.tuning_check refuses others
    return model.text_encoder.vector_of(token).detach().clone().repeat(config.num_vectors, 1)


def placeholder_ids(model: BaseModel, prompt: str, config: TuningConfig) -> Tensor:
    """Token ids (1, tokens) of a prompt, or (1, 2, tokens), with the ids of num_vectors vectors for the placeholder."""
    empty = model.input_ids([""])
    ids = [
        ids_with_vectors(prompt, config.rare_tokens, config.num_vectors, model.token_ids, each)
        for each in empty.reshape(-1, model.context_tokens).tolist()
    ]
    return torch.tensor(ids, device=model.device).reshape(empty.shape)


def effective_learning_rate(config: TuningConfig) -> float:
    """The learning rate; with scale_learning_rate it is multiplied by the batch (one device, no accumulation)."""
    return config.learning_rate * (config.batch if config.scale_learning_rate else 1)


def _token(model: BaseModel, word: str) -> int | None:
    """The id of a word that is one token of the vocabulary; None for any other."""
    ids = model.token_ids(word.strip())
    return ids[0] if len(ids) == 1 and ids[0] not in model.tokenizer.all_special_ids else None
