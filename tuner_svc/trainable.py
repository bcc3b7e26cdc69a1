"""The tensors that a tuning may change, by name, and their copies that it does change.

The denoiser runs with `replacements()` in place of its tensors of the same names (torch.func.functional_call). So the
base model is never written to, and all other tensors are neither differentiated nor optimised.
"""

import math
import re
from collections.abc import Mapping
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import linear

from unitune.choices import MODES

LORA_RANK = 16
LORA_ALPHA = 16.0

# Both self-attention (attn1) and cross-attention (attn2), as in the one known port to Stable Diffusion.
_NAMES = {
    "full": re.compile(r""),
    "attn_out": re.compile(r"\.attn[12]\.to_out\.0\.(weight|bias)$"),
    "lora": re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)\.weight$"),
}


class Trainable(Protocol):
    """Parameters for the optimizer, and the denoiser's tensors computed from them."""

    def parameters(self) -> list[Tensor]:
        """The tensors that the optimizer changes."""
        ...

    def replacements(self) -> dict[str, Tensor]:
        """What a pass of the denoiser has in place of its own tensors, by their name there; differentiable."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Dense tensors by their name in the denoiser, as they are now; differentiable."""
        ...

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Low-rank factors (up, down) of each tensor's change, if those are tuned; without gradient."""
        ...


def trainable_parameters(unet: UNet2DConditionModel, mode: str) -> dict[str, Tensor]:
    """The denoiser's tensors that a tuning in this mode may change, by name.

    `full`: all. `attn_out`: output projections of the attention layers, weights and biases. `lora`: weights of the
    attention layers' four projections. Raises ValueError for another mode, or when the denoiser has no such tensor.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: it must be one of {', '.join(MODES)}")
    found = {name: tensor for name, tensor in unet.named_parameters() if _NAMES[mode].search(name)}
    if not found:
        raise ValueError(f"mode is {mode!r}: this base model has no tensor that it would change")
    return found


def trainable(unet: UNet2DConditionModel, mode: str, generator: torch.Generator) -> Trainable:
    """What the optimizer changes in this mode, from the base model. Raises as `trainable_parameters` does."""
    base = trainable_parameters(unet, mode)
    if mode != "lora":
        return Dense(base)
    for name in base:
        _give_side_branch(unet.get_submodule(name.removesuffix(".weight")))
    return LowRank(base, generator)


class Dense:
    """A copy of every tensor that may change."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        self._weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in base.items()}

    def parameters(self) -> list[Tensor]:
        return list(self._weights.values())

    def replacements(self) -> dict[str, Tensor]:
        return dict(self._weights)

    def weights(self) -> dict[str, Tensor]:
        return dict(self._weights)

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {}


class LowRank:
    """W + (alpha / rank) B A for every tensor that may change (Hu et al., 2021, section 4.1); B begins at zero.

    In a pass of the denoiser the factors are a side branch of their layer, so that nothing of the size of W is made,
    nor of its gradient.
    """

    def __init__(self, base: Mapping[str, Tensor], generator: torch.Generator) -> None:
        self._base = {name: tensor.detach() for name, tensor in base.items()}
        self._down: dict[str, Tensor] = {}
        self._up: dict[str, Tensor] = {}
        for name, tensor in self._base.items():
            rows, columns = tensor.shape
            rank = min(LORA_RANK, rows, columns)
            bound = 1 / math.sqrt(columns)  # of torch.nn.Linear's own initialisation
            down = (2 * torch.rand((rank, columns), generator=generator) - 1) * bound
            self._down[name] = down.to(tensor.device).requires_grad_()
            self._up[name] = torch.zeros((rows, rank), device=tensor.device, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [*self._down.values(), *self._up.values()]

    def replacements(self) -> dict[str, Tensor]:
        scale = LORA_ALPHA / LORA_RANK
        found: dict[str, Tensor] = {}
        for name in self._base:
            layer = name.removesuffix("weight")
            found |= {f"{layer}down": self._down[name], f"{layer}up": scale * self._up[name]}
        return found

    def weights(self) -> dict[str, Tensor]:
        scale = LORA_ALPHA / LORA_RANK
        return {name: tensor + scale * (self._up[name] @ self._down[name]) for name, tensor in self._base.items()}

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        scale = LORA_ALPHA / LORA_RANK
        return {name: (scale * self._up[name].detach(), self._down[name].detach()) for name in self._base}


class _WithSideBranch(nn.Linear):
    """x W^T + b, and (x A^T) B^T beside it while a pass has the factors A and B in place of None."""

    down: Tensor | None
    up: Tensor | None

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        output = super().forward(input)
        if self.down is None or self.up is None:
            return output
        return output + linear(linear(input, self.down), self.up)


def _give_side_branch(layer: nn.Module) -> None:
    """The layer itself stays, with its tensors, and answers as before as long as it has no factors.

    The factors are its parameters, so that a block that runs again in the backward pass has them, too.
    """
    if isinstance(layer, _WithSideBranch):
        return
    assert type(layer) is nn.Linear, "every projection of UNet2DConditionModel's attention is one"
    layer.__class__ = _WithSideBranch
    layer.register_parameter("down", None)
    layer.register_parameter("up", None)
