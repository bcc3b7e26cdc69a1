"""A fake GPU: CUDA's runtime, and of TensorRT what needs one, as far as sampler_svc/engines/trt_api.py names them.

Logger, parser, network, builder configuration, profile and enums are the real ones of TensorRT-RTX. From the plan on it
is a fake, because nothing real can run here: a build needs a driver. It proves nothing about speed, accuracy or
TensorRT's own mistakes. It does compute: a plan runs its ONNX graph on ONNX Runtime with the weights that were
refitted, from the addresses that it was told, so names, layouts, dtypes, offsets and order are tested.

What is documented of the real thing and easily got wrong is enforced: work happens no sooner than the stream is
synchronised; TensorRT refuses by False or None and never raises; a refit of too few weights is refused; a first run
cannot be captured; memory must be there, and of the size that is asked of it. `Faults` makes it fail on demand.
"""

import ctypes
import enum
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from sampler_svc.engines.cuda_device import Device
from sampler_svc.engines.trt_library import TENSORRT, TENSORRT_RTX, TrtLibrary, check_version
from tests.sampler_svc.rtx import real_rtx

VERSION, RTX_VERSION = "11.4.0.106", "1.7.1.116"
INVALID_VALUE, NO_DEVICE, ILLEGAL_ADDRESS, CAPTURE_UNSUPPORTED = 1, 100, 700, 900
ERRORS = {
    0: b"no error",
    INVALID_VALUE: b"invalid argument",
    NO_DEVICE: b"no CUDA-capable device is detected",
    ILLEGAL_ADDRESS: b"an illegal memory access was encountered",
    CAPTURE_UNSUPPORTED: b"operation not permitted when stream is capturing",
}


@dataclass
class Faults:
    """What is to go wrong; nothing, at first."""

    cuda: dict[str, int] = field(default_factory=dict)  # function to the error it gives
    build: bool = False  # build_serialized_network answers None
    deserialise: bool = False  # None
    context: bool = False  # None
    refit: bool = False  # the first half of the weights is written, then False
    execute: bool = False  # False
    stale: tuple[str, ...] = ()  # weights that a refit silently leaves as they were
    lost: tuple[str, ...] = ()  # weights that count as zero, refitted or not, and are not offered: 11.3's mistake
    missing: tuple[str, ...] = ()  # further names that must come along
    graph_keeps_weights: bool = False  # a captured graph does not see later refits


def view(address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Memory as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)


class FakeCuda:
    """cuda.bindings.runtime, with host memory for a device."""

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    cudaStreamNonBlocking = 1

    def __init__(self, faults: Faults | None = None, devices: int = 1) -> None:
        self.faults, self.devices = faults or Faults(), devices
        self.memory: dict[int, tuple[int, Any]] = {}  # address to its size and what holds it
        self.streams: set[int] = set()
        self.enqueued: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs = 0  # that were not freed
        self.captures = 0

    def enqueue(self, work: Callable[[], None]) -> None:
        """Add work to the stream, or to the graph that is being captured."""
        (self.enqueued if self.captured is None else self.captured).append(work)

    def holds(self, address: int, size: int) -> bool:
        """Whether so many bytes from an address are allocated."""
        return any(start <= address and address + size <= start + length for start, (length, _) in self.memory.items())

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found
        error = self.faults.cuda.get(name, 0)
        return found if error == 0 else lambda *arguments: (error, None)

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return (0, self.devices) if self.devices else (NO_DEVICE, 0)

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, SimpleNamespace(name=b"Fake GPU", major=9, minor=0)

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return 0, 13010

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:
        return 0, 13000

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, ERRORS.get(int(error), b"unrecognized error code")

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        if self.captured is not None:
            return CAPTURE_UNSUPPORTED, None
        block = ctypes.create_string_buffer(size + 256)
        address = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(address, 0xA5, size)  # nobody may count on zeros
        self.memory[address] = (size, block)
        return 0, address

    def cudaFree(self, devPtr: int) -> tuple[int]:
        return (0 if self.memory.pop(devPtr, None) else INVALID_VALUE,)

    cudaMallocHost = cudaMalloc
    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[int]:
        device = dst if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else src
        if stream not in self.streams or not self.holds(device, count):
            return (INVALID_VALUE,)
        self.enqueue(lambda: ctypes.memmove(dst, src, count))
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self.streams.add(stream := len(self.streams) + 7)
        return 0, stream

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if self.captured is not None:
            return (CAPTURE_UNSUPPORTED,)
        work, self.enqueued = self.enqueued, []
        for each in work:
            each()
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams.discard(stream)
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[int]:
        self.captured = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        graph, self.captured = self.captured, None
        self.captures += 1
        return 0, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        self.graphs += 1
        return 0, list(graph)

    def cudaGraphLaunch(self, graphExec: Any, stream: int) -> tuple[int]:
        for work in graphExec:
            self.enqueue(work)
        return (0,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[int]:
        self.graphs -= 1
        return (0,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return (0,)


class HostMemory(bytes):
    """IHostMemory."""

    @property
    def nbytes(self) -> int:
        return len(self)


class FakeTensorRT:
    """The module of either library, over a FakeCuda."""

    def __init__(self, cuda: FakeCuda, version: str = VERSION) -> None:
        self.real = real_rtx()
        self.cuda, self.faults, self.__version__ = cuda, cuda.faults, version
        self.built: list[FakeConfig] = []
        self.refits = 0
        self.compiled: list[bytes] = []  # what each runtime cache held when a context was opened with it

    def __getattr__(self, name: str) -> Any:
        """Enums, Logger."""
        return getattr(self.real, name)

    def Weights(self, type: Any, ptr: int, count: int) -> Any:
        return SimpleNamespace(dtype=type, ptr=ptr, size=count)

    def Builder(self, logger: Any) -> "FakeBuilder":
        return FakeBuilder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> "FakeParser":
        return FakeParser(self, network, logger)

    def Runtime(self, logger: Any) -> "FakeRuntime":
        return FakeRuntime(self)

    def Refitter(self, engine: "FakeEngine", logger: Any) -> "FakeRefitter":
        return FakeRefitter(self, engine)


class FakeParser:
    """The real OnnxParser; a plan of the network will name the file that it read."""

    def __init__(self, trt: FakeTensorRT, network: Any, logger: Any) -> None:
        self.trt, self.network = trt, network
        self.real = trt.real.OnnxParser(network, logger)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def parse_from_file(self, model: str) -> bool:
        self.network.name = model
        return self.real.parse_from_file(model)


class FakeConfig:
    """The real IBuilderConfig, with a timing cache for which nothing was timed, and the profiles that were added."""

    def __init__(self, real: Any) -> None:
        vars(self).update(real=real, cache=None, profiles=[])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return self.real.add_optimization_profile(profile)

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        return index < self.real.num_compute_capabilities  # the real one asks the driver which GPU is here

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return SimpleNamespace(content=serialized_timing_cache, serialize=lambda: HostMemory(b"times"))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.content not in (b"", b"times"):
            return ignore_mismatch
        vars(self)["cache"] = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class FakeBuilder:
    """The real Builder up to the build. A plan names the ONNX file, which must still be there when it is loaded."""

    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.real = trt, trt.real.Builder(logger)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def create_builder_config(self) -> FakeConfig:
        return FakeConfig(self.real.create_builder_config())

    def build_serialized_network(self, network: Any, config: FakeConfig) -> HostMemory | None:
        self.trt.built.append(config)
        if self.trt.faults.build or len(config.profiles) != 1:
            return None
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        shapes = {one.name: list(config.profiles[0].get_shape(one.name)[1]) for one in inputs}
        names = {tensor.name for tensor in onnx.load(network.name, load_external_data=False).graph.initializer}
        marked = {name for name in names if network.are_weights_marked_refittable(name)} - set(self.trt.faults.lost)
        refittable = config.get_flag(self.trt.BuilderFlag.REFIT_INDIVIDUAL)
        plan = {
            "version": self.trt.__version__,
            "graph": network.name,
            "marked": sorted(marked) if refittable else [],
            "shapes": shapes,
        }
        return HostMemory(json.dumps(plan).encode())


class FakeRuntime:
    """Runtime."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "FakeEngine | None":
        try:
            plan = json.loads(serialized_engine)
        except ValueError:
            return None
        if self.trt.faults.deserialise or plan["version"] != self.trt.__version__:
            return None
        return FakeEngine(self.trt, plan)


class FakeEngine:
    """ICudaEngine: the ONNX graph, and its weights as of the last refit."""

    device_memory_size_v2 = 4096

    def __init__(self, trt: FakeTensorRT, plan: dict[str, Any]) -> None:
        self.trt, self.plan = trt, plan
        model = onnx.load(plan["graph"])
        self.weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        kept = {*plan["marked"], *trt.faults.lost}
        self.weights = {name: weights for name, weights in self.weights.items() if name in kept}
        for name in trt.faults.lost:
            self.weights[name] = np.zeros_like(self.weights[name])
        values = (*model.graph.input, *model.graph.output)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.outputs = {value.name for value in model.graph.output}
        self._session: tuple[int, Any] = (0, None)

    @property
    def refittable(self) -> bool:
        return bool(self.plan["marked"])

    @property
    def num_io_tensors(self) -> int:
        return len(self.types)

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.OUTPUT if name in self.outputs else modes.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        types = self.trt.DataType
        return {onnx.TensorProto.FLOAT: types.FLOAT, onnx.TensorProto.INT64: types.INT64}[self.types[name]]

    def create_runtime_config(self) -> "FakeRuntimeConfig":
        return FakeRuntimeConfig(self.trt)

    def create_execution_context(self, strategy: Any) -> "FakeContext | None":
        if isinstance(strategy, FakeRuntimeConfig):
            self.trt.compiled.append(strategy.cache.kernels)
            strategy.cache.kernels = b"kernels"
            strategy = strategy.allocation
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return None if self.trt.faults.context else FakeContext(self)

    def answer(self, weights: dict[str, np.ndarray], question: dict[str, np.ndarray]) -> np.ndarray:
        """What the graph computes."""
        if self._session[0] != id(weights):
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
            options.add_external_initializers(list(weights), values)
            session = onnxruntime.InferenceSession(self.plan["graph"], options, providers=["CPUExecutionProvider"])
            self._session = (id(weights), (weights, session))  # kept, so that the id stays taken
        (answer,) = self._session[1][1].run(["out"], question)
        return answer


class FakeRuntimeCache:
    """IRuntimeCache: kernels of another machine are refused."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, blob: bytes) -> bool:
        if blob != b"kernels":
            return False
        self.kernels = blob
        return True

    def serialize(self) -> HostMemory:
        return HostMemory(self.kernels)


class FakeRuntimeConfig:
    """IRuntimeConfig."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.cache = FakeRuntimeCache()
        self.allocation: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeContext:
    """IExecutionContext."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.cuda = engine, engine.trt.cuda
        self.memory = (0, 0)
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.runs = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if list(shape) != list(self.engine.plan["shapes"].get(name, ())):
            return False
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.types

    def execute_async_v3(self, stream_handle: int) -> bool:
        memory, size = self.memory
        first_while_capturing = self.cuda.captured is not None and self.runs == 0
        is_ready = (
            stream_handle in self.cuda.streams
            and memory % 256 == 0
            and size >= self.engine.device_memory_size_v2
            and self.cuda.holds(memory, size)
            and self.addresses.keys() == self.engine.types.keys()
            and self.shapes.keys() == self.engine.plan["shapes"].keys()
        )
        if self.engine.trt.faults.execute or not is_ready or first_while_capturing:
            return False
        self.runs += 1
        keeps = self.engine.trt.faults.graph_keeps_weights and self.cuda.captured is not None
        captured = self.engine.weights if keeps else None
        self.cuda.enqueue(lambda: self._execute(captured if captured is not None else self.engine.weights))
        return True

    def _execute(self, weights: dict[str, np.ndarray]) -> None:
        question = {
            name: view(self.addresses[name], shape, np.int64 if name == "timestep" else np.float32).copy()
            for name, shape in self.shapes.items()
        }
        answer = self.engine.answer(weights, question)
        assert self.cuda.holds(self.addresses["out"], answer.nbytes)
        view(self.addresses["out"], answer.shape, np.float32)[...] = answer


class FakeRefitter:
    """Refitter."""

    def __init__(self, trt: FakeTensorRT, engine: FakeEngine) -> None:
        self.trt, self.engine = trt, engine
        self.named: dict[str, Any] = {}

    def get_all_weights(self) -> list[str]:
        return list(self.engine.plan["marked"])

    def get_missing_weights(self) -> list[str]:
        return sorted(set(self.get_all_weights()) - self.named.keys() | set(self.trt.faults.missing))

    def get_weights_prototype(self, weights_name: str) -> Any:
        weights = self.engine.weights.get(weights_name)
        size = -1 if weights is None else weights.size
        return SimpleNamespace(dtype=self.trt.DataType.HALF, size=size)

    def set_named_weights(self, name: str, weights: Any, location: Any) -> bool:
        prototype = self.get_weights_prototype(name)
        if name not in self.get_all_weights() or weights.size != prototype.size or weights.dtype != prototype.dtype:
            return False
        if location != self.trt.TensorLocation.DEVICE or not self.trt.cuda.holds(weights.ptr, 2 * weights.size):
            return False
        self.named[name] = weights
        return True

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        self.trt.refits += 1
        if stream_handle not in self.trt.cuda.streams or self.get_missing_weights():
            return False
        names: Iterable[str] = sorted(self.named.keys() - set(self.trt.faults.stale))
        if self.trt.faults.refit:
            names = list(names)[: len(self.named) // 2]
        self.trt.cuda.enqueue(lambda: self._write(names))
        return not self.trt.faults.refit

    def _write(self, names: Iterable[str]) -> None:
        written = {
            name: view(self.named[name].ptr, self.engine.weights[name].shape, np.float16).copy() for name in names
        }
        self.engine.weights = {**self.engine.weights, **written}


def fake_runtime(
    faults: Faults, version: str | None = None, library: TrtLibrary = TENSORRT
) -> Callable[[], tuple[Any, Any, TrtLibrary]]:
    """What sampler_svc.engines.trt_library.open_library does, on a fake GPU of its own each time."""
    told = version or (RTX_VERSION if library is TENSORRT_RTX else VERSION)

    def open_runtime() -> tuple[Any, Any, TrtLibrary]:
        cuda = FakeCuda(faults)
        device = Device(cuda)
        check_version(told, library)
        return FakeTensorRT(cuda, told), device, library

    return open_runtime
