"""A CUDA graph without a GPU, for tests: an update's kernels are recorded with the tensors that they read and write.

As on a GPU, recording changes no tensor that was there before, and a replay runs the same kernels on the same memory:
no Python runs, no number is read anew, nothing is drawn. What an update keeps in Python, or draws by itself, is in
every replay as it was in the recording, and so is found by comparing losses. Speed, streams and CUDA's own rules of
what can be captured are not here: tests/gpu/test_tuner.py has those.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Notes every kernel, its arguments and its results; and what the tensors held that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for tensor in self._tensors((args, kwargs)):
                address = tensor.untyped_storage().data_ptr()
                if address not in self._made and address not in self._before:
                    self._before[address] = (tensor, tensor.clone())
        results = func(*args, **kwargs)
        self._made |= {tensor.untyped_storage().data_ptr() for tensor in self._tensors(results)} - {
            tensor.untyped_storage().data_ptr() for tensor in self._tensors((args, kwargs))
        }
        self.kernels.append((func, args, kwargs, self._tensors(results)))
        return results

    @torch.no_grad()
    def undo(self) -> None:
        """Give the tensors that were there before their values back."""
        for tensor, value in self._before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        """Run all kernels again. Each writes its results where it wrote them in the recording."""
        for func, args, kwargs, recorded in self.kernels:
            results = self._tensors(func(*args, **kwargs))
            for old, new in zip(recorded, results, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    @staticmethod
    def _tensors(tree: Any) -> list[Any]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class RecordedGraph:
    """torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.recording = Recording()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.recording.replay()


@contextmanager
def graph(recorded: RecordedGraph, stream: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    with recorded.recording:
        yield
    recorded.recording.undo()


def stand_in_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has UpdateGraph record on the processor whatever it would capture on a device of type cuda."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": RecordedGraph,
        "graph": graph,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device: stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr("tuner_svc.update_graph._side_stream", lambda device: stream)
