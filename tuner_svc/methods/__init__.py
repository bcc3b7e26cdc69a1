"""The methods that tune, one file each, and the table of them. A new one is a new file and a line here.

Every file has a `tune`: one visible loop over the parts of tuner_svc.denoising, from latents to Tuned.
docs/guides/add_a_method.md lists what else a method needs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Adam, Optimizer

from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel
from tuner_svc.methods import dreambooth, imagic, null_text, textual_inversion, unitune
from tuner_svc.methods.tuned import Tuned
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.tuning_config import TuningConfig
from unitune.choices import NULL_TEXT


def _just_updates(config: TuningConfig) -> int:
    return config.updates


@dataclass(frozen=True)
class SuperResolutionTuning:
    """How a method tunes super-resolution: with which text and which optimizer."""

    text: Callable[[TuningConfig], str]
    optimizer: Callable[[list[Tensor], float], Adafactor | Optimizer]


@dataclass(frozen=True)
class Method:
    """One method. `tune` takes the pictures' latents, (n, channels, h, w)."""

    tune: Callable[[BaseModel, Tensor, TuningConfig, ProgressTracker], Tuned]
    total: Callable[[TuningConfig], int] = _just_updates  # optimizer updates of all its stages
    super_resolution: SuperResolutionTuning | None = None  # where the method tunes that, too


METHODS: Mapping[str, Method] = {
    "unitune": Method(
        unitune.tune, super_resolution=SuperResolutionTuning(lambda config: config.rare_tokens.strip(), Adafactor)
    ),
    "imagic": Method(
        imagic.tune, total=imagic.total, super_resolution=SuperResolutionTuning(lambda config: config.prompt, Adam)
    ),
    "dreambooth": Method(dreambooth.tune),
    "textual_inversion": Method(textual_inversion.tune),
    NULL_TEXT: Method(null_text.tune, total=null_text.total),
}

__all__ = ["METHODS", "Method", "Tuned"]
