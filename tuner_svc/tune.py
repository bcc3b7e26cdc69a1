"""The way into every method: pictures and a config in, what the method made out. The loops are in tuner_svc.methods."""

from collections.abc import Callable

import numpy as np

from tuner_svc.base_model import BaseModel
from tuner_svc.course import Course, Progress
from tuner_svc.methods import METHODS, Tuned
from tuner_svc.tuning_config import TuningConfig
from unitune.choices import MOST_IMAGES
from unitune.errors import InvalidField


def tune(
    model: BaseModel,
    images: np.ndarray,
    config: TuningConfig,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Tune on model images, float32 (n, 3, height, width) in [-1, 1]; n is 1 except for DreamBooth. The base model
    stays as it is.

    The same arguments give the same tensors on the same machine. `cancelled` is read before every update,
    `on_progress` is called at most five times a second, both on this thread. Raises Cancelled (TUNING_CANCELLED),
    Internal (TUNING_DIVERGED) naming the update whose loss was not finite, InvalidField for what `check` refuses and
    for too many pictures, and ValueError for an unknown mode.
    """
    check(model, config)
    most = MOST_IMAGES.get(config.method, 1)
    if not 1 <= len(images) <= most:
        raise InvalidField("images", f"{len(images)} pictures", f"{config.method} takes 1 to {most}")
    method = METHODS[config.method]
    course = Course(method.total(config), on_progress, cancelled)
    tuned = method.tune(model, model.encode_image(images), config, course)
    course.refuse_infinite([*tuned.tensors.values(), *tuned.extras.values()])
    return tuned


def check(model: BaseModel, config: TuningConfig) -> None:
    """Raises InvalidField for what the base model's tokenizer shows to be wrong."""
    METHODS[config.method].check(model, config)


__all__ = ["Progress", "Tuned", "check", "tune"]
