"""The result of a method."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Tuned:
    """The denoiser's tensors that a tuning changed, dense fp32, by name; and the loss of every update.

    `factors` are (up, down) of a LoRA tuning, whose product is the change of the tensor of that name. `extras` are the
    embeddings that a method needs beside the tensors, by the names of unitune.weights.Manifest. `bound_to` are settings
    that an edit with them must share. `super_resolution` has the changed tensors of each stage that was tuned, too.
    """

    tensors: dict[str, Tensor]
    losses: list[float]
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    bound_to: Mapping[str, Any] = field(default_factory=dict)
    super_resolution: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
