"""How the gradient of an update is computed: the batch at once or some rows at a time, activations kept or not.

A row is one noise draw of the batch. All arrangements have the same gradient up to the rounding of sums, and cost
different memory and time. The quickest one that fits in the free memory is chosen at a tuning's first update: where
memory suffices that is the whole batch at once. What each needs is measured by two forward passes that keep nothing.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Adam
from torch.utils.checkpoint import checkpoint

from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel
from unitune import telemetry
from unitune.free_memory import free_memory_bytes, give_back_memory, keep_large_blocks, map_large_blocks

logger = logging.getLogger(__name__)

USABLE = 0.85  # of the free memory: other programs need some, too, and estimates are no promises
STEP_COPIES = 4  # of a group of parameters, while Adafactor moves it: its gradient, update, squares and a sum
PASS_COPIES = 3  # of the largest activation, in a backward pass: its gradients
MAPPED_BYTES = 512 << 10  # where memory is short: larger blocks are given back as soon as they are free
GB = 1e9

Loss = Callable[..., Tensor]  # the mean loss of some rows; the first axis of every argument is theirs


@dataclass(frozen=True)
class Arrangement:
    """How many rows are computed at a time, and whether each block of the UNet runs again in the backward pass instead
    of keeping its activations (gradient checkpointing, Chen et al., 2016, arXiv 1604.06174)."""

    rows: int
    recomputes: bool = False

    def words(self, batch: int) -> str:
        """For people."""
        rows = "the whole batch at once" if self.rows >= batch else f"{self.rows} of {batch} noise draws at a time"
        return f"{rows}{', and every block twice' if self.recomputes else ''}"


def arrangements(batch: int) -> list[Arrangement]:
    """From the quickest on. Half of the rows at a time cost a little, every block twice about a third. Fewer rows with
    activations kept are not quicker than that, and need more memory."""
    rows = [batch]
    while rows[-1] > 1:
        rows.append((rows[-1] + 1) // 2)
    return [*map(Arrangement, rows[:2]), *(Arrangement(count, recomputes=True) for count in rows)]


@dataclass(frozen=True)
class Activations:
    """Bytes that the forward pass of some rows keeps for the backward pass: `fixed`, and `of_row` for each."""

    fixed: int
    of_row: int

    def of(self, rows: int) -> int:
        """Of so many rows."""
        return self.fixed + rows * self.of_row


@dataclass(frozen=True)
class Footprint:
    """What an update needs, in bytes, beside the base model and the parameters."""

    gradients: int  # of all parameters
    late_gradients: int  # the same if the batch is computed at once: large parameters may use theirs up before the end
    state: int  # of the optimizer
    step: int  # while the optimizer moves parameters
    kept: Activations
    recomputed: Activations

    def need(self, batch: int, arrangement: Arrangement) -> int:
        """Bytes at the worst moment of an update."""
        activations = (self.recomputed if arrangement.recomputes else self.kept).of(arrangement.rows)
        if arrangement.rows >= batch and self.late_gradients < self.gradients:  # steps are within the backward pass
            return self.state + self.late_gradients + activations + self.step
        return self.state + self.gradients + max(activations, self.step)


def chosen(footprint: Footprint, batch: int, free_bytes: int | None) -> Arrangement:
    """The quickest arrangement that fits; the least one if none does, and the quickest of all if the memory is not
    known."""
    every = arrangements(batch)
    if free_bytes is None:
        return every[0]
    fitting = (one for one in every if footprint.need(batch, one) <= USABLE * free_bytes)
    return next(fitting, min(every, key=lambda one: footprint.need(batch, one)))


class Update:
    """One update of a tuning, a function of the batch's draws: its gradient in the arrangement that fits, then the
    optimizer's step. It returns the loss. The first call chooses the arrangement."""

    def __init__(
        self,
        model: BaseModel,
        loss: Loss,
        optimizer: Adafactor | Adam,
        parameters: Sequence[Tensor],
        kind: Hashable,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`kind` is all that the activations depend on besides the model and the draws' shapes: they are measured once
        for each. `warn` gets the sentence about updates that take longer than they could, or an empty one."""
        self._model, self._loss, self._optimizer, self._kind = model, loss, optimizer, kind
        self._parameters, self._warn = list(parameters), warn
        # In the backward pass, where that is the only one of the update. Not tested on a GPU.
        self._moves_early = isinstance(optimizer, Adafactor) and model.device.type == "cpu"
        self.arrangement: Arrangement | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.arrangement is None:
            self.arrangement = self._arranged(inputs)
        loss = backward(self._loss, inputs, self.arrangement, self._model.denoiser.unet)
        self._optimizer.step()
        if isinstance(self._optimizer, Adam):
            self._optimizer.zero_grad()
        return loss

    def _arranged(self, inputs: Sequence[Tensor]) -> Arrangement:
        batch, quickest = len(inputs[0]), arrangements(len(inputs[0]))[0]
        footprint = self._footprint(inputs)
        give_back_memory()  # what was freed before counts as free
        free = free_bytes(self._model, self._parameters)
        found = chosen(footprint, batch, free)
        if isinstance(self._optimizer, Adafactor) and self._moves_early and found.rows >= batch:
            self._optimizer.step_early()
        telemetry.event(logger, "updates arranged", detail=found.words(batch), size_bytes=footprint.need(batch, found))
        changes_all = 2 * footprint.gradients > sum(each.nbytes for each in self._model.denoiser.parameters())
        is_slower = found != quickest and free is not None
        # glibc's heap may keep half as much as is in use. Without that, updates take longer.
        if is_slower:
            map_large_blocks(MAPPED_BYTES)
        else:
            keep_large_blocks()
        self._warn(_warning(batch, found, footprint, free or 0, has_smaller_modes=changes_all) if is_slower else "")
        give_back_memory()
        return found

    def _footprint(self, inputs: Sequence[Tensor]) -> Footprint:
        kept, recomputed = _measured_once(self._model, self._loss, inputs, self._parameters, self._kind)
        sizes = [parameter.nbytes for parameter in self._parameters]
        gradients = sum(sizes)
        if isinstance(self._optimizer, Adafactor):
            late = self._optimizer.late_bytes if self._moves_early else gradients
            return Footprint(gradients, late, 0, STEP_COPIES * self._optimizer.group_bytes, kept, recomputed)
        # A loop over the tensors on a CPU, all of them together on a GPU.
        together = max(sizes) if self._model.device.type == "cpu" else gradients
        return Footprint(gradients, gradients, 2 * gradients, 2 * together, kept, recomputed)


def backward(loss: Loss, inputs: Sequence[Tensor], arrangement: Arrangement, unet: UNet2DConditionModel) -> Tensor:
    """Add the gradient of the batch's mean loss to that of the parameters. Returns that loss."""
    batch = len(inputs[0])
    with _blocks_as(_run_again if arrangement.recomputes else None, unet):
        if arrangement.rows >= batch:
            whole = loss(*inputs)
            whole.backward()
            return whole
        total = torch.zeros((), device=inputs[0].device)
        for part in zip(*(given.split(arrangement.rows) for given in inputs), strict=True):
            share = loss(*part) * (len(part[0]) / batch)
            share.backward()
            total += share.detach()
        return total


@contextmanager
def recomputing(unet: UNet2DConditionModel) -> Iterator[None]:
    """Forward passes within keep only the inputs of each block. Their backward passes must be within, too."""
    with _blocks_as(_run_again, unet):
        yield


def free_bytes(model: BaseModel, parameters: Sequence[Tensor]) -> int | None:
    """What an update may take beside its parameters: of the tuning's own limit, or of what is free on the device now.
    None if that is not known."""
    if model.tuning_bytes:
        return max(0, model.tuning_bytes - sum(parameter.nbytes for parameter in parameters))
    if model.device.type != "cuda":
        return free_memory_bytes()
    free, _ = torch.cuda.mem_get_info(model.device)
    return free + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)


def _warning(batch: int, found: Arrangement, footprint: Footprint, free: int, *, has_smaller_modes: bool) -> str:
    whole, need = (footprint.need(batch, one) for one in (arrangements(batch)[0], found))
    fails = "" if need <= USABLE * free else f" Even that needs about {need / GB:.1f} GB, so it may fail."
    smaller = ", or choose mode attn_out or lora" if has_smaller_modes else ""
    return (
        f"the tuning is slower than it could be: it computes {found.words(batch)}, since its updates would take about "
        f"{whole / GB:.1f} GB, and {free / GB:.1f} GB of memory are free.{fails} Give the tuner more memory{smaller}"
    )


def _run_again(block: nn.Module, *arguments: Any) -> Any:
    """A block's output. It keeps its arguments alone, and runs again in the backward pass.

    By then the UNet has the base model's tensors again, so it runs again with those that it has now.
    """
    tensors = dict(block.named_parameters())
    # There is no dropout: nothing is drawn.
    return checkpoint(
        lambda *given: functional_call(block, tensors, given), *arguments, use_reentrant=False, preserve_rng_state=False
    )


@contextmanager
def _blocks_as(run: Callable[..., Any] | None, unet: UNet2DConditionModel) -> Iterator[None]:
    """The UNet calls `run` with each block and its arguments, and not the block itself, when a gradient is wanted."""
    if run is None:
        yield
        return
    unet.enable_gradient_checkpointing(run)
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


_measured: dict[Hashable, tuple[Activations, Activations]] = {}  # the tuner has one PyTorch thread


def _measured_once(
    model: BaseModel, loss: Loss, inputs: Sequence[Tensor], parameters: Sequence[Tensor], kind: Hashable
) -> tuple[Activations, Activations]:
    """What forward passes keep for their backward passes, and what they do if blocks run again there."""
    batch = min(2, len(inputs[0]))
    key = model.digest, model.device, kind, batch, tuple(given.shape[1:] for given in inputs)
    if key not in _measured:
        one, *two = (_kept_bytes(model, loss, inputs, parameters, rows) for rows in range(1, batch + 1))
        other = two[0] if two else one
        _measured[key] = _line(one[0], other[0], batch), _line(one[1], other[1], batch)
    return _measured[key]


def _line(one: int, two: int, batch: int) -> Activations:
    return Activations(0, one) if batch == 1 else Activations(max(0, 2 * one - two), two - one)


def _kept_bytes(
    model: BaseModel, loss: Loss, inputs: Sequence[Tensor], parameters: Sequence[Tensor], rows: int
) -> tuple[int, int]:
    """Bytes of what a forward pass of some rows keeps; and, if blocks run again, of what it keeps and the largest block
    in its turn. The pass itself keeps nothing."""
    of_weights = _Storages()
    for tensor in (*model.denoiser.parameters(), *model.text_encoder.parameters(), *parameters):
        of_weights.add(tensor)
    everything, outside, largest_block = _Storages(of_weights), _Storages(of_weights), 0

    def counted(block: nn.Module, *arguments: Any) -> Any:
        nonlocal largest_block
        inside = _Storages(of_weights)
        for tensor in (*arguments, *block.parameters()):  # LoRA's scaled factors are no parameters of the optimizer
            if isinstance(tensor, Tensor):
                outside.add(tensor)
        with saved_tensors_hooks(_into(everything, inside), _never):
            output = block(*arguments)
        largest_block = max(largest_block, inside.size_bytes)
        return output

    with _blocks_as(counted, model.denoiser.unet), saved_tensors_hooks(_into(everything, outside), _never):
        loss(*(given[:rows] for given in inputs))
    in_pass = PASS_COPIES * everything.largest_bytes
    return everything.size_bytes + in_pass, outside.size_bytes + largest_block + in_pass


class _Storages:
    """The memory of tensors, each storage counted once. A weak reference keeps its identity, and not the memory."""

    def __init__(self, others: "_Storages | None" = None) -> None:
        """Without what is in `others`."""
        self._others: set[StorageWeakRef] = others._seen if others is not None else set()
        self._seen: set[StorageWeakRef] = set()
        self.size_bytes = self.largest_bytes = 0

    def add(self, tensor: Tensor) -> None:
        """Count the memory of a tensor."""
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self._seen and reference not in self._others:
            self._seen.add(reference)
            self.size_bytes += storage.nbytes()
            self.largest_bytes = max(self.largest_bytes, storage.nbytes())


def _into(*storages: _Storages) -> Callable[[Tensor], None]:
    """Counts a tensor that autograd would keep, and keeps nothing."""

    def count(tensor: Tensor) -> None:
        for each in storages:
            each.add(tensor)

    return count


def _never(packed: object) -> Tensor:
    raise RuntimeError("a pass that keeps nothing has no backward pass")
