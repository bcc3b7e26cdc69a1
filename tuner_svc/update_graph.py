"""Runs the update of a tuning repeatedly. On a CUDA device the update is captured once and then replayed.

An update of a small model is thousands of small kernels, and launching each takes longer than running it. Replaying a
CUDA graph launches all of them at once. PyTorch's requirements are in its notes on CUDA semantics, section "CUDA
Graphs".
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Adam

from unitune import telemetry

logger = logging.getLogger(__name__)

EAGER_UPDATES = 3  # before the capture, in which libraries choose their kernels and allocate workspaces

# Captures that failed. PyTorch 2.11 may leave its allocator in a capture, with a pointer to the graph. So the graph is
# kept, and this process captures no more.
_failed: list[torch.cuda.CUDAGraph] = []

REPEATABLE_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # not cuDNN's


class UpdateGraph:
    """Calls `update`, which takes tensors and returns the loss, a scalar. On a CUDA device it uses a graph if it can.

    `update` must do the same work in every call, except for its arguments and for tensors that it changes in place. It
    must leave no gradient on the `parameters`, and must not wait for the device. If a capture fails, that is logged,
    and all updates of this process go on without a graph. Not thread-safe.
    """

    def __init__(self, update: Callable[..., Tensor], parameters: list[Tensor], device: torch.device) -> None:
        self._update, self._parameters, self._device = update, parameters, device
        self._updates = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []  # read by a replay: the graph has their addresses
        self._loss: Tensor | None = None  # written by a replay

    @property
    def is_captured(self) -> bool:
        """Whether updates are replays from now on."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One update; its loss, without a gradient. The next call may overwrite it."""
        if self._device.type != "cuda":
            return self._update(*inputs).detach()
        current, side = torch.cuda.current_stream(self._device), _side_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side), repeatable_sums():
            loss = self._update_on_device(inputs)
        current.wait_stream(side)
        return loss

    def _update_on_device(self, inputs: tuple[Tensor, ...]) -> Tensor:
        if self._updates == EAGER_UPDATES and not _failed:
            self._capture(inputs)
        self._updates += 1
        if self._graph is None or self._loss is None:
            # Detached, to free the nodes of this update's autograd graph: a capture needs new ones.
            return self._update(*inputs).detach()
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        self._graph.replay()
        return self._loss

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Record an update without running it: no tensor of the tuning changes, whether it succeeds or fails."""
        graph = torch.cuda.CUDAGraph()
        static = [given.clone() for given in inputs]
        try:
            # On the stream of the eager updates, whose resources already exist.
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(self._device)):
                loss = self._update(*static).detach()
        except (
            RuntimeError
        ) as error:  # also CUDA's errors and OutOfMemoryError; a real error comes again without a graph
            telemetry.event(logger, "updates not captured", level=logging.WARNING, detail=_cause(error))
            _failed.append(graph)
            for parameter in self._parameters:
                parameter.grad = None  # the capture has not computed it
            return
        self._graph, self._inputs, self._loss = graph, static, loss


def adam(parameters: list[Tensor], learning_rate: float) -> Adam:
    """Adam. On a CUDA device its count of steps is there, so that a replay increments it."""
    return Adam(parameters, learning_rate, capturable=parameters[0].device.type == "cuda")


def _cause(error: BaseException) -> str:
    """One line about the error that broke a capture, not about the end of the capture."""
    first = error.__context__ or error
    return (str(first).strip() or type(first).__name__).splitlines()[0]


@contextmanager
def repeatable_sums() -> Iterator[None]:
    """Makes sums in convolutions and attention on a CUDA device repeatable, where possible.

    Flash attention adds a query's gradient over blocks of keys in no fixed order, which matters from three blocks on.
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with sdpa_kernel(REPEATABLE_ATTENTION):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for the whole process, since cuBLAS keeps a workspace for each. The default stream cannot be
    captured."""
    return torch.cuda.Stream(device)
