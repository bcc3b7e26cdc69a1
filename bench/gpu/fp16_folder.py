"""The fp16 graph of a random model: exported on any machine, filled with the model's weights where it is to run.

    python -m bench.gpu --prepare FOLDER        # a minute or two on two cores, 8 GB of memory; writes 0.5 MB

An export needs no GPU and takes longer than all else here, so it is done before. Its weights need not travel: they
are drawn again.
"""

import time
from pathlib import Path

import numpy as np
import torch

from bench.gpu.model import random_model
from sampler_svc.engines.onnx_file import initializers
from tuner_svc.base_model import BaseModel
from tuner_svc.export.check import answer_of
from tuner_svc.export.fp16 import export_fp16
from unitune.fp16_graph import FP16_FOLDER, SELF_TEST_PROBE_SEED, Fp16Spec
from unitune.weights import probe_input

GRAPH = f"{FP16_FOLDER}/denoiser.onnx"
NOT_MEASURED = 0.0  # noise of a graph that no GPU has filled yet


def prepare(folder: Path, shape: str, *, check: bool) -> dict[str, float]:
    """Export the fp16 graph without its weights; the seconds it took, and what `checked` finds if that is asked for."""
    model = random_model(shape, torch.device("cpu"))
    (folder / FP16_FOLDER).mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tensors = export_fp16(model, folder / FP16_FOLDER)
    found = {"export_s": time.perf_counter() - began}
    Fp16Spec(model.digest, tensors, {"base": NOT_MEASURED}, {}).save(folder / FP16_FOLDER)
    if check:
        found |= checked(folder, model)
    (folder / f"{GRAPH}.data").unlink()
    return found


@torch.no_grad()
def checked(folder: Path, model: BaseModel) -> dict[str, float]:
    """What a check of the graph with the base weights finds and costs on this processor.

    The error is a share of PyTorch's answer in fp32. fp16's own noise is not asked for: convolutions in fp16 take
    PyTorch on a processor more than ten minutes at this size.
    """
    question = {name: torch.from_numpy(array) for name, array in question_of(model).items()}
    began = time.perf_counter()
    expected = model.denoiser(*question.values()).numpy()
    answered = time.perf_counter()
    answer = answer_of(folder / GRAPH, question)
    return {
        "check_torch_s": answered - began,
        "check_onnxruntime_s": time.perf_counter() - answered,
        "error": distance(answer, expected),
    }


def fill(folder: Path, model: BaseModel) -> None:
    """Write the weights, rounded to fp16, to where the graph looks for them."""
    fp16 = Fp16Spec.load(folder / FP16_FOLDER)
    if fp16.base_model != model.digest:
        raise ValueError(f"{folder} has the graph of {fp16.base_model!r}, not of {model.digest!r}")
    where = initializers((folder / GRAPH).read_bytes())
    tensors = model.tensors()
    with open(folder / f"{GRAPH}.data", "wb") as file:
        for name, spec in fp16.tensors.items():
            outside = where[name].outside
            if outside is None:
                raise ValueError(f"{name} is inside the graph")
            file.seek(outside[0])
            file.write(np.ascontiguousarray(spec.to_graph(tensors[name].half().cpu().numpy())).tobytes())


def question_of(model: BaseModel) -> dict[str, np.ndarray]:
    """Latents, timesteps and contexts of one batch: what a probe asks."""
    context = (model.context_tokens, model.context_width)
    return probe_input(SELF_TEST_PROBE_SEED, model.latent_channels, model.latent_side, context)


def distance(answer: np.ndarray, expected: np.ndarray) -> float:
    """How far off an answer is, as a share of it."""
    return float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))
