"""ONNX Runtime on the CPU. A refit opens a new session over the built graph with other external initializers.

Only this way checks names, shapes and dtypes in the runtime and takes effect before graph optimisation; quicker ways
can leave a silent mixture of old and new weights. Every tensor of the spec must be stored externally:
sampler_svc/build/cpu.py checks that.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sampler_svc.engines.engine import Array, Engine, EngineSpec, Tensors
from sampler_svc.engines.layout import GraphLayout
from unitune.settings import num_cores

DENOISER = "denoiser.onnx"
# Offline, only what holds for any weights on any CPU: ENABLE_ALL would reorder weights, and a refit would miss them.
OFFLINE_OPTIMISATION = "ORT_ENABLE_EXTENDED"
OPTIMISATION = "ORT_ENABLE_ALL"
NEW_SESSION = "new_session"


def backend() -> dict[str, str]:
    """The runtime: what an engine folder must have been built for."""
    return {
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "device": "cpu",
        "optimisation": f"{OFFLINE_OPTIMISATION}, then {OPTIMISATION}",
    }


def session_options(threads: int, optimisation: str = OPTIMISATION) -> onnxruntime.SessionOptions:
    """Options of every session: 0 threads means one for each core that this process may use."""
    options = onnxruntime.SessionOptions()
    # The default counts the machine's cores, and pins threads to cores that a container may not use.
    options.intra_op_num_threads = threads or num_cores()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimisation)
    # Threads spin while they wait for the next operator, which is fast. By default they also spin for tens of
    # milliseconds after a run, and slow down the next graph, which has other threads, and all else on these cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors, which are also raised; warnings are about the graph's history
    return options


def open_session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on the CPU. Raises what onnxruntime raises."""
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_refitted(
    path: Path, options: onnxruntime.SessionOptions, arrays: Mapping[str, Array]
) -> onnxruntime.InferenceSession:
    """A session whose external initializers are these arrays, contiguous and in the graph's layout."""
    # On the CPU an OrtValue is a bare pointer that does not keep its array alive. The arrays must live until the
    # session is open; it has then copied everything (a test checks this).
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    return open_session(path, options)


class Graph:
    """A graph of the base model that no tuning changes: its inputs in their order, one output."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = self._open(path, threads)
        nodes = self._session.get_inputs()
        self._inputs, self.input_shape = [node.name for node in nodes], tuple(nodes[0].shape)

    def __call__(self, *arrays: NDArray[Any]) -> Array:
        """The graph's output for a batch."""
        (output,) = self._session.run(None, dict(zip(self._inputs, arrays, strict=True)))
        return output

    def _open(self, path: Path, threads: int) -> onnxruntime.InferenceSession:
        return open_session(path, session_options(threads))


class OrtEngine(Engine):
    """The denoiser in ONNX Runtime, fp32.

    The two halves of a batch, which are the two passes of guidance, run in parallel: they wait for each other once a
    step, not at every operator. A single row has one thread less: with two threads, one.
    """

    rows_are_independent = True  # so halves of a batch can be computed in parallel

    def __init__(self, folder: Path, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None) -> None:
        """Opens nothing: the engine runs after its first refit, even with the base weights.

        Refits cost less with a layout that has the base weights.
        """
        self._layout = layout or GraphLayout(spec)
        super().__init__(spec, self._layout.base)
        self._path, self._threads = folder / DENOISER, threads or num_cores()
        self._session: onnxruntime.InferenceSession | None = None
        self._other_half: ThreadPoolExecutor | None = None
        if self.rows_are_independent and self._threads > 1:
            self._threads -= 1  # both calling threads compute, too
            self._other_half = ThreadPoolExecutor(1, thread_name_prefix="half of a batch")

    def close(self) -> None:
        """Free the session."""
        self.weights, self._session = None, None
        if self._other_half is not None:
            self._other_half.shutdown()

    def _write(self, tensors: Tensors) -> None:
        arrays = {name: self._layout.contiguous(name, tensors[name]) for name in self.spec.tensors}
        self._session = open_refitted(self._path, session_options(self._threads), arrays)

    def _compute(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        if len(latents) < 2 or self._other_half is None:
            return self._run(latents, timesteps, contexts)
        one, other = zip(*(np.array_split(array, 2) for array in (latents, timesteps, contexts)), strict=True)
        beside = self._other_half.submit(self._run, *other)
        try:
            output = self._run(*one)
        finally:
            wait([beside])  # on an error, too: the caller may then close the engine
        return np.concatenate([output, beside.result()])

    def _run(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        if self._session is None:
            raise RuntimeError("the engine is closed")
        (output,) = self._session.run(["out"], self.spec.inputs(latents, timesteps, contexts))
        return output
