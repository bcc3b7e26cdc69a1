"""TensorRT and TensorRT-RTX: two libraries of NVIDIA with one interface, and all in which they differ for the sampler.

TensorRT is for GPUs of data centres. A build measures kernels on the GPU and writes the chosen ones into the plan.

TensorRT-RTX is for RTX cards, also of laptops, and its wheels need no CUDA toolkit. A build, ahead of time, measures
nothing. The plan's kernels are compiled just in time, when a context is opened, and kept in a runtime cache
(https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/).
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from sampler_svc.engines.cuda_device import Device, open_device
from sampler_svc.engines.engine import BackendMissing
from sampler_svc.engines.trt_api import Logger, TensorRT


@dataclass(frozen=True)
class TrtLibrary:
    """One of the two."""

    backend: str  # its name in settings
    title: str  # its name in sentences
    module: str
    extra: str  # of unitune: installs it
    oldest: tuple[int, int]  # the first version with everything in trt_api.py
    wanted: str  # the same in words
    flags: tuple[str, ...]  # members of BuilderFlag that a build sets
    refused: Mapping[tuple[int, int], str] = field(default_factory=dict)  # versions to why, and what to install
    has_timing_cache: bool = False  # a build measures kernels, and may keep the times for the next
    # Kernels are compiled when a context is opened. All at once (EAGER): otherwise others answer until they are ready,
    # and the same question would get other bits. The library could capture CUDA graphs by itself; that is off
    # (DISABLED), because the engine must be able to forget a graph that does not see a refit.
    is_compiled_on_opening: bool = False

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'unitune[{self.extra}]'"


TENSORRT = TrtLibrary(
    backend="tensorrt",
    title="TensorRT",
    module="tensorrt",
    extra="sampler-gpu",
    oldest=(10, 14),
    wanted="10.14 or later is needed, best 11.4",
    flags=("REFIT_INDIVIDUAL",),
    # By its own documentation.
    refused={
        (11, 3): "plans of 11.3 that can be refitted may lose the bias of a matrix product, even without a refit; "
        "install 11.4 or later, or 10.14 to 11.2"
    },
    has_timing_cache=True,
)
TENSORRT_RTX = TrtLibrary(
    backend="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx_bindings",  # tensorrt_rtx is a second name of it, from a package of its own
    extra="sampler-rtx",
    oldest=(1, 7),
    wanted="1.7 or later is needed",
    flags=("REFIT_INDIVIDUAL", "REQUIRE_USER_ALLOCATION"),  # its runs can be captured only without memory of its own
    is_compiled_on_opening=True,
)
LIBRARIES = {library.backend: library for library in (TENSORRT, TENSORRT_RTX)}


def open_library(library: TrtLibrary = TENSORRT) -> tuple[TensorRT, Device, TrtLibrary]:
    """The module, the GPU, and which library it is. Raises BackendMissing, which names all that is missing.

    The device is opened first: a runtime crashes a process that has no driver. Importing does not.
    """
    missing, device = [], None
    try:
        device = open_device(library.install)
    except BackendMissing as error:
        missing.append(str(error))
    try:
        trt = import_module(library)
    except BackendMissing as error:
        missing.append(str(error))
    if device is not None and not missing:
        return trt, device, library
    if device is not None:
        device.close()
    raise BackendMissing("; ".join(missing))


def import_module(library: TrtLibrary) -> TensorRT:
    """The module of a version that can be used. Raises BackendMissing."""
    try:
        module = importlib.import_module(library.module)
    except ModuleNotFoundError as error:
        raise BackendMissing(f"the package {library.module} is not installed ({error}): {library.install}") from error
    except (ImportError, OSError) as error:  # a library that the loader does not find
        raise BackendMissing(
            f"{library.module} is installed, but cannot be loaded ({error}): {library.install}, or put the folder of "
            f"{library.title}'s libraries on LD_LIBRARY_PATH"
        ) from error
    check_version(module.__version__, library)
    return cast(TensorRT, module)


def logger_of(trt: TensorRT) -> Logger:
    """One for the whole process: the library keeps the first that it gets, and warns of others."""
    return _logger(trt.Logger, trt.ILogger.Severity.WARNING)


@cache
def _logger(kind: Callable[[Any], Logger], min_severity: Any) -> Logger:
    return kind(min_severity)


def check_version(version: str, library: TrtLibrary = TENSORRT) -> None:
    """Raises BackendMissing for a version whose plans cannot be refitted or cannot be trusted."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError as error:
        raise BackendMissing(f"{library.title} calls its version {version!r}, which is no number") from error
    if reason := library.refused.get((major, minor)):
        raise BackendMissing(f"{library.title} is {version}: {reason}")
    if (major, minor) < library.oldest:
        raise BackendMissing(f"{library.title} is {version}: {library.wanted}")
