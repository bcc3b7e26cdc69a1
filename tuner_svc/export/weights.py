"""A network's tensors as one file: the sampler's base weights, and the external data of its graphs.

Random tensors, of which no two are equal, tell initializers apart and check a graph. They are drawn one by one, from a
seed and the tensor's place, and written to a file of the same layout: a graph takes them by lying beside it.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from unitune.tensor_file import Place, write_tensors

M = TypeVar("M", bound=nn.Module)

SEED_STEP = 1_000_003  # between the seeds of two sets: more than a network has tensors


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Write tensors as they are. Returns where each lies."""
    return _write(path, tensors, lambda name: tensors[name])


def write_random_weights(path: Path, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Place]:
    """Write random tensors in their place: as `write_weights` does, in the same layout."""
    places = {name: place for place, name in enumerate(tensors)}
    return _write(path, tensors, lambda name: random_tensor(tensors[name], seed, places[name]))


def random_tensor(tensor: Tensor, seed: int, place: int) -> Tensor:
    """A tensor disturbed, of its own scale: no two are equal, not even norms."""
    generator = torch.Generator().manual_seed(SEED_STEP * seed + place)
    size = 0.1 * tensor.std(correction=0) + 0.02
    return torch.randn(tensor.shape, generator=generator).mul_(size.cpu()).add_(tensor.cpu())


def randomised(module: M, seed: int = 0) -> M:
    """A copy of a module whose UNet, as `unet`, has random tensors."""
    tensors = module.unet.state_dict()
    return holding(module, {name: random_tensor(tensor, seed, n) for n, (name, tensor) in enumerate(tensors.items())})


def holding(module: M, tensors: Mapping[str, Tensor]) -> M:
    """The same module over other tensors of its UNet; nothing is copied."""
    own = [*module.parameters(), *module.buffers()]
    other = copy.deepcopy(module, {id(tensor): tensor for tensor in own})
    other.unet.load_state_dict(tensors, strict=True, assign=True)
    return other.requires_grad_(False)


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. They lie in its memory map, and must not be written to."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def _write(path: Path, tensors: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> dict[str, Place]:
    kinds = {name: (np.float32, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_tensors(path, kinds, lambda name: value(name).detach().cpu().numpy())
