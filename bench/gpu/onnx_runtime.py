"""The sampler's own engine for ONNX Runtime on CUDA; on a processor its CPU provider, to see that it all runs."""

import time
from pathlib import Path
from typing import cast

from bench.gpu.engines import FilledGraph, MeasuredEngines
from bench.gpu.record import Found
from sampler_svc.build.builder import BackendBuilder
from sampler_svc.build.cuda import cuda_builder
from sampler_svc.engines.cuda import CPU, CUDA, OrtCudaEngine
from sampler_svc.engines.engine import BASE, Engine
from sampler_svc.engines.fp16_weights import rounded


class OrtEngines(MeasuredEngines):
    """ONNX Runtime, with refits in place."""

    def __init__(self, graph: FilledGraph, folder: Path) -> None:
        super().__init__(graph, folder)
        self._provider = CUDA if graph.model.device.type == "cuda" else CPU

    def _builder(self) -> BackendBuilder:
        return cuda_builder(self._provider)

    def _open(self, *, use_cuda_graph: bool) -> Engine:
        return OrtCudaEngine(
            self._folder, self._graph.spec, provider=self._provider, in_place=True, use_cuda_graph=use_cuda_graph
        )

    def _details(self, engine: Engine) -> Found:
        """Seconds of rounding to fp16 on the processor, and of writing to the device."""
        engine = cast(OrtCudaEngine, engine)
        in_place = engine._in_place  # else the engine itself has gone over to new sessions
        began = time.perf_counter()
        arrays = rounded(engine._fp16.tensors, self._graph.sets[BASE].tensors)
        written = time.perf_counter()
        for name, array in arrays.items():
            engine._weights[name].update_inplace(array)
        return {
            "in_place_seen": in_place,
            "refit_rounding_s": written - began,
            "refit_copy_s": time.perf_counter() - written,
        }
