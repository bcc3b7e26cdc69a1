"""The denoiser as a graph in 16-bit floats (unitune.half_graph), with PyTorch's answers to hold an engine to.

The module itself is made fp16, so the graph says of every value what type it has: a builder that is told to follow
those types needs no flags and makes no choices of its own.
"""

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.func import functional_call

from tuner_svc.base_model import BaseModel, Denoiser
from tuner_svc.export.check import answer_of
from tuner_svc.export.denoiser import GRAPH_FILE, example, match, randomised_denoiser, store
from tuner_svc.export.graph import ExportError, to_graph
from unitune.base_model import TensorSpec, file_digest
from unitune.half_graph import (
    HALF_FOLDER,
    SELF_TEST_FILE,
    SELF_TEST_PROBE_SEED,
    SELF_TEST_SEEDS,
    HalfSpec,
    self_test_tensors,
)
from unitune.weights import probe_input

OPSET = 21  # the first with a GroupNormalization that a GPU has one kernel for
MAX_ERROR = 3.0  # times the noise: PyTorch and a runtime both round, each in its own order
MAX_NOISE = 0.05  # of the answer; fp16 gives about 0.001 for sound weights, more than this says that it overflows


class HalfDenoiser(nn.Module):
    """A denoiser in fp16 with inputs and output in fp32, as the fp32 graph has them."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.unet = copy.deepcopy(denoiser.unet).half()

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(sample.half(), timestep, encoder_hidden_states.half()).sample.float()


def is_complete(graphs: Path, model_digest: str) -> bool:
    """Whether a graphs folder has the half graph of that base model, every file as it was written."""
    folder = graphs / HALF_FOLDER
    try:
        spec = HalfSpec.load(folder)
    except (OSError, ValueError):
        return False
    return spec.base_model == model_digest and all(
        (folder / name).is_file() and file_digest(folder / name) == digest for name, digest in spec.files.items()
    )


def add_half_graph(graphs: Path, model: BaseModel, say: Callable[[str], None] = lambda stage: None) -> Path:
    """Write the half graph into a graphs folder, in place of an incomplete one; the folder `half` in it.

    Raises ExportError when a tensor would be lost, weights are too large for fp16, or ONNX Runtime answers otherwise.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{HALF_FOLDER}-", dir=graphs))
    try:
        say("exporting the denoiser in fp16")
        tensors = export_half(model, partial)
        say("answering the self-test's questions")
        answers, noise = self_test_answers(model)
        save_file(answers, partial / SELF_TEST_FILE)
        say("checking the graph with all sets of weights")
        check_half(partial / GRAPH_FILE, model, tensors, answers, noise)
        files = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
        HalfSpec(model.digest, tensors, noise, files).save(partial)
        partial.chmod(0o755)
        for path in partial.iterdir():
            path.chmod(0o644)
        shutil.rmtree(graphs / HALF_FOLDER, ignore_errors=True)
        partial.rename(graphs / HALF_FOLDER)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return graphs / HALF_FOLDER


def export_half(model: BaseModel, folder: Path) -> dict[str, TensorSpec]:
    """Write the graph with the base weights in one data file; each tensor's layout there.

    Raises ExportError unless every tensor is exactly one initializer, and if a base weight overflows fp16.
    """
    randomised = HalfDenoiser(randomised_denoiser(model))
    graph = to_graph(randomised, example(model), "out", opset=OPSET)
    matches = match({name: tensor.numpy() for name, tensor in randomised.unet.state_dict().items()}, graph)
    base = {name: tensor.cpu().half().numpy() for name, tensor in model.tensors().items()}
    for name, tensor in base.items():
        if not np.isfinite(tensor).all():
            raise ExportError(f"{name} has values beyond the range of fp16: this base model has no half graph")
    store(graph, matches, base, folder / GRAPH_FILE)
    return {name: found.spec for name, found in matches.items()}


def self_test_answers(model: BaseModel) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The answers in fp32 with base weights and the random sets, and how far fp16 is from each (HalfSpec.noise).

    Raises ExportError when fp16 gives no number, or one far away.
    """
    specs = {name: TensorSpec(tuple(tensor.shape)) for name, tensor in model.tensors().items()}
    half = HalfDenoiser(model.denoiser).to("cpu")
    full = copy.deepcopy(model.denoiser.unet).cpu()
    answers, noise = {}, {}
    for name in ("base", *SELF_TEST_SEEDS):
        tensors: Mapping[str, np.ndarray] = {}
        if name in SELF_TEST_SEEDS:
            tensors = self_test_tensors(SELF_TEST_SEEDS[name], specs)
        answer, rounded = _answer(model, full, tensors), _answer(model, half.unet, tensors)
        noise[name] = float(np.linalg.norm(rounded - answer) / np.linalg.norm(answer))
        if not noise[name] < MAX_NOISE:  # also when it is not a number
            raise ExportError(
                f"fp16 changes the answer with {name} weights by {noise[name]:.1e} of it, too much to use"
            )
        answers[name] = answer
    return answers, noise


def check_half(
    path: Path,
    model: BaseModel,
    tensors: Mapping[str, TensorSpec],
    answers: Mapping[str, np.ndarray],
    noise: Mapping[str, float],
) -> None:
    """Raises ExportError unless ONNX Runtime gives each set's answer after a refit by name, up to fp16's noise."""
    for name, answer in answers.items():
        weights = self_test_tensors(SELF_TEST_SEEDS[name], tensors) if name in SELF_TEST_SEEDS else {}
        half = {each: tensors[each].to_graph(tensor.astype(np.float16)) for each, tensor in weights.items()}
        error = np.linalg.norm(answer_of(path, _question(model), half) - answer) / np.linalg.norm(answer)
        if not error < MAX_ERROR * noise[name]:  # also when it is not a number
            raise ExportError(f"the half graph differs from PyTorch by {error:.1e} of its output with {name} weights")


def _question(model: BaseModel) -> dict[str, Tensor]:
    context = (model.context_tokens, model.context_width)
    question = probe_input(SELF_TEST_PROBE_SEED, model.latent_channels, model.latent_side, context)
    return {name: torch.from_numpy(array) for name, array in question.items()}


@torch.no_grad()
def _answer(model: BaseModel, unet: nn.Module, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the UNet says to the question in its own dtype, as float32, with `tensors` in place of its own."""
    dtype = next(unet.parameters()).dtype
    values = {name: torch.from_numpy(tensor).to(dtype) for name, tensor in tensors.items()}
    latents, timesteps, contexts = _question(model).values()
    answer = functional_call(unet, values, (latents.to(dtype), timesteps, contexts.to(dtype))).sample
    return answer.float().numpy()
