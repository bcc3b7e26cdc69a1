"""The hot path: fine-tune the denoiser on one picture and the rare tokens (UniTune, arXiv 2210.09477).

One picture, one prompt that is the rare tokens alone, a few updates, the text encoder and the autoencoder frozen.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import mse_loss

from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel
from tuner_svc.trainable import trainable
from tuner_svc.tuning_config import TuningConfig
from unitune.base_model import NoiseSchedule
from unitune.diffusion.schedule import Schedule
from unitune.errors import Cancelled, Internal
from unitune.prompts import with_rare_tokens

PROGRESS_S = 0.2  # between two reports, at least
MEAN_OF_LOSSES = 10  # updates; a single one says little, its timesteps are random


@dataclass(frozen=True)
class Progress:
    """How far a tuning is. `loss` is the mean of the last losses, `left_s` an estimate."""

    update: int
    total: int
    loss: float
    left_s: float


@dataclass(frozen=True)
class Tuned:
    """The denoiser's tensors that a tuning changed, dense fp32, by name; and the loss of every update.

    `factors` are (up, down) of a LoRA tuning, whose product is the change of the tensor of that name.
    """

    tensors: dict[str, Tensor]
    losses: list[float]
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Draws:
    """What is random in one update: timesteps int64 (batch,), uniform, and noise (batch, channels, h, w), normal."""

    timesteps: Tensor
    noise: Tensor


def tune(
    model: BaseModel,
    image: np.ndarray,
    config: TuningConfig,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Tune on a model image, float32 (1, 3, height, width) in [-1, 1]. The base model stays as it is.

    The same arguments give the same tensors on the same machine. `cancelled` is read before every update,
    `on_progress` is called at most five times a second, both on this thread. Raises Cancelled (TUNING_CANCELLED),
    Internal (TUNING_DIVERGED) naming the update whose loss was not finite, and ValueError for an unknown mode.
    """
    generator = torch.Generator().manual_seed(config.seed)  # on the CPU, so that every device sees the same draws
    chosen = trainable(model.denoiser.unet, config.mode, generator)
    optimizer = Adafactor(chosen.parameters(), config.learning_rate)
    noising = Noising(model.schedule, model.device)
    latent = model.encode_image(image)
    context = model.encode_prompt(with_rare_tokens(config.rare_tokens, ""))
    report = _Reporter(config.updates, on_progress)

    for update in range(1, config.updates + 1):
        if cancelled():
            raise Cancelled("the tuning was cancelled", reason="TUNING_CANCELLED")
        draws = draw(config.batch, latent, noising.num_timesteps, generator)
        with _half_precision(model.device):
            loss = denoising_loss(model, chosen.weights(), latent, context, noising, draws)
        if not math.isfinite(loss.item()):
            raise _diverged(update)
        loss.backward()
        optimizer.step()
        report(update, loss.item())

    tensors = {name: tensor.detach() for name, tensor in chosen.weights().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise _diverged(config.updates)  # no loss comes after the last update to show it
    return Tuned(tensors, report.losses, chosen.factors())


def denoising_loss(
    model: BaseModel, weights: dict[str, Tensor], latent: Tensor, context: Tensor, noising: "Noising", draws: Draws
) -> Tensor:
    """Mean square error of the denoiser, with `weights` in place of its own, at the drawn timesteps and noise."""
    batch = len(draws.timesteps)
    noised = noising.noised(latent, draws)
    arguments = (noised, draws.timesteps, context.expand(batch, -1, -1))
    prediction = functional_call(model.denoiser.unet, weights, arguments).sample
    return mse_loss(prediction.float(), noising.target(latent, draws))


def draw(batch: int, latent: Tensor, num_timesteps: int, generator: torch.Generator) -> Draws:
    """The next draws of the generator, on the latent's device."""
    timesteps = torch.randint(0, num_timesteps, (batch,), generator=generator)
    noise = torch.randn((batch, *latent.shape[1:]), generator=generator)
    return Draws(timesteps.to(latent.device), noise.to(latent.device))


class Noising:
    """x_t = a_t x + s_t e, and what the denoiser is trained to say of it: e, or v = a_t e - s_t x."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device) -> None:
        levels = torch.from_numpy(Schedule(**vars(schedule)).alphas_cumprod)
        self._signal = levels.sqrt().float().to(device)
        self._noise = (1 - levels).sqrt().float().to(device)
        self._predicts_v = schedule.prediction_type == "v_prediction"
        self.num_timesteps = len(levels)

    def noised(self, latent: Tensor, draws: Draws) -> Tensor:
        """The latent at the drawn timesteps, (batch, channels, h, w)."""
        signal, noise = self._at(draws.timesteps)
        return signal * latent + noise * draws.noise

    def target(self, latent: Tensor, draws: Draws) -> Tensor:
        """Epsilon or v."""
        signal, noise = self._at(draws.timesteps)
        return signal * draws.noise - noise * latent if self._predicts_v else draws.noise

    def _at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self._signal[timesteps, None, None, None], self._noise[timesteps, None, None, None]


class _Reporter:
    """Keeps the losses and tells of them: after the first update, then whenever PROGRESS_S have passed."""

    def __init__(self, total: int, tell: Callable[[Progress], None]) -> None:
        self.losses: list[float] = []
        self._total = total
        self._tell = tell
        self._last: deque[float] = deque(maxlen=MEAN_OF_LOSSES)
        self._started_s = time.monotonic()
        self._told_s = -math.inf

    def __call__(self, update: int, loss: float) -> None:
        self.losses.append(loss)
        self._last.append(loss)
        now_s = time.monotonic()
        if now_s - self._told_s < PROGRESS_S:
            return
        self._told_s = now_s
        left_s = (now_s - self._started_s) / update * (self._total - update)
        self._tell(Progress(update, self._total, sum(self._last) / len(self._last), left_s))


def _diverged(update: int) -> Internal:
    message = f"the tuning diverged at update {update}: its loss was not finite; lower learning_rate"
    return Internal(message, reason="TUNING_DIVERGED", metadata={"update": str(update)})


def _half_precision(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 in the denoiser on a GPU; the weights, the loss and the optimizer stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
