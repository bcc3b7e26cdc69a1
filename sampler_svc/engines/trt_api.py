"""Types for the parts of TensorRT and of the CUDA runtime that the sampler uses: their wheels have none.

Every class has the name of the real one. `tests/sampler_svc/test_trt_api.py` compares names, parameters and enum
members with the real bindings. All of it is in TensorRT-RTX 1.7, and all but ONLY_RTX in TensorRT 10.14 and 11.4. Where
a method returns False or None, TensorRT has failed: it hardly ever raises, and writes the reason to its log.
"""

from collections.abc import Sequence
from typing import Any, Protocol

# Used only where TrtLibrary says so.
ONLY_RTX = (
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeCache",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
)


class Logger(Protocol):
    """Writes to stderr."""

    min_severity: Any


class Weights(Protocol):
    """A typed view of memory: it copies nothing, keeps nothing alive, checks nothing."""

    @property
    def dtype(self) -> Any: ...
    @property
    def size(self) -> int:
        """Number of values; -1 in the prototype of a name that cannot be refitted."""


class IHostMemory(Protocol):
    """Bytes that TensorRT owns; `memoryview` reads them."""

    @property
    def nbytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...


class ITensor(Protocol):
    """An input or output of a network."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def shape(self) -> Sequence[int]:
        """-1 for a side of any size."""


class INetworkDefinition(Protocol):
    """A network while it is being defined."""

    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_input(self, index: int) -> ITensor: ...
    def get_output(self, index: int) -> ITensor: ...
    def mark_weights_refittable(self, name: str) -> bool:
        """False for a name that no weights have."""

    def are_weights_marked_refittable(self, name: str) -> bool: ...


class IOptimizationProfile(Protocol):
    """The shapes that a plan is made for."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        """Raises ValueError for shapes that contradict the network's."""


class ITimingCache(Protocol):
    """Times of kernels on one kind of GPU, for one set of builder flags."""

    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    """How a plan is to be built."""

    builder_optimization_level: int
    num_compute_capabilities: int  # kinds of GPU that the plan is for

    def set_flag(self, flag: Any) -> None: ...
    def clear_flag(self, flag: Any) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """The profile's index; -1 for a profile that is not valid."""

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """False for a cache of another device."""

    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    """Makes plans; minutes for Stable Diffusion."""

    def create_network(self, flags: int = 0) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """None when it cannot be built."""


class ParserError(Protocol):
    """An error of a parser."""

    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """Reads an ONNX file, external weights too, into a network."""

    @property
    def num_errors(self) -> int: ...
    def parse_from_file(self, model: str) -> bool:
        """False when it met errors."""

    def get_error(self, index: int) -> ParserError: ...


class IExecutionContext(Protocol):
    """An engine's state of one run at a time. It stays valid across a refit."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Memory for activations, aligned to 256 bytes, of at least `device_memory_size_v2`."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class IRuntimeCache(Protocol):
    """Kernels that were compiled when contexts were opened."""

    def deserialize(self, blob: bytes) -> bool:
        """False for kernels of another version, driver or GPU."""

    def serialize(self) -> IHostMemory: ...


class IRuntimeConfig(Protocol):
    """How a context is opened."""

    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...
    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...


class ICudaEngine(Protocol):
    """A loaded plan."""

    @property
    def refittable(self) -> bool: ...
    @property
    def device_memory_size_v2(self) -> int: ...
    @property
    def num_io_tensors(self) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        """None when there is no memory for it. In place of the strategy it takes an IRuntimeConfig."""


class Runtime(Protocol):
    """Loads plans. Without a driver it may crash the process, so open the device first (cuda_device.py)."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """None for a plan of another version or GPU, or a damaged one."""


class Refitter(Protocol):
    """Gives an engine other weights. Nothing may be pending on the engine on another stream meanwhile."""

    def get_all_weights(self) -> list[str]: ...
    def get_missing_weights(self) -> list[str]:
        """Names that must be set, too, because the engine combined them with some that were."""

    def get_weights_prototype(self, weights_name: str) -> Weights: ...
    def set_named_weights(self, name: str, weights: Weights, location: Any) -> bool:
        """False for an unknown name, another number of values or another dtype. Shape and layout are not checked.

        The address stays set: memory may be overwritten later and refitted again.
        """

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        """False when weights are missing or not valid. Some may have been written."""


class TensorRT(Protocol):
    """The module."""

    __version__: str
    BuilderFlag: Any
    ComputeCapability: Any
    CudaGraphStrategy: Any
    DataType: Any
    DynamicShapesKernelSpecializationStrategy: Any
    ExecutionContextAllocationStrategy: Any
    ILogger: Any
    MemoryPoolType: Any
    NetworkDefinitionCreationFlag: Any
    TensorIOMode: Any
    TensorLocation: Any

    def Logger(self, min_severity: Any) -> Logger: ...
    def Builder(self, logger: Any) -> Builder: ...
    def OnnxParser(self, network: INetworkDefinition, logger: Any) -> OnnxParser: ...
    def Runtime(self, logger: Any) -> Runtime: ...
    def Refitter(self, engine: ICudaEngine, logger: Any) -> Refitter: ...
    def Weights(self, type: Any, ptr: int, count: int) -> Weights: ...


class CudaRuntime(Protocol):
    """The module cuda.bindings.runtime. Every function answers with a tuple whose first item is the error."""

    cudaMemcpyKind: Any
    cudaStreamCaptureMode: Any
    cudaStreamNonBlocking: int

    def cudaGetDeviceCount(self) -> tuple[Any, int]: ...
    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]: ...
    def cudaDriverGetVersion(self) -> tuple[Any, int]: ...
    def cudaRuntimeGetVersion(self) -> tuple[Any, int]: ...
    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]: ...
    def cudaMalloc(self, size: int) -> tuple[Any, int]: ...
    def cudaFree(self, devPtr: int) -> tuple[Any]: ...
    def cudaMallocHost(self, size: int) -> tuple[Any, int]: ...
    def cudaFreeHost(self, ptr: int) -> tuple[Any]: ...
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> tuple[Any]: ...
    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, Any]: ...
    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any]: ...
    def cudaStreamDestroy(self, stream: Any) -> tuple[Any]: ...
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any]: ...
    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, Any]: ...
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, Any]: ...
    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> tuple[Any]: ...
    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any]: ...
    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]: ...
