"""DreamBooth (arXiv 2208.12242), section 3: rare tokens are bound to a subject within its class.

The prompt is "a [V] [class noun]". The frozen model samples pictures of "a [class noun]". A loss on them keeps the
class as it was: the prior-preservation loss.
"""

import torch
from torch import Tensor

from tuner_svc.arrangement import Update
from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import StageState
from tuner_svc.class_images import class_latents, class_prompt
from tuner_svc.denoising import Draws, Noising, denoising_loss, draw, mixed_precision
from tuner_svc.methods.tuned import Tuned
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.trainable import trainable
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.update_graph import UpdateGraph, adam

CLASS_SEEDS = 2**31  # added to a seed for other draws; torch's generator on a CPU reads only the lower 32 bits


def tune(model: BaseModel, latents: Tensor, config: TuningConfig, tracker: ProgressTracker) -> Tuned:
    """Tune on the subject's pictures in turn, and on equally many of the class."""
    generator = torch.Generator().manual_seed(config.seed)
    # A generator of its own, so that without a prior it is plain tuning, bit for bit.
    class_generator = torch.Generator().manual_seed(config.seed + CLASS_SEEDS)
    noising = Noising(model.schedule, model.device)
    chosen = trainable(model.denoiser.unet, config.mode, generator)
    context = model.encode_prompt(instance_prompt(config))
    class_context = model.encode_prompt(class_prompt(config.class_noun))
    has_prior = config.prior_weight > 0 and config.num_class_images > 0 and config.updates > 0
    if has_prior:
        side = latents.shape[2], latents.shape[3]
        class_pictures = class_latents(
            model, config.class_noun, config.num_class_images, tracker.refuse_cancelled, side
        )

    def loss(pictures: Tensor, timesteps: Tensor, noise: Tensor, *of_class: Tensor) -> Tensor:
        weights = chosen.replacements()
        with mixed_precision(model.device):
            found = denoising_loss(model, weights, pictures, context, noising, Draws(timesteps, noise))
            if has_prior:
                shown, *class_draws = of_class
                prior_loss = denoising_loss(model, weights, shown, class_context, noising, Draws(*class_draws))
                found = found + config.prior_weight * prior_loss
        return found

    optimizer, kind = adam(chosen.parameters(), config.learning_rate), ("dreambooth", config.mode, has_prior)
    update = Update(model, loss, optimizer, chosen.parameters(), kind, tracker.warn)
    run = UpdateGraph(update, chosen.parameters(), model.device)
    state = StageState(chosen.parameters(), optimizer, [generator, class_generator])
    for index in tracker.updates(config.updates, config.learning_rate, state=state):
        draws = draw(config.batch, latents, noising.num_timesteps, generator)
        inputs = [pictures_of_update(latents, index, config.batch), draws.timesteps, draws.noise]
        if has_prior:
            draws = draw(config.batch, latents, noising.num_timesteps, class_generator)
            inputs += [pictures_of_update(class_pictures, index, config.batch), draws.timesteps, draws.noise]
        tracker.record(run(*inputs))

    tensors = {name: tensor.detach() for name, tensor in chosen.weights().items()}
    return Tuned(tensors, tracker.losses, chosen.factors())


def instance_prompt(config: TuningConfig) -> str:
    """The prompt of the subject's pictures."""
    return f"a {config.rare_tokens.strip()} {config.class_noun.strip()}"


def pictures_of_update(latents: Tensor, update: int, batch: int) -> Tensor:
    """The pictures of an update, (batch, channels, h, w), in turn."""
    return latents[torch.arange(update * batch, (update + 1) * batch) % len(latents)]
