"""Tensors as the graph holds them: the base model's are laid out and checked once, a tuning's at their refit.

Most tensors of most refits are the base model's own arrays. They are read-only, so an array that is the same object
still has the same values.
"""

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.engine import EngineSpec, Tensors, check_tensors


class GraphLayout:
    """The layouts of a base model's graph, and its own tensors in them. Engines of one model share it."""

    def __init__(self, spec: EngineSpec, base: Tensors | None = None) -> None:
        """`base` has all tensors, read-only.

        Raises DataLoss (WEIGHTS_CORRUPT) when they are not the spec's, and ValueError for an array that can be written.
        """
        self._specs = spec.tensors
        if base is not None:
            check_tensors(spec, base)
            writeable = sorted(name for name, tensor in base.items() if tensor.flags.writeable)
            if writeable:
                raise ValueError(f"{writeable[0]} can be written to: what was checked of it may not last")
        self.base: Tensors = MappingProxyType(dict(base or {}))
        self._laid = {name: self._specs[name].to_graph(tensor) for name, tensor in self.base.items()}

    def is_base(self, name: str, tensor: NDArray[Any]) -> bool:
        """Whether this is the base model's own array."""
        return tensor is self.base.get(name)

    def contiguous(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """The tensor in the graph's layout; nothing is copied that lies so already. Nobody writes to it."""
        if self.is_base(name, tensor):
            return self._laid[name]
        return np.ascontiguousarray(self._specs[name].to_graph(tensor))

    def view(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """The same without a copy, so perhaps with other strides: to be copied from."""
        return self._laid[name] if self.is_base(name, tensor) else self._specs[name].view_in_graph(tensor)
