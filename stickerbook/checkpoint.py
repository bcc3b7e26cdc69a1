"""Training state that survives an interruption: model, its moving average, optimizer, updates done.

One safetensors file, written under a temporary name and renamed, so a partial file never has the
final name. Tensors are prefixed `model.`, `average.` and `optimizer.<index>.`.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class TrainingRun:
    """One training run: steps the optimizer, keeps a moving average of the weights, saves and resumes."""

    def __init__(
        self,
        path: Path,
        model: torch.nn.Module,
        *,
        learning_rate: float,
        updates: int,
        warmup: int = 200,
        average_decay: float = 0.999,
        weight_decay: float = 0.01,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """`facts` are stored in the checkpoint's metadata; a resumed run also has those of its file."""
        self.path, self.model = path, model
        self.learning_rate, self.updates, self.warmup = learning_rate, updates, warmup
        self.average_decay = average_decay
        self.updates_done = 0
        self.facts = dict(facts or {})
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )

    def update(self, loss: torch.Tensor) -> None:
        """One optimizer update: warm-up, then a linear fall to a hundredth of the learning rate."""
        fraction = min(self.updates_done / self.updates, 1.0)
        warm = min((self.updates_done + 1) / self.warmup, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm * (1 - 0.99 * fraction)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.updates_done += 1
        # At first the average follows fast, so that early checkpoints are usable.
        decay = min(self.average_decay, self.updates_done / (self.updates_done + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    @property
    def is_done(self) -> bool:
        return self.updates_done >= self.updates

    def use_average(self) -> None:
        """Put the moving average into the model, for sampling or for export."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)

    def start_from(self, model: torch.nn.Module) -> None:
        """Begin with the weights of another model of the same shape."""
        with torch.no_grad():
            self.model.load_state_dict(model.state_dict())
            torch._foreach_copy_(self.average, self.parameters)

    def save(self) -> None:
        """Write the whole state; atomic."""
        tensors: dict[str, torch.Tensor] = {}
        for index, (parameter, average) in enumerate(zip(self.parameters, self.average, strict=True)):
            tensors[f"model.{index}"] = parameter.detach().contiguous()
            tensors[f"average.{index}"] = average.contiguous()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{index}.{key}"] = value.contiguous()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        save_file(tensors, temporary, metadata={**self.facts, "updates_done": str(self.updates_done)})
        os.replace(temporary, self.path)

    def resume(self) -> bool:
        """Continue from the saved state; whether there was one.

        Raises ValueError when the file was written for another model.
        """
        if not self.path.exists():
            return False
        with safe_open(self.path, framework="pt") as file, torch.no_grad():
            names = set(file.keys())
            self.updates_done = int(file.metadata()["updates_done"])
            self.facts = {**file.metadata(), **self.facts}
            for index, (parameter, average) in enumerate(zip(self.parameters, self.average, strict=True)):
                saved = file.get_tensor(f"model.{index}") if f"model.{index}" in names else None
                if saved is None or saved.shape != parameter.shape:
                    raise ValueError(
                        f"{self.path} belongs to another model (tensor {index}); move it away to start anew"
                    )
                parameter.copy_(saved)
                average.copy_(file.get_tensor(f"average.{index}"))
                state = {
                    name.rsplit(".", 1)[1]: file.get_tensor(name).to(parameter.device)
                    for name in names
                    if name.startswith(f"optimizer.{index}.")
                }
                if state:
                    self.optimizer.state[parameter] = state
        return True


class TrainingLog:
    """Prints the progress of a run: the mean loss, and scenes per second since it started or resumed."""

    def __init__(self, run: TrainingRun, *, batch: int, every: int) -> None:
        """Prints a line every `every` updates, of `batch` scenes each."""
        self._run, self._batch, self._every = run, batch, every
        self._started, self._first = time.monotonic(), run.updates_done
        self._mean_loss: torch.Tensor | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of an update, and print a line if it is time. Only then it waits for a GPU."""
        loss, before = loss.detach(), self._mean_loss
        self._mean_loss = loss.clone() if before is None else before.lerp_(loss, 0.01)
        done = self._run.updates_done
        if done % self._every == 0:
            seconds = time.monotonic() - self._started
            rate = (done - self._first) * self._batch / seconds
            mean = f"loss {self._mean_loss.item():.4f}"
            print(f"update {done}/{self._run.updates}  {mean}  {rate:.1f} scenes/s  {seconds:.0f} s", flush=True)
