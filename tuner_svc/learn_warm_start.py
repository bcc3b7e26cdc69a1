"""Learns the warm start of a base model from pictures: Reptile (Nichol et al., 2018, arXiv 1803.02999).

    python -m tuner_svc.learn_warm_start --base-model FOLDER --out OUT PICTURE ...

In each round some pictures are tuned on, each from where the start is now, as a tuning of a user will be. Then the
start moves a part of the way towards the mean of the tuned weights. What differs from picture to picture cancels out,
and what tunings have in common stays. Interrupt it at will: the same command goes on from the last checkpoint.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tuner_svc.base_model import BaseModel, load
from tuner_svc.methods.unitune import bound
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.trainable import trainable_parameters
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.warm_start import CODEC, STEP, WARM_START_MODES, WarmStart, WarmStartSettings
from unitune import images
from unitune.codecs import encode_coarse
from unitune.images import Pixels

ROUNDS = 180
PICTURES = 2  # in a round
FIRST_SHARE, LAST_SHARE = 0.5, 0.03  # of the way to the tuned weights, in the first round and in the last
UPDATES, LEARNING_RATE = 32, 3e-4  # of each tuning: a quarter of the paper's updates, each three times as large
CHECKPOINT = "warm_start.checkpoint"
CHECKPOINT_S = 60.0  # between two checkpoints
INFO = "unitune"  # the metadata's name, as JSON

PictureOf = Callable[[int], np.ndarray]  # the picture of a number from 0 on, as a model image (1, 3, height, width)


@dataclass(frozen=True)
class Learning:
    """A warm start while it is learned. `moments` are empty before the first round."""

    settings: WarmStartSettings
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Sequence[Tensor]]
    rounds: int = 0  # that are done
    loss: float = 0.0  # of the last round: the mean of its tunings' last quarters

    @classmethod
    def begin(cls, model: BaseModel, settings: WarmStartSettings) -> "Learning":
        """At the base model. Raises UnusableBaseModel for a mode without warm start."""
        if settings.mode not in WARM_START_MODES:
            modes = " or ".join(WARM_START_MODES)
            raise UnusableBaseModel(f"the preset's mode is {settings.mode!r}: a warm start can be learned with {modes}")
        base = trainable_parameters(model.denoiser.unet, settings.mode)
        return cls(settings, {name: tensor.detach().clone() for name, tensor in base.items()}, {})

    def start(self) -> WarmStart:
        """It as it is now, exactly."""
        weights = {name: tensor.cpu().numpy() for name, tensor in self.weights.items()}
        moments = {name: [mean.cpu().numpy() for mean in means] for name, means in self.moments.items()}
        return WarmStart(self.settings, weights, moments, codec="none")

    def stored(self, model: BaseModel) -> WarmStart:
        """It as a folder holds it."""
        exact = self.start()
        base = {name: tensor.cpu().numpy() for name, tensor in model.tensors().items() if name in exact.change}
        return replace(exact, change=encode_coarse(exact.change, base, STEP), codec=CODEC)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights.items()}
        for name, means in self.moments.items():
            tensors |= {f"moments.{name}.{axis}": mean for axis, mean in enumerate(means)}
        told = {"settings": asdict(self.settings), "rounds": self.rounds, "loss": self.loss}
        unfinished = path.with_suffix(".unfinished")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, {INFO: json.dumps(told)})
        os.replace(unfinished, path)

    def resumed(self, path: Path) -> "Learning":
        """What a checkpoint of the same settings has; itself, if there is none."""
        with suppress(FileNotFoundError, SafetensorError), safe_open(path, "pt") as file:
            told = json.loads(file.metadata()[INFO])
            if told["settings"] == asdict(self.settings):
                weights: dict[str, Tensor] = {}
                moments: dict[str, list[Tensor]] = {}
                for name, tensor in self.weights.items():
                    weights[name] = file.get_tensor(f"weights.{name}").to(tensor.device)
                    axes = range(max(tensor.dim(), 1))
                    moments[name] = [file.get_tensor(f"moments.{name}.{axis}").to(tensor.device) for axis in axes]
                return replace(self, weights=weights, moments=moments, rounds=told["rounds"], loss=told["loss"])
        return self


@torch.no_grad()
def learn_round(model: BaseModel, learning: Learning, pictures: Sequence[np.ndarray], share: float) -> Learning:
    """After one more round: tune on each picture from the present start, then move it by `share` of the way to the mean
    of what came out."""
    start = learning.start()
    begun = replace(model, warm_start=start)
    weights = {name: torch.zeros_like(tensor) for name, tensor in learning.weights.items()}
    moments: dict[str, list[Tensor]] = {}
    losses: list[float] = []
    for number, picture in enumerate(pictures):
        config = TuningConfig(**start.settings.defaults(), seed=learning.rounds * len(pictures) + number)
        tracker = ProgressTracker(config.updates, lambda progress: None, lambda: False)
        with torch.enable_grad():
            chosen, optimizer = bound(begun, model.encode_image(picture), config, tracker)
        losses += tracker.losses[-max(config.updates // 4, 1) :]
        for name, tensor in chosen.weights().items():
            weights[name] += tensor.detach() / len(pictures)
        for name, means in zip(weights, optimizer.moments(), strict=True):
            shares = [mean / len(pictures) for mean in means]
            moments[name] = [sum(both) for both in zip(moments[name], shares, strict=True)] if number else shares
    for name, tensor in weights.items():  # in place, as there may be billions of values
        tensor.mul_(share).add_(learning.weights[name], alpha=1 - share)
    for name, kept in learning.moments.items():
        moments[name] = [torch.lerp(old, mean, share) for old, mean in zip(kept, moments[name], strict=True)]
    rounds, loss = learning.rounds + 1, sum(losses) / len(losses)
    return Learning(learning.settings, weights, moments, rounds, loss)


def learn(
    model: BaseModel,
    picture_of: PictureOf,
    learning: Learning,
    rounds: int,
    checkpoint: Path,
    on_round: Callable[[Learning], None] = lambda learning: None,
) -> Learning:
    """After all rounds that are left; with a checkpoint now and then, and at an interrupt, when the round is lost."""
    learning = learning.resumed(checkpoint)
    saved_s = time.monotonic()
    try:
        while learning.rounds < rounds:
            done = learning.rounds
            share = FIRST_SHARE + (LAST_SHARE - FIRST_SHARE) * done / rounds
            pictures = [picture_of(done * PICTURES + each) for each in range(PICTURES)]
            learning = learn_round(model, learning, pictures, share)
            on_round(learning)
            if time.monotonic() - saved_s > CHECKPOINT_S:
                learning.save(checkpoint)
                saved_s = time.monotonic()
    finally:
        learning.save(checkpoint)
    return learning


def default_settings(
    model: BaseModel, updates: int = UPDATES, learning_rate: float = LEARNING_RATE
) -> WarmStartSettings:
    """Those of the base model's own preset, but for the updates and their size."""
    own = model.preset
    return WarmStartSettings(
        mode=own.mode,
        updates=updates,
        batch=own.batch,
        learning_rate=learning_rate,
        rare_tokens=own.rare_tokens,
        steps=updates,
    )


class RoundLines:
    """Tells the rounds that are done, with the time that is left, as lines of JSON for a program that reads them."""

    def __init__(self, rounds: int) -> None:
        self._rounds, self._first, self._began_s = rounds, -1, time.monotonic()

    def __call__(self, learning: Learning) -> None:
        """After a round."""
        if self._first < 0:
            self._first, self._began_s = learning.rounds, time.monotonic()
        done = learning.rounds - self._first
        left_s = (time.monotonic() - self._began_s) / done * (self._rounds - learning.rounds) if done else None
        told = {"round": learning.rounds, "rounds": self._rounds, "loss": round(learning.loss, 5), "left_s": left_s}
        print(json.dumps(told), flush=True)


def pictures_in(model: BaseModel, files: Sequence[Path]) -> PictureOf:
    """The pictures of some files, in turn; every second time mirrored, so that few pictures are more."""

    def picture_of(number: int) -> np.ndarray:
        pixels = cropped(images.decode(files[number % len(files)].read_bytes()), model.image_side)
        mirrored = number // len(files) % 2 == 1
        return images.to_model(pixels[:, ::-1] if mirrored else pixels, model.image_side)

    return picture_of


def cropped(pixels: Pixels, side: tuple[int, int]) -> Pixels:
    """The middle of a picture, in the shape of `side` (height, width)."""
    height = max(min(pixels.shape[0], pixels.shape[1] * side[0] // side[1]), 1)
    width = max(min(pixels.shape[1], pixels.shape[0] * side[1] // side[0]), 1)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the warm_start folder and the checkpoint")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--updates", type=int, default=UPDATES, help="of each tuning")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="of these updates")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    model = load(options.base_model, options.device, with_warm_start=False)
    learning = Learning.begin(model, default_settings(model, options.updates, options.learning_rate))
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"learning from {len(options.pictures)} pictures with {learning.settings}", file=sys.stderr)
    picture_of = pictures_in(model, options.pictures)
    learning = learn(model, picture_of, learning, options.rounds, options.out / CHECKPOINT, RoundLines(options.rounds))
    learning.stored(model).save(options.out, options.base_model)
    (options.out / CHECKPOINT).unlink()


if __name__ == "__main__":
    main()
