"""DreamBooth (arXiv 2208.12242), section 3: rare tokens are bound to a subject within its class.

The prompt is "a [V] [class noun]". Pictures of the class that the frozen model itself made, under "a [class noun]",
keep the class what it was: the prior-preservation loss.
"""

import torch
from torch import Tensor
from torch.optim import Adam

from tuner_svc.base_model import BaseModel
from tuner_svc.class_images import class_latents, class_prompt
from tuner_svc.course import Course
from tuner_svc.denoising import Noising, denoising_loss, draw, half_precision
from tuner_svc.methods.tuned import Tuned
from tuner_svc.trainable import trainable
from tuner_svc.tuning_config import TuningConfig

CLASS_SEEDS = 2**31  # added to a seed it gives other draws: torch's generator on a CPU reads the lower 32 bits alone


def tune(model: BaseModel, latents: Tensor, config: TuningConfig, course: Course) -> Tuned:
    """Tune on the subject's pictures in turn, and on as many of the class."""
    generator = torch.Generator().manual_seed(config.seed)
    # Draws of its own, so that without a prior it is plain tuning, bit for bit.
    class_generator = torch.Generator().manual_seed(config.seed + CLASS_SEEDS)
    noising = Noising(model.schedule, model.device)
    chosen = trainable(model.denoiser.unet, config.mode, generator)
    optimizer = Adam(chosen.parameters(), config.learning_rate)
    context = model.encode_prompt(instance_prompt(config))
    class_context = model.encode_prompt(class_prompt(config.class_noun))
    has_prior = config.prior_weight > 0 and config.num_class_images > 0 and config.updates > 0
    if has_prior:
        class_pictures = class_latents(model, config.class_noun, config.num_class_images, course.refuse_cancelled)

    for update in course.updates(config.updates, config.learning_rate):
        draws = draw(config.batch, latents, noising.num_timesteps, generator)
        with half_precision(model.device):
            loss = denoising_loss(
                model, chosen.weights(), in_turn(latents, update, config.batch), context, noising, draws
            )
            if has_prior:
                draws = draw(config.batch, latents, noising.num_timesteps, class_generator)
                of_class = in_turn(class_pictures, update, config.batch)
                prior_loss = denoising_loss(model, chosen.weights(), of_class, class_context, noising, draws)
                loss = loss + config.prior_weight * prior_loss
        course.note(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    tensors = {name: tensor.detach() for name, tensor in chosen.weights().items()}
    return Tuned(tensors, course.losses, chosen.factors())


def instance_prompt(config: TuningConfig) -> str:
    """What the subject's pictures are called."""
    return f"a {config.rare_tokens.strip()} {config.class_noun.strip()}"


def in_turn(latents: Tensor, update: int, batch: int) -> Tensor:
    """The pictures of an update, (batch, channels, h, w): one after the other, over and over."""
    return latents[torch.arange(update * batch, (update + 1) * batch) % len(latents)]
