"""Compares exported graphs on ONNX Runtime with PyTorch, before their folder gets its name."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from tuner_svc.base_model import DenoiserModule, SuperResolver
from tuner_svc.export.graph import ExportError
from unitune.attention import no_controls
from unitune.base_model import TensorSpec

# Of the largest output; rounding is about a millionth of it.
TOLERANCE = 1e-4
CHECK_BATCHES = (1, 3)  # not the batch that the graph was exported with


def check_graph(path: Path, module: nn.Module, inputs: dict[str, Tensor]) -> np.ndarray:
    """The graph's answer. Raises ExportError if PyTorch's differs."""
    return _compare(path, answer_of(path, inputs), module, inputs)


def check_refit(
    path: Path,
    denoiser: DenoiserModule | SuperResolver,
    randomised: DenoiserModule | SuperResolver,
    specs: Mapping[str, TensorSpec],
    inputs: dict[str, Tensor],
) -> None:
    """Raises ExportError unless the graph answers like PyTorch with the base weights, and after a refit by name."""
    base = check_graph(path, denoiser, inputs)
    others = {name: specs[name].to_graph(tensor.numpy()) for name, tensor in randomised.unet.state_dict().items()}
    refitted = _compare(path, answer_of(path, inputs, others), randomised, inputs)
    if np.abs(refitted - base).max() < 10 * TOLERANCE * np.abs(base).max():
        raise ExportError(f"{path.name} answers alike with other weights: no refit of it could be checked")


def check_controlled(path: Path, denoiser: DenoiserModule, inputs: dict[str, Tensor]) -> None:
    """Raises ExportError unless the controlled graph, its controls off, answers like PyTorch."""
    batch, tokens, _ = inputs["encoder_hidden_states"].shape
    off = {name: torch.from_numpy(array) for name, array in no_controls(batch, tokens)._asdict().items()}
    _compare(path, answer_of(path, {**inputs, **off}), denoiser, inputs)


def answer_of(path: Path, inputs: dict[str, Tensor], weights: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """A graph's first output on ONNX Runtime, with these initializers in place of its own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    answer, *_ = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return answer


@torch.no_grad()
def _compare(path: Path, answer: np.ndarray, module: nn.Module, inputs: dict[str, Tensor]) -> np.ndarray:
    expected = module(*inputs.values()).numpy()
    error = float(np.abs(answer - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:  # also when it is not a number
        raise ExportError(f"{path.name} differs from PyTorch by {error:.1e} of its output; {TOLERANCE:.0e} is allowed")
    return answer
