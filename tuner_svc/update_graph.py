"""One update of a tuning, as something to run again and again; on a CUDA device it is captured once and replayed.

An update of a small model is thousands of small kernels, and launching them one by one takes longer than running them.
Replaying a CUDA graph of all of them is one launch. What PyTorch asks of that: the section "CUDA Graphs" of its notes
on CUDA semantics.
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

EAGER_UPDATES = 3  # before the capture: libraries choose their kernels and get their workspaces in them

# Captures that failed. PyTorch 2.11 may leave its allocator in the midst of one, with a pointer to the graph, so the
# graph is kept, and this process captures no more.
_failed: list[torch.cuda.CUDAGraph] = []

REPEATABLE_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # not cuDNN's


class UpdateGraph:
    """Calls `update`, which takes tensors and returns the loss, a scalar; on a CUDA device by a graph, once it can.

    `update` must do the same work in every call, but for its arguments and for what it changes in place itself. It
    ends with no gradient left on the `parameters`, and never waits for the device. A capture that fails is logged, and
    these updates and all later ones of this process go on without. Not for several threads.
    """

    def __init__(self, update: Callable[..., Tensor], parameters: list[Tensor], device: torch.device) -> None:
        self._update, self._parameters, self._device = update, parameters, device
        self._updates = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []  # what a replay reads: its addresses are in the graph
        self._loss: Tensor | None = None  # what a replay writes

    @property
    def is_captured(self) -> bool:
        """Whether updates are replays from now on."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One update; its loss, without a gradient, which the next call may write over."""
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
            # Detached, so that nothing keeps the nodes of this update's autograd graph: a capture needs new ones.
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
            # On the stream of the eager updates, so that all that belongs to a stream is there already.
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(self._device)):
                loss = self._update(*static).detach()
        except RuntimeError as error:  # also CUDA's errors and OutOfMemoryError; a real one comes again without a graph
            telemetry.event(logger, "updates not captured", level=logging.WARNING, detail=_cause(error))
            _failed.append(graph)
            for parameter in self._parameters:
                parameter.grad = None  # what the capture put there was never computed
            return
        self._graph, self._inputs, self._loss = graph, static, loss


def adam(parameters: list[Tensor], learning_rate: float) -> Adam:
    """Adam; on a CUDA device with its count of steps there, so that a replay counts on."""
    return Adam(parameters, learning_rate, capturable=parameters[0].device.type == "cuda")


def _cause(error: BaseException) -> str:
    """One line. The end of a broken capture complains, too, and says less than what broke it."""
    first = error.__context__ or error
    return (str(first).strip() or type(first).__name__).splitlines()[0]


@contextmanager
def repeatable_sums() -> Iterator[None]:
    """Has convolutions and attention on a CUDA device add up alike in every run, where they can.

    Flash attention adds a query's gradient up from blocks of keys as they come, which three and more blocks show.
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
    """One for the life of the process: for each stream, cuBLAS keeps a workspace of its own. Nothing can be captured on
    the default stream."""
    return torch.cuda.Stream(device)
