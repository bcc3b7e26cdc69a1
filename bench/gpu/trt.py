"""The sampler's own engine for TensorRT or TensorRT-RTX. The build says whether the library takes this GPU at all."""

from functools import partial
from pathlib import Path

from bench.gpu.engines import FilledGraph, MeasuredEngines
from sampler_svc.build.builder import BackendBuilder
from sampler_svc.build.tensorrt import tensorrt_builder
from sampler_svc.engines.engine import Engine
from sampler_svc.engines.tensorrt import TrtEngine
from sampler_svc.engines.trt_library import TrtLibrary, open_library


class TrtEngines(MeasuredEngines):
    """One of the two libraries."""

    def __init__(self, graph: FilledGraph, folder: Path, library: TrtLibrary) -> None:
        super().__init__(graph, folder)
        self._open_runtime = partial(open_library, library)

    def _builder(self) -> BackendBuilder:
        return tensorrt_builder(self._open_runtime)

    def _open(self, *, use_cuda_graph: bool) -> Engine:
        return TrtEngine(self._folder, self._graph.spec, *self._open_runtime(), use_cuda_graph=use_cuda_graph)
