"""One GPU: its memory, one stream, and graphs captured on it. It needs only cuda.bindings.runtime, no framework.

All work of an engine goes to the one stream of its device object, so copies, refits and runs keep their order.
The process sees one GPU, the first of CUDA_VISIBLE_DEVICES.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.engine import BackendMissing
from sampler_svc.engines.trt_api import CudaRuntime

ALIGNMENT = 256  # bytes; TensorRT needs it for activations, and cudaMalloc has it
INSTALL = "pip install 'unitune[sampler-gpu]'"


class CudaError(Exception):
    """A call of the CUDA runtime failed. The message names the call and the runtime's reason."""


class Device:
    """The GPU. Every method raises CudaError when the runtime reports an error; asynchronous errors come later."""

    def __init__(self, runtime: CudaRuntime) -> None:
        """Opens the device. Raises CudaError when there is no driver or no GPU."""
        self._runtime = runtime
        if self._call("cudaGetDeviceCount") < 1:
            raise CudaError("there is no CUDA device")
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self._allocated: list[int] = []
        self._pinned: list[int] = []

    @property
    def stream(self) -> int:
        """The stream as a number, as TensorRT takes it."""
        return int(self._stream)

    def facts(self) -> dict[str, str]:
        """What a built plan depends on: the GPU's name and kind, the versions of driver and runtime."""
        properties = self._call("cudaGetDeviceProperties", 0)
        name = properties.name
        return {
            "device": name.decode() if isinstance(name, bytes) else str(name),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda_driver": str(self._call("cudaDriverGetVersion")),
            "cuda_runtime": str(self._call("cudaRuntimeGetVersion")),
        }

    def allocate(self, size_bytes: int) -> int:
        """The address of new device memory, freed by `close`."""
        address = int(self._call("cudaMalloc", max(size_bytes, ALIGNMENT)))
        self._allocated.append(address)
        return address

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """New host memory that the device copies from and to at full speed. `close` frees it: keep no view of it."""
        address = int(self._call("cudaMallocHost", max(size_bytes, 1)))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        """Enqueue a copy to the device. The array must not change before `synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def copy_out(self, array: NDArray[Any], address: int) -> None:
        """Enqueue a copy from the device. The array is filled once `synchronize` has returned."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait for everything that was enqueued; raises its errors."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Capture what `enqueue` enqueues as a graph that can be launched. Nothing runs."""
        # So that other threads' calls, such as another engine's allocations, do not break this capture.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(CudaError):  # the capture must end; its graph is of no use
                self._call("cudaStreamEndCapture", self._stream)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def forget(self, graph: Any) -> None:
        """Free a captured graph."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free all memory and the stream. Errors of a device that has failed are ignored."""
        for free, addresses in (("cudaFree", self._allocated), ("cudaFreeHost", self._pinned)):
            while addresses:
                with suppress(CudaError):
                    self._call(free, addresses.pop())
        with suppress(CudaError):
            self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *arguments: object) -> Any:
        """Call a function of the runtime; its value, if it has one. Raises CudaError."""
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error) != 0:
            _, text = self._runtime.cudaGetErrorString(error)
            raise CudaError(f"{name}: {text.decode() if isinstance(text, bytes) else text}")
        return values[0] if values else None


def open_device(install: str = INSTALL) -> Device:
    """The GPU of this process. Raises BackendMissing; `install` is the command that installs what it needs."""
    try:
        import cuda.bindings.runtime as cuda
    except ImportError as error:
        raise BackendMissing(f"the package cuda-bindings cannot be imported ({error}): {install}") from error
    try:
        return Device(cast(CudaRuntime, cuda))
    except CudaError as error:
        raise BackendMissing(f"there is no usable NVIDIA GPU and driver ({error})") from error
