"""Convolutions in this CPU's own layout, in the graph of engines that are refitted in place.

ONNX Runtime's fastest convolutions work on blocks of channels, as many as a vector register holds. The build has found
each tensor among the reordered weights (sampler_svc/build/cpu_layout.py); a refit reorders in the same way.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LAID_OUT = "denoiser_cpu.onnx"
LAYOUT_FILE = "denoiser_cpu.json"


@dataclass(frozen=True)
class Blocked:
    """A convolution's tensor in blocks: its initializer, and the channels in a block of its outputs and of its inputs.

    Inputs are not in blocks (1) if the convolution reads a plain layout.
    """

    initializer: str
    outputs: int
    inputs: int = 1

    def view(self, tensor: NDArray[np.generic]) -> NDArray[np.generic]:
        """A kernel (out, in, h, w) as (out / outputs, in / inputs, h, w, inputs, outputs), or a bias (out,); both
        padded with zeros to whole blocks of outputs. Copies only what is padded."""
        rest = -len(tensor) % self.outputs
        if rest:
            tensor = np.pad(tensor, [(0, rest)] + [(0, 0)] * (tensor.ndim - 1))
        if tensor.ndim == 1:
            return tensor
        out, into, height, width = tensor.shape
        blocks = (out // self.outputs, self.outputs, into // self.inputs, self.inputs, height, width)
        return tensor.reshape(blocks).transpose(0, 2, 4, 5, 3, 1)

    def shape_in_graph(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The initializer's shape for a tensor of this one: only padding of the first axis changes it."""
        return (-(-shape[0] // self.outputs) * self.outputs, *shape[1:])


def read_layouts(folder: Path) -> dict[str, Blocked] | None:
    """The tensors in blocks, by name; None for a folder without such a graph."""
    try:
        text = (folder / LAYOUT_FILE).read_text()
    except FileNotFoundError:
        return None
    return {name: Blocked(**fields) for name, fields in json.loads(text).items()}
