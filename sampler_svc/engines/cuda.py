"""ONNX Runtime on CUDA, in fp16. Weights are in the engine's device memory, and a refit writes there.

The runtime does not promise that a session sees writes to an initializer that it was given. The graph was optimised at
the build and is not optimised again, so nothing should keep a copy. If something does, the probe finds the old weights,
and from then on every refit opens a new session.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sampler_svc.engines.cpu import Graph, backend, session_options
from sampler_svc.engines.cuda_device import open_device
from sampler_svc.engines.engine import Array, BackendMissing, Engine, EngineSpec, RefitReport, Tensors, WeightSet
from sampler_svc.engines.folder import REBUILD, UnusableEngine
from sampler_svc.engines.fp16_weights import BATCH, rounded, run_in_batches
from sampler_svc.engines.self_test import SelfTestReport
from unitune import telemetry
from unitune.errors import DataLoss, Internal
from unitune.fp16_graph import Fp16Spec
from unitune.graph_files import DENOISER

logger = logging.getLogger(__name__)

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
BATCH_AXIS = "n"  # name of the batch's dimension in exported graphs
CUDA_OPTIONS = {
    "use_tf32": "0",  # fp32 in the graph must stay fp32
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search may choose other kernels in every session
    "arena_extend_strategy": "kSameAsRequested",
}

# The build takes the first that loses no tensor: fusions for a GPU may pack several weights into one.
OFFLINE_OPTIMISATIONS = ("ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")


def has_cuda() -> bool:
    """Whether this onnxruntime was built for CUDA."""
    return CUDA in onnxruntime.get_available_providers()


def check_cuda() -> None:
    """Raises BackendMissing unless this onnxruntime was built for CUDA."""
    if not has_cuda():
        providers = ", ".join(onnxruntime.get_available_providers())
        raise BackendMissing(
            f"onnxruntime {onnxruntime.__version__} here has {providers} but not {CUDA}: "
            "pip uninstall onnxruntime, then pip install 'unitune[sampler-gpu]'"
        )
    # Without this, CUDA's libraries in Python packages are not found.
    onnxruntime.preload_dlls(directory="")


def cuda_facts(provider: str = CUDA) -> dict[str, str]:
    """What a built graph depends on. Raises BackendMissing without a CUDA build of onnxruntime, a driver and a GPU."""
    device = {"device": "cpu"}
    if provider == CUDA:
        check_cuda()
        gpu = open_device()
        device = gpu.facts()
        gpu.close()
    return {
        "runtime": "onnxruntime-cuda",
        "version": backend()["version"],
        **device,
        "precision": "fp16",
        "options": " ".join(f"{name}={value}" for name, value in sorted(CUDA_OPTIONS.items())),
        "optimisation": f"first of {', '.join(OFFLINE_OPTIMISATIONS)}",
        "profile": f"batch {BATCH}",
    }


def open_on(
    provider: str, path: Path, options: onnxruntime.SessionOptions, *, use_cuda_graph: bool = False
) -> onnxruntime.InferenceSession:
    """A session with this provider first. Raises BackendMissing if the runtime has silently chosen another one."""
    providers: list[Any] = [provider]
    if provider == CUDA:
        providers = [(CUDA, CUDA_OPTIONS | {"enable_cuda_graph": str(int(use_cuda_graph))}), CPU]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    if session.get_providers()[0] != provider:
        raise BackendMissing(f"onnxruntime cannot start {provider}: its libraries or the driver are missing or too old")
    return session


def fixed_batch(options: onnxruntime.SessionOptions) -> onnxruntime.SessionOptions:
    """The options for runs of exactly BATCH rows. Then no node computes shapes, which would run on the CPU."""
    options.add_free_dimension_override_by_name(BATCH_AXIS, BATCH)
    return options


class CudaGraph(Graph):
    """A graph of the base model that no tuning changes, on the GPU, in fp32."""

    is_on_cpu = False

    def _open(self, path: Path, threads: int) -> onnxruntime.InferenceSession:
        return open_on(CUDA, path, session_options(threads))


class OrtCudaEngine(Engine):
    """The fp16 graph in ONNX Runtime. `provider` is CUDA; tests run the same code with the CPU provider."""

    def __init__(
        self,
        folder: Path,
        spec: EngineSpec,
        *,
        provider: str = CUDA,
        in_place: bool = True,
        use_cuda_graph: bool = False,
    ) -> None:
        """Reads the specification; the graph is loaded by the first refit. Raises OSError and ValueError."""
        super().__init__(spec)
        self._path, self._provider, self._use_cuda_graph = folder / DENOISER, provider, use_cuda_graph
        self._device = "cuda" if provider == CUDA else "cpu"
        self._fp16 = Fp16Spec.load(folder)
        self.rounding = self._fp16.rounding
        self._in_place = in_place
        self._session: onnxruntime.InferenceSession | None = None
        self._binding: Any = None
        self._weights: dict[str, onnxruntime.OrtValue] = {}

    @classmethod
    def open_tested(cls, folder: Path, spec: EngineSpec, provider: str = CUDA) -> "OrtCudaEngine":
        """An engine in the way that passed the engine self-test. Raises UnusableEngine without its report."""
        try:
            found = SelfTestReport.load(folder)
        except (OSError, ValueError) as error:
            raise UnusableEngine(f"{folder} holds a graph that never passed the engine self-test: {REBUILD}") from error
        engine = cls(folder, spec, provider=provider, in_place=found.in_place, use_cuda_graph=found.cuda_graph)
        engine.rounding = max(engine.rounding, found.errors["base"])
        return engine

    def refit(self, weights: WeightSet) -> RefitReport:
        """As Engine.refit. If the probe does not see a write in place, a new session is opened."""
        wrote_in_place = self._session is not None and self._in_place
        try:
            return super().refit(weights)
        except DataLoss:
            if not wrote_in_place or self.weights is not None:  # nothing was written, or a new session was open
                raise
        self._in_place, self._session = False, None
        try:
            report = super().refit(weights)
        except DataLoss:
            self._in_place = True  # the weights are wrong in both ways
            raise
        telemetry.event(logger, "this runtime does not see weights written in place", level=logging.WARNING)
        return report

    def close(self) -> None:
        """Free session and device memory."""
        self.weights, self._session, self._binding = None, None, None
        self._weights = {}

    def _write(self, tensors: Tensors) -> None:
        arrays = rounded(self._fp16.tensors, tensors)
        if self._session is None or not self._in_place:
            self._open(arrays)
            return
        for name, array in arrays.items():
            self._weights[name].update_inplace(array)

    def _open(self, arrays: dict[str, NDArray[np.float16]]) -> None:
        """Open a new session with new memory, after freeing the old one's."""
        self._session, self._binding = None, None
        self._weights = {name: self._value(array) for name, array in arrays.items()}
        options = fixed_batch(session_options(0, "ORT_DISABLE_ALL"))
        options.add_session_config_entry("session.disable_prepacking", "1")  # packed copies would keep old weights
        # An initializer must not own its memory, so a session gets a view of each value.
        views = {name: onnxruntime.OrtValue.from_dlpack(value) for name, value in self._weights.items()}
        for name, view in views.items():
            options.add_initializer(name, view)
        self._session = open_on(self._provider, self._path, options, use_cuda_graph=self._use_cuda_graph)
        blank = self.spec.blank_inputs(BATCH)
        self._inputs = {name: self._value(array) for name, array in blank.items()}
        self._output = self._value(self.spec.blank_output(BATCH))
        self._binding = self._session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("out", self._output)

    def _value(self, array: NDArray[Any]) -> onnxruntime.OrtValue:
        """A copy of the array in device memory; on the CPU, in memory that the value owns."""
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self._device, 0)
        value.update_inplace(array)
        return value

    def _compute(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        return run_in_batches(self._run_batch, latents, timesteps, contexts)

    def _run_batch(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        if self._session is None:
            raise RuntimeError("the engine is closed")
        try:
            for name, array in self.spec.inputs(latents, timesteps, contexts).items():
                self._inputs[name].update_inplace(array)
            self._session.run_with_iobinding(self._binding)
            answer: Array = self._output.numpy().copy()
        except Exception as error:  # the runtime has many kinds, undocumented
            self.weights = None
            telemetry.failure(logger, "the engine failed")
            raise Internal("a run failed on the GPU; see the sampler's log", reason="ENGINE_FAILED") from error
        return answer
