"""The mean of the weights over the last updates (Polyak and Juditsky, 1992).

Few updates need large steps, and each step follows the noise of its own draws. The mean has less of that noise than the
last weights have, and keeps as much of the picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SHARE = 0.25  # of the updates, the last ones


class WeightAverage:
    """The mean of `parameters` over the last quarter of `updates`. `tensors` are all that it changes."""

    def __init__(self, parameters: Sequence[Tensor], updates: int) -> None:
        self._parameters = list(parameters)
        self._first = updates - max(int(SHARE * updates), 1)
        self._means = [torch.zeros_like(parameter, requires_grad=False) for parameter in self._parameters]
        self._count = torch.zeros((), dtype=torch.int64)
        self.tensors = [*self._means, self._count]

    @torch.no_grad()
    def add(self, update: int) -> None:
        """After an update, counted from 0."""
        if update < self._first:
            return
        self._count += 1
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter, 1 / self._count.item())

    @torch.no_grad()
    def put(self) -> None:
        """Put the mean in the parameters' place. They stay where no update was among the last."""
        if self._count.item() == 0:
            return
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            parameter.copy_(mean)
