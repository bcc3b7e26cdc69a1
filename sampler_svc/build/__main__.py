"""Build an engine from exported graphs: once per base model, runtime version and kind of CPU or GPU.

    python -m sampler_svc.build --graphs GRAPHS --out ENGINE
    python -m sampler_svc.build --graphs GRAPHS --engines ROOT     # ROOT/{key}, found again if it is there
    ... --backend tensorrt                                         # for a GPU, from graphs exported with --fp16

The last line of stdout is the engine's folder. The folder gets this name only when it is ready.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sampler_svc.build.builder import BackendBuilder, BuildError
from sampler_svc.build.cpu import onnxruntime_builder
from sampler_svc.build.folder import build, read_graphs
from sampler_svc.config import BACKENDS
from sampler_svc.engines.engine import BackendMissing
from unitune.free_memory import map_large_blocks
from unitune.program_end import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser("python -m sampler_svc.build", description="Build an engine from exported graphs.")
    parser.add_argument("--graphs", type=Path, required=True, help="folder written by tuner_svc.export")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="the engine's folder")
    where.add_argument("--engines", type=Path, help="folder of engines, each in a folder named by its key")
    parser.add_argument(
        "--backend", choices=BACKENDS, default=BACKENDS[0], help="the backend that will run it (%(default)s)"
    )
    options = parser.parse_args(arguments)
    map_large_blocks()
    out = options.out or options.engines
    return exit_code("build", partial(_built, options), out, BuildError, BackendMissing)


def _built(options: argparse.Namespace) -> Path:
    """The engine's folder."""
    builder = builder_of(options.backend)
    folder = options.out or options.engines / read_graphs(options.graphs, builder)[1].digest[:16]
    return build(options.graphs, folder, builder, _say)


def _say(stage: str) -> None:
    print(f"build: {stage} ...", file=sys.stderr, flush=True)


def builder_of(name: str) -> BackendBuilder:
    """The builder of a backend. Its module is imported only if asked for. Raises BackendMissing."""
    if name == "onnxruntime":
        return onnxruntime_builder()
    if name == "onnxruntime-cuda":
        from sampler_svc.build.cuda import cuda_builder

        return cuda_builder()
    from sampler_svc.build.tensorrt import tensorrt_builder
    from sampler_svc.engines.trt_library import LIBRARIES, open_library

    if name not in LIBRARIES:
        raise ValueError(f"{name} has no builder")
    return tensorrt_builder(partial(open_library, LIBRARIES[name]))


if __name__ == "__main__":
    sys.exit(main())
