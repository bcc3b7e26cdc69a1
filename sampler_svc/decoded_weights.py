"""Decoded weights of the tunings used last, in the memory of the host: a refit with them reads and decodes nothing."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from sampler_svc.engines.engine import WeightSet
from sampler_svc.engines.weights import CompletedTensors
from unitune import metrics

VALUE_BYTES = 4  # of a decoded tensor, which is fp32


class DecodedWeights:
    """Sets of weights, each tensor of which is decoded once, within a bound of bytes. Thread-safe."""

    def __init__(self, most_bytes: int) -> None:
        """0 bytes keep nothing."""
        self._most_bytes = most_bytes
        # By the digest of the tuning and the model that they are for, the one used last at the end; with their bytes.
        self._kept: OrderedDict[tuple[str, str], tuple[WeightSet, int]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, digest: str, model: str = "") -> WeightSet | None:
        """The set that is kept of a tuning, for one of the models that it may be of."""
        with self._lock:
            if (digest, model) not in self._kept:
                return None
            self._kept.move_to_end((digest, model))
            return self._kept[digest, model][0]

    def keep(self, weights: WeightSet, model: str = "") -> WeightSet:
        """The same set, whose tensors stay decoded once they are, if it is within the bound alone. Others give way."""
        tensors = weights.tensors
        assert isinstance(tensors, CompletedTensors)  # a tuning's
        size_bytes = sum(VALUE_BYTES * tensors.base[name].size for name in tensors.tuned if name in tensors.base)
        if not 0 < size_bytes <= self._most_bytes:
            return weights
        kept = replace(weights, tensors=CompletedTensors(DecodedOnce(tensors.tuned), tensors.base))
        with self._lock:
            self._kept.pop((weights.id, model), None)
            self._kept[weights.id, model] = kept, size_bytes
            while self._size_bytes > self._most_bytes:
                self._kept.popitem(last=False)
            metrics.KEPT_WEIGHTS_BYTES.set(self._size_bytes)
        return kept

    def digests(self) -> list[str]:
        """The tunings of which any set is kept, the one used last at the end."""
        with self._lock:
            return list(dict.fromkeys(digest for digest, _ in reversed(self._kept)))[::-1]

    def forget(self, digest: str) -> None:
        """Keep nothing of a tuning."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == digest]:
                del self._kept[key]
            metrics.KEPT_WEIGHTS_BYTES.set(self._size_bytes)

    @property
    def _size_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes in self._kept.values())


class DecodedOnce(Mapping[str, NDArray[Any]]):
    """Tensors, each read-only and in memory from the first time on that it is asked for."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = tensors
        self._decoded: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._decoded:
            tensor = self._tensors[name]
            tensor.setflags(write=False)  # the engine that gets it next must find the same
            self._decoded[name] = tensor
            if len(self._decoded) == len(self._tensors):
                self._tensors = self._decoded  # what they were decoded from takes memory, too
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # Mapping's own would decode the tensor
