"""The backends by name: what each depends on, and how its engine opens. A backend is imported only if asked for.

python -m sampler_svc.engines.backends      # what this machine can run, and what is missing for the others
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sampler_svc.config import BACKENDS
from sampler_svc.engines import cpu
from sampler_svc.engines.cpu import Graph
from sampler_svc.engines.engine import BackendMissing, Engine, EngineSpec, WeightSet
from sampler_svc.engines.refit_modes import ort_opener


@dataclass(frozen=True)
class Backend:
    """A backend that this machine has."""

    facts: Mapping[str, str]  # what an engine folder must have been built for
    # Opens engines of a folder. Takes base weights, threads on a CPU, and a refit mode if there are several.
    opener: Callable[[Path, EngineSpec, WeightSet, int, str], Callable[[], Engine]]
    open_graph: Callable[[Path, int], Graph] = Graph  # for graphs that no tuning changes


def backend_of(name: str) -> Backend:
    """A backend, ready to open engines. Raises BackendMissing."""
    if name == "onnxruntime":
        return Backend(cpu.backend(), ort_opener)
    from sampler_svc.engines.cuda import CudaGraph, OrtCudaEngine, check_cuda, cuda_facts, has_cuda

    if name == "onnxruntime-cuda":
        return Backend(
            cuda_facts(), lambda folder, spec, *_: lambda: OrtCudaEngine.open_tested(folder, spec), CudaGraph
        )
    from sampler_svc.engines.tensorrt import TrtEngine, tensorrt_facts
    from sampler_svc.engines.trt_library import LIBRARIES, open_library

    if name not in LIBRARIES:
        raise ValueError(f"{name} is none of {', '.join(BACKENDS)}")
    open_runtime = partial(open_library, LIBRARIES[name])
    facts = tensorrt_facts(open_runtime)
    if has_cuda():  # with an onnxruntime for CPUs, only the denoiser runs on the GPU
        check_cuda()
    return Backend(
        facts,
        lambda folder, spec, *_: lambda: TrtEngine.open_tested(folder, spec, open_runtime),
        CudaGraph if has_cuda() else Graph,
    )


def verdict(name: str) -> str:
    """Whether this machine can run a backend, in words."""
    try:
        facts = backend_of(name).facts
    except BackendMissing as error:
        return f"no: {error}"
    return f"yes: version {facts['version']} on {facts['device']}"


def main() -> int:
    """The program; its exit code."""
    for name in BACKENDS:
        print(f"{name}: {verdict(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
