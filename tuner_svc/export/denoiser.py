"""Exports the denoiser as a graph whose initializers have the tensors' names, so that a refit finds each by name.

The exporter transposes and reshapes some tensors, renames them, and merges equal ones. So the graph is exported with
random weights, of which no two are equal, and the initializers are identified by their values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from tuner_svc.base_model import BaseModel, DenoiserModule
from tuner_svc.export.attention import fuse_attention
from tuner_svc.export.controls import NoAttention, add_controls
from tuner_svc.export.exported_folder import ExportError
from tuner_svc.export.graph import to_graph
from tuner_svc.export.operators import TRANSLATIONS
from tuner_svc.export.weights import holding, mapped, randomised, write_random_weights, write_weights
from unitune.attention import CONTROLLED_FILE
from unitune.base_model import BaseModelSpec, TensorSpec
from unitune.graph_files import DENOISER
from unitune.tensor_file import Place

FIRST_VALUES = 64  # of a tensor; two random ones do not share as many


class Match(NamedTuple):
    """A tensor's initializer, and the tensor's layout in it."""

    initializer: ir.Value
    spec: TensorSpec


def export_denoiser(model: BaseModel, folder: Path, scratch: Path) -> dict[str, TensorSpec]:
    """Write the denoiser's weights, its graph and its controlled graph, both over the one file of weights.

    `scratch` is a folder for the random weights, as large as the model's. Returns each tensor's layout. Raises
    ExportError unless tensors and initializers match one to one, and when the attention cannot be controlled.
    """
    weights = folder / BaseModelSpec.base_weights
    step = model.spec.latent_step or None
    write_random_weights(scratch / weights.name, model.tensors(), seed=0)
    random = holding(model.denoiser, mapped(scratch / weights.name))
    graph = to_graph(random, example(model), "out", translations=TRANSLATIONS, step=step)
    matches = match({name: tensor.numpy() for name, tensor in random.unet.state_dict().items()}, graph)
    refer(matches, write_weights(weights, model.tensors()), weights)
    ir.save(graph, folder / DENOISER)
    ir.save(fuse_attention(ir.load(folder / DENOISER)), folder / DENOISER)
    height, width = model.latent_side
    try:
        add_controls(graph.graph, (height, width), model.context_tokens)
    except NoAttention as error:
        raise ExportError(str(error)) from error
    ir.save(graph, folder / CONTROLLED_FILE)
    return {name: found.spec for name, found in matches.items()}


def refer(matches: Mapping[str, Match], places: Mapping[str, Place], weights: Path) -> None:
    """Give each initializer its tensor's name, and its place in a file of weights beside the graph.

    Raises ExportError for a tensor that is transposed in the graph: the file has it as PyTorch does.
    """
    for name, (initializer, spec) in matches.items():
        if spec.layout == "transposed":
            raise ExportError(f"{name} is transposed in the graph, which cannot read it from the file of weights")
        place = places[name]
        initializer.name = name
        initializer.const_value = ir.ExternalTensor(
            weights.name,
            place.offset,
            place.size_bytes,
            ir.DataType.from_numpy(place.dtype),
            shape=ir.Shape(spec.shape_in_graph),
            name=name,
            base_dir=weights.parent,
        )


def store(graph: ir.Model, matches: Mapping[str, Match], tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the graph with these tensors in place of its own, all in a data file of its own.

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
        for layout, form in (("transposed", _first_values(_transposed(tensor))), ("same", _first_values(tensor))):
            if forms.get(form, (name, ""))[0] != name:
                raise ExportError(f"{name} and {forms[form][0]} are equal, so their initializers cannot be told apart")
            forms[form] = (name, layout)
    found: dict[str, Match] = {}
    for initializer in graph.graph.initializers.values():
        value = initializer.const_value.numpy()
        name, layout = forms.get(_first_values(value), ("", ""))
        if not name or not _is_equal(tensors[name], layout, value):
            continue
        if name in found:
            raise ExportError(f"{name} is in the graph twice: a refit would change only one of them")
        found[name] = Match(initializer, _spec(tensors[name], layout, value.shape))
    lost = sorted(tensors.keys() - found.keys())
    if lost:
        raise ExportError(f"{len(lost)} tensors are not in the graph, such as {lost[0]}: they could not be refitted")
    return found


def randomised_denoiser(model: BaseModel, seed: int = 0) -> DenoiserModule:
    """As `randomised`, of the denoiser."""
    return randomised(model.denoiser, seed)


def example(model: BaseModel, batch: int = 2, seed: int = 0, side: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Random input of the denoiser; `side` is the latents' (height, width), the model's own by default."""
    generator = torch.Generator().manual_seed(seed)
    return model.denoiser.inputs(
        torch.randn((batch, model.spec.input_channels, *(side or model.latent_side)), generator=generator),
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


def _is_equal(tensor: np.ndarray, layout: str, value: np.ndarray) -> bool:
    """Whether an initializer has all values of a tensor."""
    own = _transposed(tensor) if layout == "transposed" else tensor
    return own.size == value.size and np.array_equal(own.reshape(value.shape), value)


def _first_values(tensor: np.ndarray) -> bytes:
    """Enough of a random tensor to tell it from others: the size, and its first values."""
    return tensor.size.to_bytes(8, "little") + tensor.flat[:FIRST_VALUES].tobytes()
