"""Makes batches of training data ahead in worker processes, so that a GPU does not wait for drawing and tokenizing."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def workers_for(device: str) -> int:
    """The number of worker processes for a training on this device; 0 on a CPU, where the training needs the cores."""
    return 0 if device == "cpu" else max((os.cpu_count() or 1) - 2, 1)


def batches(make: Callable[[int], Any], numbers: range, workers: int = 0) -> Iterator[Any]:
    """`make(number)`, tensors or tuples of them, for every number in its order; `make` must be picklable.

    Random draws in a batch must depend only on its number, so that batches are the same with any number of workers.
    """
    pinned = torch.cuda.is_available()
    return iter(DataLoader(_Made(make), batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pinned))


class _Made(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> Any:
        return self._make(number)
