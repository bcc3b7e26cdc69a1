"""Runs a method: from pictures and a config to Tuned. The loops are in tuner_svc.methods."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import Checkpoints
from tuner_svc.methods import METHODS, Tuned
from tuner_svc.progress_tracker import ProgressTracker, UpdateProgress
from tuner_svc.super_resolution import tune_stages
from tuner_svc.tuning_config import TuningConfig
from unitune.base_model import SUPER_RESOLUTION_STAGES, SuperResolutionSpec
from unitune.choices import MOST_IMAGES
from unitune.errors import InvalidField
from unitune.tuning_check import NO_WARM_START, TunedModel


def tune(
    model: BaseModel,
    images: np.ndarray,
    config: TuningConfig,
    *,
    large: Mapping[str, np.ndarray] | None = None,
    on_progress: Callable[[UpdateProgress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
) -> Tuned:
    """Tune on model images, float32 (n, 3, height, width) in [-1, 1]; n is 1 except for DreamBooth. The base model
    stays as it is. `large` has the picture, as a model image, at the size of each super-resolution stage that is tuned.

    The same arguments give the same tensors on the same machine (on a GPU as far as tuner_svc.update_graph's
    `repeatable_sums` goes). `cancelled` is read before every update,
    `on_progress` is called at most five times a second, both on this thread. With `checkpoints` it goes on from the one
    that they have, and ends with the same bits on a CPU. Raises Cancelled (TUNING_CANCELLED),
    Internal (TUNING_DIVERGED) naming the update whose loss was not finite, InvalidField for what `check` refuses and
    for too many pictures, and ValueError for an unknown mode.
    """
    check(model, config)
    wanted, large = [stage.name for stage in tuned_stages(model, config)], large or {}
    if missing := set(wanted) - large.keys():
        raise ValueError(f"the config tunes {min(missing)}, but there is no picture of its size")
    most = MOST_IMAGES.get(config.method, 1)
    if not 1 <= len(images) <= most:
        raise InvalidField("images", f"{len(images)} pictures", f"{config.method} takes 1 to {most}")
    method = METHODS[config.method]
    tracker = ProgressTracker(total_updates(config), on_progress, cancelled, checkpoints)
    latent = model.encode_image(images)
    tracker.refuse_cancelled()
    tuned = method.tune(model, latent, config, tracker)
    if wanted and method.super_resolution is not None:
        tuned = replace(tuned, losses=list(tuned.losses))  # the tracker continues its own list
        context = model.encode_prompt(method.super_resolution.text(config))
        pictures = {name: torch.from_numpy(large[name]).to(model.device) for name in wanted}
        stages = tune_stages(model, pictures, latent, context, config, tracker, method.super_resolution.optimizer)
        tuned = replace(tuned, super_resolution=stages)
    of_stages = [tensor for tensors in tuned.super_resolution.values() for tensor in tensors.values()]
    tracker.refuse_infinite([*tuned.tensors.values(), *tuned.extras.values(), *of_stages])
    return tuned


def tuned_stages(model: BaseModel, config: TuningConfig) -> list[SuperResolutionSpec]:
    """The super-resolution stages that a config tunes."""
    if METHODS[config.method].super_resolution is None:
        return []
    return [stage.spec for stage in model.super_resolution if config.stage_updates(stage.spec.name) > 0]


def total_updates(config: TuningConfig) -> int:
    """The updates of all stages together."""
    of_stages = sum(config.stage_updates(stage) for stage in SUPER_RESOLUTION_STAGES)
    return METHODS[config.method].total(config) + of_stages


def check(model: BaseModel, config: TuningConfig) -> list[str]:
    """Warnings of what the text encoder does not read of the config's texts. Raises InvalidField for settings that do
    not fit the base model."""
    stages = [stage.spec.name for stage in model.super_resolution]
    steps = model.schedule.num_train_timesteps
    if config.warm_start:
        if model.warm_start is None:
            raise InvalidField("config.warm_start", True, NO_WARM_START)
        model.warm_start.check(config)
    tuned = TunedModel(model.reader, model.preset, steps, stages, model.is_inpainting)
    return tuned.check(config)


__all__ = ["Tuned", "UpdateProgress", "check", "total_updates", "tune", "tuned_stages"]
