"""What a method made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Tuned:
    """The denoiser's tensors that a tuning changed, dense fp32, by name; the loss of every update; and `extras`, the
    embeddings that a method needs beside them, by the names of unitune.weights.Manifest."""

    tensors: dict[str, Tensor]
    losses: list[float]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
