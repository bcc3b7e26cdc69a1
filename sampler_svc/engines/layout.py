"""Tensors in the graph's layout. The base model's are laid out and checked once, those of a tuning at their refit.

Most tensors of most refits are the base model's own arrays. They are read-only, so the same object has the same values.
"""

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.engine import EngineSpec, Tensors, check_tensors


class GraphLayout:
    """The tensors of a base model in its graph's layouts. Engines of one model share it."""

    def __init__(self, spec: EngineSpec, base: Tensors | None = None) -> None:
        """`base` has all tensors, read-only.

        Raises DataLoss (WEIGHTS_CORRUPT) when they are not the spec's, and ValueError for an array that can be written.
        """
        self._specs = spec.tensors
        if base is not None:
            check_tensors(spec, base)
            writeable = sorted(name for name, tensor in base.items() if tensor.flags.writeable)
            if writeable:
                raise ValueError(f"{writeable[0]} can be written to, so that it may change after its check")
        self.base: Tensors = MappingProxyType(dict(base or {}))
        self._laid = {name: self._specs[name].to_graph(tensor) for name, tensor in self.base.items()}

    def is_base(self, name: str, tensor: NDArray[Any]) -> bool:
        """Whether this is the base model's own array."""
        return tensor is self.base.get(name)

    def contiguous(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """The tensor in the graph's layout, copied only if it must be. It is not to be written to."""
        if self.is_base(name, tensor):
            return self._laid[name]
        return np.ascontiguousarray(self._specs[name].to_graph(tensor))

    def view(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """The same without a copy, perhaps with other strides: only to be copied from."""
        return self._laid[name] if self.is_base(name, tensor) else self._specs[name].view_in_graph(tensor)
