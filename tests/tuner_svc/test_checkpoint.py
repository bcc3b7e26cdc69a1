"""Checkpoints: a tuning that was lost and goes on from one is, bit for bit, the one that was not lost."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tuner_svc import checkpoint
from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel, load
from tuner_svc.checkpoint import Checkpoints, StageState, read
from tuner_svc.methods import Tuned
from tuner_svc.tune import UpdateProgress, total_updates, tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.base_model import SUPER_RESOLUTION_STAGES
from unitune.images import ModelImage

CONFIGS = {
    "unitune": TuningConfig(updates=7, batch=2, learning_rate=1e-3, stop_loss_ratio=0.01),
    "lora": TuningConfig(mode="lora", updates=7, batch=1, learning_rate=1e-3),
    "imagic": TuningConfig(
        method="imagic", updates=4, batch=1, learning_rate=1e-4, prompt="a cat", embedding_updates=3
    ),
    "dreambooth": TuningConfig(
        method="dreambooth", updates=6, batch=1, learning_rate=1e-4, class_noun="cat", num_class_images=1
    ),
    "textual_inversion": TuningConfig(
        method="textual_inversion", updates=7, batch=1, learning_rate=1e-3, initial_word="cat"
    ),
}


def tensors_of(tuned: Tuned) -> dict[str, Tensor]:
    """All that a tuning made."""
    of_stages = {
        f"{stage}.{name}": tensor
        for stage, tensors in tuned.super_resolution.items()
        for name, tensor in tensors.items()
    }
    return {**tuned.tensors, **tuned.extras, **of_stages}


def checkpoints_of(config: TuningConfig, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A checkpoint after every update of a run but the last."""
    made: list[bytes] = []
    clock = iter(range(10**9))
    monkeypatch.setattr(checkpoint, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    run(Checkpoints("key", 1e-9, lambda update, data: made.append(data)))
    monkeypatch.undo()
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resumed_tuning_has_the_same_bits(
    model: BaseModel, image: ModelImage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a checkpoint after the first update, the last but one or one between, in each stage, the rest gives the
    tensors and the losses of an uninterrupted run, to the bit (R12, F26)."""
    resumes_to_the_bit(CONFIGS[name], functools.partial(tune, model, image, CONFIGS[name]), monkeypatch)


def test_a_resumed_tuning_of_a_cascade_has_the_same_bits(
    tiny_cascade: Path, image: ModelImage, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of its stages, too: the second one sees the first one's result again."""
    config = replace(CONFIGS["lora"], updates=2, super_resolution_updates=3, super_resolution_2_updates=3)
    sides = dict(zip(SUPER_RESOLUTION_STAGES, (96, 192), strict=True))
    large = {stage: images.to_model(images.decode(picture), (side, side)) for stage, side in sides.items()}

    resumes_to_the_bit(
        config, functools.partial(tune, load(tiny_cascade), image, config, large=large), monkeypatch, halfway=(4, 6)
    )


def resumes_to_the_bit(
    config: TuningConfig,
    run: Callable[..., Tuned],
    monkeypatch: pytest.MonkeyPatch,
    halfway: tuple[int, ...] = (),
) -> None:
    """Whether a run that goes on from a checkpoint gives what an uninterrupted one does."""
    expected = run()
    made = checkpoints_of(config, lambda kept: run(checkpoints=kept), monkeypatch)
    assert len(made) == total_updates(config) - 1  # with the last update nothing is left

    for done in {1, len(made) // 2, len(made), *halfway}:
        data = made[done - 1]
        told: list[UpdateProgress] = []
        resumed = Checkpoints("key", 0.0, lambda update, data: None, read(data, "key"))
        tuned = run(checkpoints=resumed, on_progress=told.append)

        found = tensors_of(tuned)
        assert tuned.losses == expected.losses, done
        assert found.keys() == tensors_of(expected).keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in tensors_of(expected).items()), done
        assert told[0].resumed_update == done and told[0].update == done + 1


def test_a_checkpoint_of_another_tuning_or_a_damaged_one_is_not_read() -> None:
    """It says of which tuning it is; bytes that are no checkpoint are refused in words."""
    parameter = torch.zeros(3)
    made: list[bytes] = []
    checkpoints = Checkpoints("key", 1e-9, lambda update, data: made.append(data))
    assert checkpoints.begin(StageState([parameter], Adafactor([parameter], 0.1), [])) is None
    checkpoints.update([0.5], None)

    (stage,) = read(made[0], "key")
    assert stage.losses == [0.5] and not stage.is_over
    for data, key in ((made[0], "other"), (b"", "key"), (b"no checkpoint at all", "key"), (made[0][:-1], "key")):
        with pytest.raises(ValueError, match="it is"):
            read(data, key)


def test_a_checkpoint_is_made_at_its_time(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the interval, unless less than that is left; a store that refuses one does not end the tuning."""
    now = [0.0]
    monkeypatch.setattr(checkpoint, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    parameter = torch.zeros(2)
    updates: list[int] = []

    def keep(update: int, data: bytes) -> None:
        updates.append(update)
        raise OSError("no space left on device")

    checkpoints = Checkpoints("key", 10.0, keep)
    checkpoints.begin(StageState([parameter], Adafactor([parameter], 0.1), []))
    for update, (now_s, left_s) in enumerate([(5, None), (10, 100), (15, 95), (20, 11), (30, 9), (40, None)], start=1):
        now[0] = now_s
        checkpoints.update([0.0] * update, left_s)
    assert updates == [2, 4, 6]
    none = Checkpoints("key", 0.0, keep)
    none.begin(StageState([parameter], Adafactor([parameter], 0.1), []))
    none.update([0.0], None)
    assert len(updates) == 3


def test_the_file_is_plain(model: BaseModel) -> None:
    """It is a safetensors file, which runs nothing when it is read."""
    parameter, made = torch.ones(2), list[bytes]()
    checkpoints = Checkpoints("key", 1e-9, lambda update, data: made.append(data))
    checkpoints.begin(StageState([parameter], Adafactor([parameter], 0.1), [torch.Generator()]))
    checkpoints.update([0.25], None)
    size = int.from_bytes(made[0][:8], "little")
    header = json.loads(made[0][8 : 8 + size])
    assert {"0.parameter.0", "0.generator.0", "0.optimizer.steps", "__metadata__"} <= header.keys()
