"""Runs a method: from pictures and a config to Tuned. The loops are in tuner_svc.methods."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import Checkpoints
from tuner_svc.methods import METHODS, Tuned
from tuner_svc.progress_tracker import ProgressTracker, UpdateProgress
from tuner_svc.super_resolution import pair_of, tune_super_resolution
from tuner_svc.tuning_config import TuningConfig
from unitune.choices import MOST_IMAGES
from unitune.errors import InvalidField
from unitune.tuning_check import TunedModel


def tune(
    model: BaseModel,
    images: np.ndarray,
    config: TuningConfig,
    *,
    large: np.ndarray | None = None,
    on_progress: Callable[[UpdateProgress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
) -> Tuned:
    """Tune on model images, float32 (n, 3, height, width) in [-1, 1]; n is 1 except for DreamBooth. The base model
    stays as it is. `large` is the picture at super-resolution's size, as a model image, for a config that tunes that.

    The same arguments give the same tensors on the same machine (on a GPU as far as tuner_svc.update_graph's
    `repeatable_sums` goes). `cancelled` is read before every update,
    `on_progress` is called at most five times a second, both on this thread. With `checkpoints` it goes on from the one
    that they have, and ends with the same bits on a CPU. Raises Cancelled (TUNING_CANCELLED),
    Internal (TUNING_DIVERGED) naming the update whose loss was not finite, InvalidField for what `check` refuses and
    for too many pictures, and ValueError for an unknown mode.
    """
    check(model, config)
    most = MOST_IMAGES.get(config.method, 1)
    if not 1 <= len(images) <= most:
        raise InvalidField("images", f"{len(images)} pictures", f"{config.method} takes 1 to {most}")
    method = METHODS[config.method]
    tracker = ProgressTracker(total_updates(config), on_progress, cancelled, checkpoints)
    latent = model.encode_image(images)
    tracker.refuse_cancelled()
    tuned = method.tune(model, latent, config, tracker)
    if config.super_resolution_updates > 0 and method.super_resolution is not None:
        if large is None:
            raise ValueError("the config tunes super-resolution, but there is no picture of its size")
        tuned = replace(tuned, losses=list(tuned.losses))  # the tracker continues its own list
        pair = pair_of(model, torch.from_numpy(large).to(model.device), latent)
        context = model.encode_prompt(method.super_resolution.text(config))
        tensors = tune_super_resolution(model, pair, context, config, tracker, method.super_resolution.optimizer)
        tuned = replace(tuned, super_resolution=tensors)
    tracker.refuse_infinite([*tuned.tensors.values(), *tuned.extras.values(), *tuned.super_resolution.values()])
    return tuned


def total_updates(config: TuningConfig) -> int:
    """The updates of all stages together."""
    return METHODS[config.method].total(config) + config.super_resolution_updates


def check(model: BaseModel, config: TuningConfig) -> list[str]:
    """Warnings of what the text encoder does not read of the config's texts. Raises InvalidField for settings that do
    not fit the base model."""
    steps, has_super_resolution = model.schedule.num_train_timesteps, model.super_resolution is not None
    tuned = TunedModel(model.reader, model.preset, steps, has_super_resolution, model.is_inpainting)
    return tuned.check(config)


__all__ = ["Tuned", "UpdateProgress", "check", "total_updates", "tune"]
