"""ONNX Runtime on the CPU. A refit opens a new session over the built graph with other external initializers.

Only this way checks names, shapes and dtypes in the runtime and takes effect before graph optimisation; quicker ways
can leave a silent mixture of old and new weights. Every tensor of the spec must be stored externally:
sampler_svc/build/cpu.py checks that.

The base weights are read from the file beside the graph. A tuning's tensors are arrays, or, where they may be large,
lie in a file of their own, into which they are decoded one by one.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sampler_svc.engines.changed_tensors import ChangedTensors
from sampler_svc.engines.engine import Array, Engine, EngineSpec, Tensors, check_names, check_tensor
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.onnx_file import initializers
from unitune.base_model import is_large
from unitune.free_memory import give_back_memory
from unitune.graph_files import DENOISER
from unitune.settings import num_cores

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


def session_options(
    threads: int, optimisation: str = OPTIMISATION, *, is_packed: bool = True
) -> onnxruntime.SessionOptions:
    """Options of every session: 0 threads means one for each core that this process may use. If weights are not packed,
    products of matrices take longer, and read them where they are mapped."""
    options = onnxruntime.SessionOptions()
    # The default counts the machine's cores, and pins threads to cores that a container may not use.
    options.intra_op_num_threads = threads or num_cores()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimisation)
    # Threads spin while they wait for the next operator, which is fast. By default they also spin for tens of
    # milliseconds after a run, and slow down the next graph, which has other threads, and all else on these cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not is_packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # A plan of memory for each size that was ever run would stay; without, memory is bounded by the largest size.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors, which are also raised; warnings are about the graph's history
    return options


def open_session(path: Path | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on the CPU, for a graph's file or its bytes. Raises what onnxruntime raises."""
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_options(*, gives_back: bool) -> onnxruntime.RunOptions:
    """Options of a run. With `gives_back` the session gives back the memory of this run's and earlier activations."""
    options = onnxruntime.RunOptions()
    if gives_back:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def open_plain(path: Path) -> onnxruntime.InferenceSession:
    """A session that optimises and packs nothing, so that its weights stay where they are mapped."""
    return open_session(path, session_options(0, "ORT_DISABLE_ALL", is_packed=False))


def open_refitted(
    path: Path | bytes, options: onnxruntime.SessionOptions, arrays: Mapping[str, NDArray[Any]]
) -> onnxruntime.InferenceSession:
    """A session with these arrays, contiguous and in the graph's layout, in place of external initializers."""
    # On the CPU an OrtValue is a bare pointer that does not keep its array alive. The arrays must live until the
    # session is open; it has then copied everything (a test checks this).
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    if arrays:
        options.add_external_initializers(list(arrays), values)
    return open_session(path, options)


class Graph:
    """A graph of the base model that no tuning changes: its inputs in their order, one output.

    A large one leaves its weights where they are mapped, and gives the memory of its activations back after a run.
    """

    is_on_cpu = True

    def __init__(self, path: Path, threads: int) -> None:
        self._is_large = path.with_name(f"{path.name}.data").exists()
        self._session = self._open(path, threads)
        self._run_options = run_options(gives_back=self._is_large and self.is_on_cpu)
        nodes = self._session.get_inputs()
        self._inputs, self.input_shape = [node.name for node in nodes], tuple(nodes[0].shape)

    def __call__(self, *arrays: NDArray[Any]) -> Array:
        """The graph's output for a batch."""
        feed = dict(zip(self._inputs, arrays, strict=True))
        (output,) = self._session.run(None, feed, self._run_options)
        return output

    def _open(self, path: Path, threads: int) -> onnxruntime.InferenceSession:
        return open_session(path, session_options(threads, is_packed=not self._is_large))


class OrtEngine(Engine):
    """The denoiser in ONNX Runtime, fp32.

    The two halves of a batch, which are the two passes of guidance, run in parallel: they wait for each other once a
    step, not at every operator. A single row has one thread less: with two threads, one.
    """

    halves_batches = True  # and computes the halves in parallel

    def __init__(self, folder: Path, spec: EngineSpec, threads: int = 0, layout: GraphLayout | None = None) -> None:
        """Opens nothing: the engine runs after its first refit, even with the base weights.

        Refits cost less with a layout that has the base weights.
        """
        self._layout = layout or GraphLayout(spec)
        super().__init__(spec, self._layout.base)
        self._is_large = is_large(sum(tensor.size_bytes for tensor in spec.tensors.values()))
        self._path, self._threads = folder / DENOISER, threads or num_cores()
        self._session: onnxruntime.InferenceSession | None = None
        self._run_options = run_options(gives_back=False)
        self._other_half: ThreadPoolExecutor | None = None
        if self.halves_batches and self._threads > 1:
            self._threads -= 1  # both calling threads compute, too
            self._other_half = ThreadPoolExecutor(1, thread_name_prefix="half of a batch")

    def rest(self) -> None:
        """Give back the memory of activations, as much as half of the weights, by a run of the smallest latent.

        After every run it would cost some percent of a step. Of small models, memory is kept.
        """
        if self._session is None or not self._is_large or not self.spec.step:
            return
        channels, *_ = self.spec.latent
        _, timesteps, contexts = self.spec.question(0)
        smallest = np.zeros((1, channels, self.spec.step, self.spec.step), dtype=np.float32)
        self._run_options = run_options(gives_back=True)
        try:
            self._compute(smallest, timesteps[:1], contexts[:1])
        finally:
            self._run_options = run_options(gives_back=False)
        give_back_memory()

    def close(self) -> None:
        """Free the session."""
        self.weights, self._session = None, None
        give_back_memory()
        if self._other_half is not None:
            self._other_half.shutdown()

    def _checked(self, tensors: Tensors) -> Tensors:
        """Those that are not the base model's, after the checks of all."""
        check_names(self.spec, tensors)
        places = initializers(self._path.read_bytes()) if self._is_large else {}
        changed = ChangedTensors(self._path.parent, places)
        try:
            for name, spec in self.spec.tensors.items():
                tensor = tensors[name]
                check_tensor(self.spec, name, tensor, self._known)
                if not self._layout.is_base(name, tensor):
                    changed.add(name, spec.to_graph(tensor))
        except BaseException:
            changed.close()
            raise
        return changed

    def _write(self, tensors: Tensors) -> None:
        changed = tensors if isinstance(tensors, ChangedTensors) else self._checked(tensors)
        assert isinstance(changed, ChangedTensors)
        self._session = None  # the old weights go before the new ones take their memory
        give_back_memory()
        options = session_options(self._threads)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._path.parent))
        try:
            self._session = open_refitted(changed.graph(self._path), options, changed)
        finally:
            changed.close()
            give_back_memory()

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
        (output,) = self._session.run(["out"], self.spec.inputs(latents, timesteps, contexts), self._run_options)
        return output
