"""Control over a denoiser's attention maps: inputs of its controlled graph (Prompt-to-Prompt, arXiv 2208.01626).

A map is a softmax over keys: of cross-attention (heads, positions, tokens), of self-attention (heads, positions,
positions). The controlled graph uses, for every row i of a batch and in every layer,

    cross:  map[source[i]] @ mapper[i] + map[i] * own[i]
    self:   map[source[i]] where share[i] is 1, map[i] where it is 0, in layers of at most MAX_POSITIONS,
            or in the smallest where all are larger (SDXL at 1024 pixels)

before it multiplies with the row's own values. Word swap, refinement and reweighting are settings of these arrays.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONTROLLED_FILE = "denoiser_controlled.onnx"  # its weights are those of denoiser.onnx, in the same data file
OUT, MAPS = "out", "attention_maps"  # its outputs
MAX_POSITIONS = 256  # 16 x 16: in published runs, the layers with injected self-attention and with read maps


class Controls(NamedTuple):
    """One row for each of the n rows of a batch. The names are those of the graph's inputs."""

    source: NDArray[np.int64]  # (n,): the row whose maps this row may take
    mapper: NDArray[np.float32]  # (n, tokens, tokens): from the source's token to this row's
    own: NDArray[np.float32]  # (n, tokens): share that is kept of each of the row's own columns
    share: NDArray[np.float32]  # (n,): of the source's self-attention, 0 to 1


def no_controls(batch: int, tokens: int) -> Controls:
    """Every row keeps its own maps: the controlled graph then answers like the plain one."""
    return Controls(
        np.arange(batch, dtype=np.int64),
        np.zeros((batch, tokens, tokens), dtype=np.float32),
        np.ones((batch, tokens), dtype=np.float32),
        np.zeros(batch, dtype=np.float32),
    )
