"""What fp16 engines share: rounding weights into the fp16 graph's layout, and running in batches of one size."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.engine import Array, Tensors, corrupt
from unitune.base_model import TensorSpec
from unitune.settings import num_cores

# Rows of a run. Guidance needs two, and with one fixed shape a runtime can choose its kernels and keep its addresses.
BATCH = 2

Compute = Callable[[Array, NDArray[np.int64], Array], Array]


def write_fp16(spec: TensorSpec, name: str, tensor: NDArray[np.generic], into: NDArray[np.float16]) -> None:
    """Round a tensor to fp16, in the layout and shape of the graph, into `into`.

    Raises DataLoss (WEIGHTS_CORRUPT) for values beyond fp16's range.
    """
    with np.errstate(over="ignore"):  # checked below
        np.copyto(into, spec.view_in_graph(tensor), casting="same_kind")
    if not np.isfinite(into).all():
        raise corrupt("a tensor holds values beyond the range of fp16", name)


def rounded(specs: Mapping[str, TensorSpec], tensors: Tensors) -> dict[str, NDArray[np.float16]]:
    """New arrays of all tensors as `write_fp16` writes them, with a thread for every core. Raises DataLoss.

    numpy releases the interpreter's lock while it rounds.
    """

    def one(name: str) -> NDArray[np.float16]:
        array = np.empty(specs[name].shape_in_graph, dtype=np.float16)
        write_fp16(specs[name], name, tensors[name], array)
        return array

    with ThreadPoolExecutor(num_cores()) as pool:
        return dict(zip(specs, pool.map(one, specs), strict=True))


def run_in_batches(compute: Compute, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
    """Run any number of rows through a computation of exactly BATCH rows; its last row fills the last batch."""
    rows = len(latents)
    index = np.minimum(np.arange(-(-rows // BATCH) * BATCH), rows - 1)
    answers = [
        compute(latents[part], timesteps[part], contexts[part])  # copies, and so contiguous
        for part in index.reshape(-1, BATCH)
    ]
    return np.concatenate(answers)[:rows] if answers else np.empty_like(latents)
