"""Exports the denoiser as a graph in 16-bit floats (unitune.fp16_graph), with PyTorch's answers for the self-test.

The module is converted to fp16, so the graph defines the type of every value. A builder that follows those types needs
no other flags.
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

from tuner_svc.base_model import BaseModel, DenoiserModule
from tuner_svc.export.check import answer_of
from tuner_svc.export.denoiser import example, match, randomised_denoiser, store
from tuner_svc.export.exported_folder import ExportError
from tuner_svc.export.graph import to_graph
from unitune.base_model import TensorSpec, file_digest
from unitune.fp16_graph import (
    FP16_FOLDER,
    SELF_TEST_FILE,
    SELF_TEST_PROBE_SEED,
    SELF_TEST_SEEDS,
    Fp16Spec,
    self_test_tensors,
)
from unitune.graph_files import DENOISER
from unitune.weights import probe_input

OPSET = 21  # the first whose GroupNormalization is one kernel on a GPU
MAX_ERROR = 3.0  # times the noise: PyTorch and a runtime round in different orders
MAX_NOISE = 0.05  # of the answer; fp16 gives about 0.001, more than this means an overflow


class Fp16Denoiser(nn.Module):
    """A denoiser in fp16 with inputs and output in fp32, like the fp32 graph."""

    def __init__(self, denoiser: DenoiserModule) -> None:
        super().__init__()
        self.unet = copy.deepcopy(denoiser.unet).half()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        # Sizes stay fp32: fp16 has not every number above 2048. The UNet concatenates the pooled embedding with what it
        # makes of them, and rounds then; a graph may not concatenate two types.
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        context = encoder_hidden_states.half()
        return self.unet(sample.half(), timestep, context, added_cond_kwargs=added).sample.float()


def is_complete(graphs: Path, model_digest: str) -> bool:
    """Whether a graphs folder has the undamaged fp16 graph of that base model."""
    folder = graphs / FP16_FOLDER
    try:
        spec = Fp16Spec.load(folder)
    except (OSError, ValueError):
        return False
    return spec.base_model == model_digest and all(
        (folder / name).is_file() and file_digest(folder / name) == digest for name, digest in spec.files.items()
    )


def add_fp16_graph(graphs: Path, model: BaseModel, say: Callable[[str], None] = lambda stage: None) -> Path:
    """Write the fp16 graph into the folder `fp16` of a graphs folder, in place of an incomplete one. Returns it.

    Raises ExportError when a tensor is lost, weights are too large for fp16, or ONNX Runtime's answer differs.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{FP16_FOLDER}-", dir=graphs))
    try:
        say("exporting the denoiser in fp16")
        tensors = export_fp16(model, partial)
        say("answering the self-test's questions")
        answers, noise = self_test_answers(model)
        save_file(answers, partial / SELF_TEST_FILE)
        say("checking the graph with all sets of weights")
        check_fp16(partial / DENOISER, model, tensors, answers, noise)
        files = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
        Fp16Spec(model.digest, tensors, noise, files).save(partial)
        partial.chmod(0o755)
        for path in partial.iterdir():
            path.chmod(0o644)
        shutil.rmtree(graphs / FP16_FOLDER, ignore_errors=True)
        partial.rename(graphs / FP16_FOLDER)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return graphs / FP16_FOLDER


def export_fp16(model: BaseModel, folder: Path) -> dict[str, TensorSpec]:
    """Write the graph with the base weights in one data file. Returns each tensor's layout.

    Raises ExportError unless every tensor is exactly one initializer, and if a base weight overflows fp16.
    """
    base = {name: tensor.cpu().half().numpy() for name, tensor in model.tensors().items()}
    for name, tensor in base.items():
        if not np.isfinite(tensor).all():
            raise ExportError(f"{name} has values beyond the range of fp16: this base model has no fp16 graph")
    randomised = Fp16Denoiser(randomised_denoiser(model))
    graph = to_graph(randomised, example(model), "out", opset=OPSET)
    matches = match({name: tensor.numpy() for name, tensor in randomised.unet.state_dict().items()}, graph)
    store(graph, matches, base, folder / DENOISER)
    return {name: found.spec for name, found in matches.items()}


def self_test_answers(model: BaseModel) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The answers in fp32 with base weights and the random sets, and the error of fp16 for each (Fp16Spec.noise).

    Raises ExportError when the error of fp16 is too large or not a number.
    """
    specs = {name: TensorSpec(tuple(tensor.shape)) for name, tensor in model.tensors().items()}
    rounded = Fp16Denoiser(model.denoiser).to("cpu")
    full = copy.deepcopy(model.denoiser.unet).cpu()
    answers, noise = {}, {}
    for name in ("base", *SELF_TEST_SEEDS):
        tensors: Mapping[str, np.ndarray] = {}
        if name in SELF_TEST_SEEDS:
            tensors = self_test_tensors(SELF_TEST_SEEDS[name], specs)
        answer, in_fp16 = _answer(model, full, tensors), _answer(model, rounded.unet, tensors)
        noise[name] = float(np.linalg.norm(in_fp16 - answer) / np.linalg.norm(answer))
        if not noise[name] < MAX_NOISE:  # also when it is not a number
            raise ExportError(
                f"fp16 changes the answer with {name} weights by {noise[name]:.1e} of it, too much to use"
            )
        answers[name] = answer
    return answers, noise


def check_fp16(
    path: Path,
    model: BaseModel,
    tensors: Mapping[str, TensorSpec],
    answers: Mapping[str, np.ndarray],
    noise: Mapping[str, float],
) -> None:
    """Raises ExportError unless ONNX Runtime gives each set's answer after a refit by name, up to fp16's noise."""
    for name, answer in answers.items():
        weights = self_test_tensors(SELF_TEST_SEEDS[name], tensors) if name in SELF_TEST_SEEDS else {}
        in_fp16 = {each: tensors[each].to_graph(tensor.astype(np.float16)) for each, tensor in weights.items()}
        error = np.linalg.norm(answer_of(path, _question(model), in_fp16) - answer) / np.linalg.norm(answer)
        if not error < MAX_ERROR * noise[name]:  # also when it is not a number
            raise ExportError(f"the fp16 graph differs from PyTorch by {error:.1e} of its output with {name} weights")


def _question(model: BaseModel) -> dict[str, Tensor]:
    question = probe_input(SELF_TEST_PROBE_SEED, model.spec.input_channels, model.latent_side, model.conditioning)
    return model.denoiser.inputs(*(torch.from_numpy(array) for array in question.values()))


@torch.no_grad()
def _answer(model: BaseModel, unet: nn.Module, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The UNet's answer in its own dtype, as float32, with `tensors` in place of its own."""
    dtype = next(unet.parameters()).dtype
    values = {f"unet.{name}": torch.from_numpy(tensor).to(dtype) for name, tensor in tensors.items()}
    whole = ("timestep", "time_ids")  # are not of the UNet's dtype
    inputs = {name: value if name in whole else value.to(dtype) for name, value in _question(model).items()}
    answer: Tensor = functional_call(DenoiserModule(unet), values, (), inputs)
    return answer.float().numpy()
