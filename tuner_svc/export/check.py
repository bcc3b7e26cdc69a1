"""Compares exported graphs on ONNX Runtime with PyTorch, before their folder gets its name.

A check proves names, layouts and arithmetic, which are the same for every size of batch. So a large network is asked
once, with one row.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from tuner_svc.base_model import DenoiserModule
from tuner_svc.export.exported_folder import ExportError
from tuner_svc.export.weights import holding, mapped, write_random_weights
from tuner_svc.super_resolver import SuperResolver
from unitune.attention import no_controls
from unitune.base_model import is_large
from unitune.hard_link import link_or_copy

# Of the largest output; rounding is about a millionth of it.
TOLERANCE = 1e-4
# Not the batch that the graph was exported with.
CHECK_BATCHES = (1, 3)
CHECK_BATCHES_OF_LARGE = (1,)


def check_batches(size_bytes: int) -> tuple[int, ...]:
    """The batches that a graph with weights of this size is checked with."""
    return CHECK_BATCHES_OF_LARGE if is_large(size_bytes) else CHECK_BATCHES


def check_graph(path: Path, module: nn.Module, inputs: dict[str, Tensor]) -> np.ndarray:
    """The graph's answer. Raises ExportError if PyTorch's differs."""
    return _compare(path, answer_of(path, inputs), _answer(module, inputs))


def check_refit(
    path: Path,
    module: DenoiserModule | SuperResolver,
    weights: Path,
    questions: list[dict[str, Tensor]],
    scratch: Path,
    controlled: Path | None = None,
) -> None:
    """Raises ExportError unless the graph answers like PyTorch with its file of weights, and with another such file;
    with that one its controlled graph, too, its controls off.

    The other file, of other random tensors than the graph was exported with, is written into `scratch`. A large graph
    is asked only with that: it shows a tensor in another's place, and a value that the exported tensors left behind.
    """
    write_random_weights(scratch / weights.name, module.unet.state_dict(), seed=1)
    randomised = holding(module, mapped(scratch / weights.name))
    for graph in (path, controlled):
        if graph is not None:
            link_or_copy(graph, scratch / graph.name)
    for inputs in questions:
        expected = _answer(randomised, inputs)
        _compare(path, answer_of(scratch / path.name, inputs, is_plain=True), expected)
        if controlled is not None:
            answer = answer_of(scratch / controlled.name, {**inputs, **_controls_off(inputs)}, is_plain=True)
            _compare(controlled, answer, expected)
        if not is_large(weights.stat().st_size):
            base = check_graph(path, module, inputs)
            if np.abs(expected - base).max() < 10 * TOLERANCE * np.abs(base).max():
                raise ExportError(f"{path.name} answers alike with other weights: no refit of it could be checked")


def answer_of(
    path: Path, inputs: dict[str, Tensor], weights: Mapping[str, np.ndarray] | None = None, *, is_plain: bool = False
) -> np.ndarray:
    """A graph's first output on ONNX Runtime, with these initializers in place of its own. A plain session optimises
    and packs nothing, so that the weights stay where they are mapped."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
    if is_plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    answer, *_ = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return answer


@torch.no_grad()
def _answer(module: nn.Module, inputs: dict[str, Tensor]) -> np.ndarray:
    answer: np.ndarray = module(*inputs.values()).numpy()
    return answer


def _controls_off(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    batch, tokens, _ = inputs["encoder_hidden_states"].shape
    return {name: torch.from_numpy(array) for name, array in no_controls(batch, tokens)._asdict().items()}


def _compare(path: Path, answer: np.ndarray, expected: np.ndarray) -> np.ndarray:
    error = float(np.abs(answer - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:  # also when it is not a number
        raise ExportError(f"{path.name} differs from PyTorch by {error:.1e} of its output; {TOLERANCE:.0e} is allowed")
    return answer
