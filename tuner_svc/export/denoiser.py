"""Exports the denoiser as a graph whose initializers have the tensors' names, so that a refit finds each by name.

The exporter transposes and reshapes some tensors, renames them, and merges equal ones. So the graph is exported with
random weights, of which no two are equal, and the initializers are identified by their values.
"""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from tuner_svc.base_model import BaseModel, DenoiserModule
from tuner_svc.export.attention import fuse_attention
from tuner_svc.export.controls import NoAttention, add_controls
from tuner_svc.export.graph import ExportError, to_graph
from tuner_svc.export.operators import TRANSLATIONS
from unitune.attention import CONTROLLED_FILE
from unitune.base_model import TensorSpec

GRAPH_FILE = "denoiser.onnx"

M = TypeVar("M", bound=nn.Module)


class Match(NamedTuple):
    """A tensor's initializer, and the tensor's layout in it."""

    initializer: ir.Value
    spec: TensorSpec


def export_denoiser(model: BaseModel, folder: Path) -> dict[str, TensorSpec]:
    """Write the denoiser's graph and its controlled graph, both with the base weights in one data file.

    Returns each tensor's layout. Raises ExportError unless tensors and initializers match one to one, and when the
    attention cannot be controlled.
    """
    randomised = randomised_denoiser(model)
    graph = to_graph(randomised, example(model), "out", translations=TRANSLATIONS)
    matches = match({name: tensor.numpy() for name, tensor in randomised.unet.state_dict().items()}, graph)
    base = {name: tensor.cpu().numpy() for name, tensor in model.tensors().items()}
    store(graph, matches, base, folder / GRAPH_FILE)
    ir.save(fuse_attention(ir.load(folder / GRAPH_FILE)), folder / GRAPH_FILE)
    height, width = model.latent_side
    try:
        add_controls(graph.graph, (height, width), model.context_tokens)
    except NoAttention as error:
        raise ExportError(str(error)) from error
    ir.save(graph, folder / CONTROLLED_FILE)
    return {name: found.spec for name, found in matches.items()}


def store(graph: ir.Model, matches: Mapping[str, Match], tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the graph with these tensors in place of its own, all in one data file.

    Each initializer gets its tensor's name. Shapes stay inside as small constants, since ONNX Runtime cannot read them
    from the data file.
    """
    values = [ir.Tensor(matches[name].spec.to_graph(tensors[name]), name=name) for name in sorted(matches)]
    outside = ir.external_data.convert_tensors_to_external(values, path.parent, f"{path.name}.data")
    for name, value in zip(sorted(matches), outside, strict=True):
        matches[name].initializer.name = name
        matches[name].initializer.const_value = value
    ir.save(graph, path)


def match(tensors: dict[str, np.ndarray], graph: ir.Model) -> dict[str, Match]:
    """Each tensor's initializer, and its layout there. Raises ExportError unless they match one to one."""
    forms: dict[bytes, tuple[str, str]] = {}
    for name, tensor in tensors.items():
        for layout, form in (("transposed", _digest(_transposed(tensor))), ("same", _digest(tensor))):
            if forms.get(form, (name, ""))[0] != name:
                raise ExportError(f"{name} and {forms[form][0]} are equal, so their initializers cannot be told apart")
            forms[form] = (name, layout)
    found: dict[str, Match] = {}
    for initializer in graph.graph.initializers.values():
        value = initializer.const_value.numpy()
        name, layout = forms.get(_digest(value), ("", ""))
        if name in found:
            raise ExportError(f"{name} is in the graph twice: a refit would change only one of them")
        if name:
            found[name] = Match(initializer, _spec(tensors[name], layout, value.shape))
    lost = sorted(tensors.keys() - found.keys())
    if lost:
        raise ExportError(f"{len(lost)} tensors are not in the graph, such as {lost[0]}: they could not be refitted")
    return found


def randomised_denoiser(model: BaseModel, seed: int = 0) -> DenoiserModule:
    """As `randomised`, of the denoiser."""
    return randomised(model.denoiser, seed)


def randomised(module: M, seed: int = 0) -> M:
    """A copy with every tensor disturbed, of the base's scale: no two are equal, not even norms."""
    generator = torch.Generator().manual_seed(seed)
    disturbed = copy.deepcopy(module).cpu()
    for tensor in disturbed.state_dict().values():
        size = 0.1 * tensor.std(correction=0) + 0.02
        tensor.add_(size * torch.randn(tensor.shape, generator=generator))
    return disturbed


def example(model: BaseModel, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random input of the denoiser."""
    generator = torch.Generator().manual_seed(seed)
    return model.denoiser.inputs(
        torch.randn((batch, model.latent_channels, *model.latent_side), generator=generator),
        torch.randint(0, model.schedule.num_train_timesteps, (batch,), generator=generator),
        torch.randn((batch, *model.conditioning), generator=generator),
    )


def _spec(tensor: np.ndarray, layout: str, graph_shape: tuple[int, ...]) -> TensorSpec:
    """The specification of a tensor whose initializer has this layout and shape."""
    if layout == "same" and graph_shape != tensor.shape:
        return TensorSpec(tensor.shape, str(tensor.dtype), "reshaped", graph_shape)
    if layout == "transposed" and graph_shape != _transposed(tensor).shape:
        raise ExportError(f"a tensor of shape {tensor.shape} is both transposed and reshaped to {graph_shape}")
    return TensorSpec(tensor.shape, str(tensor.dtype), layout)


def _transposed(tensor: np.ndarray) -> np.ndarray:
    return tensor.swapaxes(-1, -2) if tensor.ndim > 1 else tensor


def _digest(tensor: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).digest()
