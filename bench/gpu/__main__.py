"""Measure tuner and sampler on an NVIDIA GPU, at the shape of Stable Diffusion 1.5 with random weights.

    python -m bench.gpu --prepare FOLDER                     # anywhere, before: the sampler's graph
    python -m bench.gpu --out FOLDER [--graphs FOLDER]       # on the GPU; writes FOLDER/gpu.json

A measurement that fails or for which no time is left says so in the file. `--shape tiny --device cpu` shows that the
program runs.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench.gpu import stepping, tuning
from bench.gpu.engines import FilledGraph
from bench.gpu.fp16_folder import prepare
from bench.gpu.model import SHAPES, random_model
from bench.gpu.onnx_runtime import OrtEngines
from bench.gpu.peak_rates import peak_rates
from bench.gpu.record import Found, Report, clocked
from bench.gpu.trt import TrtEngines
from sampler_svc.engines.trt_library import TENSORRT, TENSORRT_RTX
from tuner_svc.base_model import BaseModel


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out/bench-gpu"))
    parser.add_argument("--prepare", type=Path, help="export the sampler's graph to this folder, and do nothing else")
    parser.add_argument("--check", action="store_true", help="with --prepare: ask ONNX Runtime on this processor too")
    parser.add_argument("--graphs", type=Path, default=Path("out/bench-gpu/graphs"), help="what --prepare wrote")
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="begin nothing that would take longer than is left"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the measurements to make, or beginnings of names")
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(options.prepare, options.shape, check=options.check), indent=1))
        return
    logging.basicConfig(level=logging.WARNING)
    device = torch.device(options.device)
    report = Report(options.out, device, options.seconds, [Path(sys.executable).name, "-m", "bench.gpu", *sys.argv[1:]])
    models: list[BaseModel] = []

    def make() -> Found:
        found = clocked(lambda: models.append(random_model(options.shape, device)), device)
        return {"seconds": found["median"], "parameters": sum(t.numel() for t in models[0].tensors().values())}

    report.measure("model", 0, make)
    with tempfile.TemporaryDirectory() as scratch:
        for name, expected_s, work in measurements(models[0], options, Path(scratch)):
            if not options.only or any(name.startswith(wanted) for wanted in options.only):
                report.measure(name, expected_s if options.shape == "sd15" else 0, work)


def measurements(
    model: BaseModel, options: argparse.Namespace, scratch: Path
) -> list[tuple[str, float, Callable[[], Found]]]:
    """Name, about how many seconds it takes on an H100, and the work. What compiles comes last."""
    filled = FilledGraph(model, options.graphs)
    engines = OrtEngines(filled, scratch / "onnxruntime")
    rtx, trt = (TrtEngines(filled, scratch / each.backend, each) for each in (TENSORRT_RTX, TENSORRT))
    return [
        ("peak_rates", 3, partial(peak_rates, model.device, is_small=options.shape == "tiny")),
        ("step.eager", 8, partial(stepping.eager, model)),
        ("step.eager_channels_last", 5, partial(stepping.eager_channels_last, model)),
        ("step.graph", 8, partial(stepping.graph, model)),
        ("step.graph_channels_last", 8, partial(stepping.graph, model, channels_last=True)),
        ("tuning.eager", 15, partial(tuning.eager, model)),
        ("tuning.eager_channels_last", 15, partial(tuning.eager_channels_last, model)),
        ("tuning.eager.attn_out", 10, partial(tuning.eager, model, "attn_out")),
        ("tuning.eager.lora", 10, partial(tuning.eager, model, "lora")),
        ("tuning.diffusers_loop", 10, partial(tuning.diffusers_loop, model)),
        ("onnxruntime.build", 40, engines.build),
        ("onnxruntime.runs", 60, engines.runs),
        ("onnxruntime.cuda_graph", 60, engines.cuda_graph),
        ("tuning.graph", 30, partial(tuning.graph, model)),  # a capture that fails may spoil PyTorch's allocator
        ("tuning.graph.attn_out", 30, partial(tuning.graph, model, "attn_out")),
        ("tuning.graph.lora", 30, partial(tuning.graph, model, "lora")),
        ("tensorrt-rtx.build", 120, rtx.build),
        ("tensorrt-rtx.runs", 60, rtx.runs),
        ("tensorrt-rtx.cuda_graph", 60, rtx.cuda_graph),
        ("tensorrt.build", 300, trt.build),
        ("tensorrt.runs", 60, trt.runs),
        ("tensorrt.cuda_graph", 60, trt.cuda_graph),
        ("step.compiled_graph", 60, partial(stepping.compiled_graph, model)),
        ("tuning.compiled", 120, partial(tuning.compiled, model)),
    ]


if __name__ == "__main__":
    main()
