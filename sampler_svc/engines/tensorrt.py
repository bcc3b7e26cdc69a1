"""TensorRT or TensorRT-RTX on one GPU, in fp16. A refit writes into the loaded plan; nothing is loaded again.

The plan was built with REFIT_INDIVIDUAL, and only the specification's tensors are marked
(sampler_svc/build/tensorrt.py). One block of device memory holds all new weights, each at a fixed address that the
refitter is told once. A refit is then one copy into that block and one call, both on the engine's stream.

TensorRT checks only the number and dtype of each weight, and may have written some when it returns False. So after any
failed refit the engine's weights are unknown (engine.py), and its owner replaces it.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.cuda_device import ALIGNMENT, CudaError, Device
from sampler_svc.engines.engine import Array, Engine, EngineSpec, Probe, Tensors
from sampler_svc.engines.folder import REBUILD, UnusableEngine
from sampler_svc.engines.fp16_weights import BATCH, run_in_batches, write_fp16
from sampler_svc.engines.self_test import SelfTestReport
from sampler_svc.engines.trt_api import ICudaEngine, IExecutionContext, IRuntimeCache, IRuntimeConfig, TensorRT
from sampler_svc.engines.trt_library import TENSORRT, TrtLibrary, logger_of, open_library
from unitune import telemetry
from unitune.base_model import TensorSpec
from unitune.errors import DataLoss, Internal
from unitune.fp16_graph import Fp16Spec

logger = logging.getLogger(__name__)

PLAN_FILE = "denoiser.plan"
RUNTIME_CACHE_FILE = "denoiser.runtime_cache"  # kernels that were compiled on opening (TrtLibrary)

WORKSPACE_BYTES = 4 << 30  # at most, for a kernel's scratch memory; TensorRT takes what it needs
OPTIMISATION_LEVEL = 3  # TensorRT's default; set so that it is in the key

OpenRuntime = Callable[[], tuple[TensorRT, Device, TrtLibrary]]


def facts(trt: TensorRT, device: Device, library: TrtLibrary) -> dict[str, str]:
    """What a plan depends on beside its graph. A plan is loaded only where all of these are the same."""
    return {
        "runtime": library.backend,
        "version": trt.__version__,
        **device.facts(),
        "precision": "fp16, strongly typed",
        "flags": " ".join(library.flags),
        "tf32": "off",
        "optimisation": f"level {OPTIMISATION_LEVEL}",
        "tactics": "default",
        "workspace": str(WORKSPACE_BYTES),
        "profile": f"batch {BATCH}",
        "compatibility": "this version and GPU only",
    }


def tensorrt_facts(open_runtime: OpenRuntime = open_library) -> dict[str, str]:
    """The facts of this machine. Raises BackendMissing."""
    trt, device, library = open_runtime()
    try:
        return facts(trt, device, library)
    finally:
        device.close()


class TrtEngine(Engine):
    """The denoiser in a TensorRT plan. Device memory: the plan, one more set of its weights, activations."""

    def __init__(
        self,
        folder: Path,
        spec: EngineSpec,
        trt: TensorRT,
        device: Device,
        library: TrtLibrary = TENSORRT,
        *,
        use_cuda_graph: bool = False,
    ) -> None:
        """Loads the plan and binds all addresses. The engine owns the device object and closes it.

        Raises UnusableEngine for a plan that this TensorRT or GPU does not take, or that was not built for refits.
        """
        super().__init__(spec)
        self._trt, self._device, self._library, self._use_cuda_graph = trt, device, library, use_cuda_graph
        self._graph: Any = None
        self._runtime_cache: IRuntimeCache | None = None
        self._is_closed = False
        try:
            self._fp16 = Fp16Spec.load(folder)
            self.rounding = self._fp16.rounding
            self._log = logger_of(trt)
            self._runtime = trt.Runtime(self._log)
            self._engine = self._load((folder / PLAN_FILE).read_bytes())
            self._context = self._open_context(folder / RUNTIME_CACHE_FILE)
            self._buffers = self._bind_tensors()
            self._bind_weights()
        except UnusableEngine:
            self.close()
            raise
        except (OSError, ValueError, TypeError, CudaError) as error:  # the bindings' own constructors raise TypeError
            self.close()
            raise UnusableEngine(f"the plan cannot be loaded ({error}): {REBUILD}") from error

    @classmethod
    def open_tested(cls, folder: Path, spec: EngineSpec, open_runtime: OpenRuntime = open_library) -> "TrtEngine":
        """An engine whose plan passed the engine self-test here, with a CUDA graph where that passed too.

        Raises UnusableEngine for a plan that never passed the engine self-test, and what opening raises.
        """
        try:
            report = SelfTestReport.load(folder)
        except (OSError, ValueError) as error:
            raise UnusableEngine(f"{folder} holds a plan that never passed the engine self-test: {REBUILD}") from error
        engine = cls(folder, spec, *open_runtime(), use_cuda_graph=report.cuda_graph)
        engine.rounding = max(engine.rounding, report.errors["base"])
        return engine

    def close(self) -> None:
        """Free plan and memory. TensorRT needs objects to be freed in reverse order."""
        self.weights = None
        if self._is_closed:
            return
        self._is_closed = True
        self._forget_graph()
        objects = ("_refitter", "_context", "_runtime_cache", "_engine", "_runtime")
        for name in (*objects, "_views", "_staged", "_questions", "_answer"):
            if hasattr(self, name):
                delattr(self, name)
        self._device.close()

    def keep_kernels(self, folder: Path) -> None:
        """Write the kernels that were compiled here into an engine's folder, if this library compiles any.

        The library itself refuses those of another version, driver or GPU, and compiles anew.
        """
        if self._runtime_cache is not None:
            (folder / RUNTIME_CACHE_FILE).write_bytes(bytes(memoryview(self._runtime_cache.serialize())))

    def _write(self, tensors: Tensors) -> None:
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        for name, view in self._views.items():
            write_fp16(self._fp16.tensors[name], name, tensors[name], view)
        try:
            self._device.synchronize()  # nothing may be pending on the engine on any stream
            self._device.copy_in(self._staging, self._staged)
            took = self._refitter.refit_cuda_engine_async(self._device.stream)
            self._device.synchronize()
        except CudaError as error:
            raise self._failed("a refit", str(error)) from error
        if not took:
            missing = self._refitter.get_missing_weights()
            raise self._failed("a refit", f"TensorRT refused it; {len(missing)} weights are missing")

    def _prove(self, probe: Probe) -> float:
        if self._graph is None:
            return super()._prove(probe)
        try:
            return super()._prove(probe)
        except DataLoss:
            # TensorRT does not promise that a captured graph sees a later refit. Capture and probe again: if that
            # fails, too, the graph was not the cause.
            self._forget_graph()
            ratio = super()._prove(probe)
            telemetry.event(logger, "a captured CUDA graph did not see a refit", level=logging.WARNING)
            return ratio

    def _compute(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        return run_in_batches(self._run_batch, latents, timesteps, contexts)

    def _run_batch(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        """The answer for exactly BATCH rows, at the context's fixed addresses."""
        try:
            for name, array in self.spec.inputs(latents, timesteps, contexts).items():
                self._questions[name][...] = array
                self._device.copy_in(self._buffers[name], self._questions[name])
            if not self._use_cuda_graph:
                self._enqueue()
            else:
                if self._graph is None:
                    self._enqueue()  # in its first run TensorRT prepares things that must not be captured
                    self._device.synchronize()
                    self._graph = self._device.capture(self._enqueue)
                self._device.launch(self._graph)
            self._device.copy_out(self._answer, self._buffers["out"])
            self._device.synchronize()
        except CudaError as error:
            raise self._failed("a run", str(error)) from error
        return self._answer.copy()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise self._failed("a run", "TensorRT refused it")

    def _failed(self, what: str, reason: str) -> Internal:
        """The error of an engine that must not be used again. Its weights are unknown from here on."""
        self.weights = None
        telemetry.event(logger, "the engine failed", level=logging.ERROR, detail=f"{what}: {reason}")
        return Internal(f"{what} failed on the GPU; see the sampler's log", reason="ENGINE_FAILED")

    def _forget_graph(self) -> None:
        if self._graph is not None:
            with suppress(CudaError):
                self._device.forget(self._graph)
            self._graph = None

    def _load(self, plan: bytes) -> ICudaEngine:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise UnusableEngine(f"this TensorRT does not take the plan; its log says why: {REBUILD}")
        if not engine.refittable:
            raise UnusableEngine(f"the plan cannot be refitted: {REBUILD}")
        return engine

    def _open_context(self, kept_kernels: Path) -> IExecutionContext:
        how: Any = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.is_compiled_on_opening:
            how = self._runtime_config(how, kept_kernels)
        context = self._engine.create_execution_context(how)
        if context is None:
            raise UnusableEngine("TensorRT has no memory for an execution context: free the GPU of other work")
        size = max(self._engine.device_memory_size_v2, ALIGNMENT)
        context.set_device_memory(self._device.allocate(size), size)
        return context

    def _runtime_config(self, allocation: Any, kept_kernels: Path) -> IRuntimeConfig:
        """How a context is opened whose kernels are compiled then; with those that the build has kept."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        self._runtime_cache = config.create_runtime_cache()
        if kept_kernels.is_file() and not self._runtime_cache.deserialize(kept_kernels.read_bytes()):
            telemetry.event(logger, "the kept kernels are not of this machine, and are compiled again")
        if not config.set_runtime_cache(self._runtime_cache):
            raise UnusableEngine(f"{self._library.title} takes no runtime cache: {REBUILD}")
        return config

    def _bind_tensors(self) -> dict[str, int]:
        """Allocate inputs and output; their addresses. They never change, so a captured graph may use them."""
        blank = self.spec.blank_inputs(BATCH)
        wanted: dict[str, tuple[tuple[int, ...], type, Any]] = {
            name: (array.shape, array.dtype.type, type_in_plan(self._trt, array))
            for name, array in {**blank, "out": self.spec.blank_output(BATCH)}.items()
        }
        found = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if found != wanted.keys():
            raise UnusableEngine(f"the plan takes and gives {sorted(found)}, not {sorted(wanted)}: {REBUILD}")
        self._questions: dict[str, NDArray[Any]] = {}
        buffers = {}
        for name, (shape, kind, dtype) in wanted.items():
            if self._engine.get_tensor_dtype(name) != dtype:
                raise UnusableEngine(f"{name} of the plan is {self._engine.get_tensor_dtype(name)}: {REBUILD}")
            array: NDArray[Any] = (
                self._device.pinned(int(np.prod(shape)) * np.dtype(kind).itemsize).view(kind).reshape(shape)
            )
            buffers[name] = self._device.allocate(array.nbytes)
            if not self._context.set_tensor_address(name, buffers[name]):
                raise UnusableEngine(f"TensorRT refuses an address for {name}: {REBUILD}")
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.OUTPUT:
                self._answer: Array = array
                continue
            if not self._context.set_input_shape(name, shape):
                raise UnusableEngine(f"the plan was not made for {name} of shape {list(shape)}: {REBUILD}")
            self._questions[name] = array
        return buffers

    def _bind_weights(self) -> None:
        """Give each tensor one address, and tell the refitter."""
        self._refitter = self._trt.Refitter(self._engine, self._log)
        names = self.spec.tensors.keys()
        # get_missing_weights is not enough: some releases forget weights.
        others = set(self._refitter.get_all_weights()) ^ names
        if others:
            raise UnusableEngine(
                f"the plan's refittable weights are not the model's tensors, such as {min(others)}: {REBUILD}"
            )
        offsets, size = _offsets(self._fp16.tensors)
        self._staging = self._device.allocate(size)
        self._staged = self._device.pinned(size)
        self._views: dict[str, NDArray[np.float16]] = {}
        fp16 = self._trt.DataType.HALF
        for name, offset in offsets.items():
            shape = self._fp16.tensors[name].shape_in_graph
            count = int(np.prod(shape))
            prototype = self._refitter.get_weights_prototype(name)
            if prototype.dtype != fp16 or prototype.size != count:
                wanted = f"{count} in fp16, the plan has {prototype.size} as {prototype.dtype}"
                raise UnusableEngine(f"{name} must be {wanted}: {REBUILD}")
            weights = self._trt.Weights(fp16, self._staging + offset, count)
            if not self._refitter.set_named_weights(name, weights, self._trt.TensorLocation.DEVICE):
                raise UnusableEngine(f"TensorRT refuses weights for {name}: {REBUILD}")
            self._views[name] = self._staged[offset : offset + 2 * count].view(np.float16).reshape(shape)
        missing = self._refitter.get_missing_weights()
        if missing:
            raise UnusableEngine(f"the plan wants {len(missing)} more weights, such as {missing[0]!r}: {REBUILD}")


def type_in_plan(trt: TensorRT, array: NDArray[Any]) -> Any:
    """The type that an input or output of a plan has, for the array that is copied in or out."""
    return trt.DataType.INT64 if array.dtype == np.int64 else trt.DataType.FLOAT


def _offsets(tensors: Mapping[str, TensorSpec]) -> tuple[dict[str, int], int]:
    """Each tensor's offset in the block, aligned as cudaMalloc aligns, and the block's size in bytes."""
    offsets, size = {}, 0
    for name, tensor in sorted(tensors.items()):
        offsets[name] = size
        size += -(-2 * int(np.prod(tensor.shape)) // ALIGNMENT) * ALIGNMENT
    return offsets, size
