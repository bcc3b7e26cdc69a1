"""Refits all tensors of an engine in a process that is set up as a sampler's, and prints its private memory.

    python -m tests.bench.refit_memory ENGINE_FOLDER REFITS

A line for each refit: the peak during it, and what is held after it, in bytes.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bench.process_memory import MemoryWatch, memory_of
from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import EngineSpec, Tensors
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.weights import base_weights
from unitune.base_model import BaseModelSpec
from unitune.free_memory import map_large_blocks


class Moved(Mapping[str, np.ndarray]):
    """Tensors a little off the base ones, made when they are asked for, as decoded ones are."""

    def __init__(self, base: Tensors, step: float) -> None:
        self._base, self._step = base, np.float32(step)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._base[name] + self._step

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def main() -> None:
    folder, refits = Path(sys.argv[1]), int(sys.argv[2])
    map_large_blocks()
    spec = BaseModelSpec.load(folder)
    engine_spec, base = EngineSpec.from_model(spec), base_weights(folder, spec)
    engine = OrtEngine(folder, engine_spec, layout=GraphLayout(engine_spec, base.tensors))
    for count in range(refits):
        with MemoryWatch(os.getpid()) as watch:
            engine._write(engine._checked(Moved(base.tensors, 1e-3 * (1 + count % 2))))
        print(watch.peak.private, memory_of(os.getpid()).private, flush=True)
    engine.close()


if __name__ == "__main__":
    main()
