"""Checkpoints of a tuning: where the next attempt goes on when a tuner is lost, as if it had not been.

A checkpoint is one safetensors file. Of the stage that runs it has the trained tensors, the optimizer's state, the
random generators and the losses, and of each stage before it what that left. Whatever else a method computes, it
computes again.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from tuner_svc.adafactor import Adafactor
from unitune import telemetry

logger = logging.getLogger(__name__)

INFO = "unitune"  # the metadata's name, as JSON


class StageState:
    """All that one stage of a tuning changes from update to update."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizer: Adafactor | Optimizer,
        generators: Sequence[torch.Generator],
    ) -> None:
        self._parameters, self._optimizer, self._generators = parameters, optimizer, generators

    def tensors(self, *, is_over: bool) -> dict[str, Tensor]:
        """Copies of them by name, without the optimizer's of a stage that is over."""
        found = {f"parameter.{index}": tensor.detach() for index, tensor in enumerate(self._parameters)}
        found |= {f"generator.{index}": each.get_state() for index, each in enumerate(self._generators)}
        if not is_over:
            found |= {f"optimizer.{name}": tensor for name, tensor in self._of_optimizer().items()}
        return {name: tensor.cpu().clone() for name, tensor in found.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` gave."""
        for index, parameter in enumerate(self._parameters):
            parameter.copy_(tensors[f"parameter.{index}"])
        for index, generator in enumerate(self._generators):
            generator.set_state(tensors[f"generator.{index}"])
        kept = {name.partition(".")[2]: each for name, each in tensors.items() if name.startswith("optimizer.")}
        if not kept:
            return
        if isinstance(self._optimizer, Adafactor):
            for name, tensor in self._optimizer.state().items():
                tensor.copy_(kept[name])
            return
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in kept.items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def _of_optimizer(self) -> dict[str, Tensor]:
        if isinstance(self._optimizer, Adafactor):
            return self._optimizer.state()
        state = self._optimizer.state_dict()["state"]
        return {f"{index}.{key}": tensor for index, each in state.items() for key, tensor in each.items()}


@dataclass(frozen=True)
class SavedStage:
    """A stage as a checkpoint has it."""

    tensors: dict[str, Tensor]
    losses: list[float]  # one of each update
    is_over: bool


class Checkpoints:
    """The checkpoints of one tuning, made at intervals, and the one that it goes on from.

    Used on the PyTorch thread.
    """

    def __init__(
        self, key: str, every_s: float, keep: Callable[[int, bytes], None], resumed: Sequence[SavedStage] = ()
    ) -> None:
        """`key` is the tuning's. `keep` takes the number of updates and the file; `every_s` of 0 makes none."""
        self._key, self._every_s, self._keep = key, every_s, keep
        self._resumed = list(resumed)
        self._stages: list[tuple[StageState, list[float]]] = []
        self._made_s = time.monotonic()

    def begin(self, state: StageState) -> SavedStage | None:
        """Begin the next stage: as the checkpoint has it, or anew."""
        saved = self._resumed.pop(0) if self._resumed else None
        if saved is not None:
            state.restore(saved.tensors)
        self._stages.append((state, []))
        return saved

    def update(self, losses: Sequence[float], left_s: float | None) -> None:
        """After an update: make a checkpoint if one is due. `losses` are those of the stage."""
        self._stages[-1][1][:] = losses
        is_due = self._every_s > 0 and time.monotonic() - self._made_s >= self._every_s
        if not is_due or (left_s is not None and left_s < self._every_s):  # less would be lost than it costs
            return
        try:
            self._keep(sum(len(kept) for _, kept in self._stages), self._file())
        except Exception:  # such as a store that is full; the tuning goes on without
            telemetry.failure(logger, "checkpoint not kept")
        self._made_s = time.monotonic()

    def end(self, losses: Sequence[float]) -> None:
        """The stage is over."""
        self._stages[-1][1][:] = losses

    def forget(self) -> None:
        """The tuning is over: let its tensors go."""
        self._stages.clear()
        self._resumed.clear()

    def _file(self) -> bytes:
        last = len(self._stages) - 1
        tensors: dict[str, Tensor] = {}
        for index, (state, _) in enumerate(self._stages):
            found = state.tensors(is_over=index < last)
            tensors |= {f"{index}.{name}": tensor for name, tensor in found.items()}
        told = {"key": self._key, "losses": [losses for _, losses in self._stages]}
        return save(tensors, {INFO: json.dumps(told)})


def read(data: bytes, key: str) -> list[SavedStage]:
    """The stages of a checkpoint's file. Raises ValueError for one of another tuning, and for damaged ones."""
    size = int.from_bytes(data[:8], "little")
    try:
        told = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][INFO])
        tensors = load(data)
        if told["key"] != key:
            raise ValueError("it is of another tuning")
        stages = []
        for index, losses in enumerate(told["losses"]):
            own = {name.partition(".")[2]: each for name, each in tensors.items() if name.startswith(f"{index}.")}
            stages.append(SavedStage(own, losses, is_over=index + 1 < len(told["losses"])))
        return stages
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError("it is damaged") from error
