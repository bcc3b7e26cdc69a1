"""NVIDIA's own parser reads what we export: every fp16 graph, and each with its tensors under their names.

The parser is TensorRT-RTX's, which needs no GPU. What it makes of a graph is what a build on a GPU begins with.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sampler_svc.build.builder import BuildError
from sampler_svc.build.fp16 import FP16_DENOISER, check_fp16_graph
from sampler_svc.build.tensorrt import ParsedGraph, build_plan
from sampler_svc.engines.engine import EngineSpec
from sampler_svc.engines.fp16_weights import BATCH
from sampler_svc.engines.trt_library import TENSORRT_RTX
from tests.made_once import made_once
from tests.sampler_svc.rtx import real_rtx
from unitune.base_model import BaseModelSpec
from unitune.fp16_graph import FP16_FOLDER, Fp16Spec

TENSOR = "mid_block.resnets.0.conv1.weight"

Change = Callable[[onnx.GraphProto], None]


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT-RTX."""
    return real_rtx()


@pytest.fixture(scope="session")
def stable_diffusion_2(run_root: Path) -> Path:
    """A tiny model as Stable Diffusion 2.x for inpainting is: linear projections, heads of one width, more channels."""
    from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel

    from tests.tiny_model import INPAINTING_CHANNELS, disturb, tiny_pipeline

    def make(folder: Path) -> None:
        parts = tiny_pipeline(in_channels=INPAINTING_CHANNELS).components
        as_in_2 = {"use_linear_projection": True, "attention_head_dim": (2, 3)}
        parts["unet"] = UNet2DConditionModel.from_config({**parts["unet"].config, **as_in_2})
        disturb(parts["unet"])
        StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "tiny-2")

    return made_once(run_root, "base_2", make) / "tiny-2"


@pytest.fixture(scope="session")
def fp16_graphs_of(request: pytest.FixtureRequest, run_root: Path) -> Callable[[str], Path]:
    """The fp16 graph of a base model as the exporter writes it, without the answers of the self-test."""

    def graphs_of(name: str) -> Path:
        if name == "tiny_model":
            return request.getfixturevalue("tiny_fp16_graphs")
        from stickerbook.save_model import MODEL
        from tuner_svc.base_model import load
        from tuner_svc.export.fp16 import export_fp16

        def make(folder: Path) -> None:
            model = load(MODEL if name == "stickerbook" else request.getfixturevalue(name))
            (folder / FP16_FOLDER).mkdir()
            tensors = export_fp16(model, folder / FP16_FOLDER)
            Fp16Spec(model.digest, tensors, {}, {}).save(folder / FP16_FOLDER)
            model.spec.save(folder)

        return made_once(run_root, f"fp16_{name}", make)

    return graphs_of


OTHERS = ("stickerbook", "stable_diffusion_2", "tiny_sdxl")  # whose graphs are exported for this test alone


@pytest.mark.parametrize("name", ["tiny_model", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in OTHERS)])
def test_every_fp16_graph_parses(rtx: Any, fp16_graphs_of: Callable[[str], Path], name: str) -> None:
    """Without errors; each tuned tensor can be refitted; inputs and output have the names, types and shapes that the
    engine binds; and the builder takes its configuration up to the point that needs a driver."""
    graphs = fp16_graphs_of(name)
    spec = BaseModelSpec.load(graphs)

    check_fp16_graph(graphs, spec)
    graph = ParsedGraph(rtx, graphs / FP16_DENOISER, TENSORRT_RTX)
    graph.mark_refittable(spec.tensors)

    engine = EngineSpec.from_model(spec)
    assert graph.shapes(engine) == {name: array.shape for name, array in engine.blank_inputs(BATCH).items()}
    assert graph.network.num_layers > 300 and not graph.network.are_weights_marked_refittable("another.weight")


@pytest.mark.parametrize("name", ["denoiser_controlled.onnx", "super_resolution.onnx", "super_resolution_2.onnx"])
def test_the_other_graphs_that_a_tuning_changes_parse_too(rtx: Any, cascade_graphs: Path, name: str) -> None:
    """They run on the CPU, in fp32; the parser reads them all the same, and each of their tensors can be refitted."""
    spec = BaseModelSpec.load(cascade_graphs)
    tensors = {stage.graph: stage.tensors for stage in spec.super_resolution}

    ParsedGraph(rtx, cascade_graphs / name, TENSORRT_RTX).mark_refittable(tensors.get(name, spec.tensors))


def renamed(graph: onnx.GraphProto) -> None:
    """The tensor has another name."""
    weight(graph).name = "conv1_weight"
    for node in graph.node:
        node.input[:] = ["conv1_weight" if each == TENSOR else each for each in node.input]


def folded(graph: onnx.GraphProto) -> None:
    """The tensor is a constant of a node's, as after an optimiser's transpose."""
    tensor = weight(graph)
    graph.initializer.remove(tensor)
    graph.node.insert(0, helper.make_node("Constant", [], [TENSOR], "folded", value=tensor))
    for node in graph.node:
        node.input[:] = ["folded_0" if each == TENSOR else each for each in node.input]
    graph.node[0].output[0] = "folded_0"


def typed_otherwise(graph: onnx.GraphProto) -> None:
    """The tensor is fp32, and cast where it is used."""
    tensor = weight(graph)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), TENSOR))
    for node in graph.node:
        node.input[:] = ["cast_0" if each == TENSOR else each for each in node.input]
    graph.node.insert(0, helper.make_node("Cast", [TENSOR], ["cast_0"], "cast", to=TensorProto.FLOAT16))


def reshaped(graph: onnx.GraphProto) -> None:
    """The tensor has other sides, of as many values, and is reshaped where it is used."""
    tensor = weight(graph)
    sides = numpy_helper.from_array(np.array(tensor.dims, dtype=np.int64), "sides")
    tensor.dims[:] = [int(np.prod(tensor.dims))]
    for node in graph.node:
        node.input[:] = ["reshaped_0" if each == TENSOR else each for each in node.input]
    graph.initializer.append(sides)
    graph.node.insert(0, helper.make_node("Reshape", [TENSOR, "sides"], ["reshaped_0"], "reshape"))


def of_an_unknown_kind(graph: onnx.GraphProto) -> None:
    """One node is of a kind that nobody knows."""
    next(node for node in graph.node if node.op_type == "Conv").op_type = "Convoluted"


def asked_in_int32(graph: onnx.GraphProto) -> None:
    """Timesteps are of another type."""
    value = next(value for value in graph.input if value.name == "timestep")
    value.type.tensor_type.elem_type = TensorProto.INT32


def asked_with_more_channels(graph: onnx.GraphProto) -> None:
    """The context is wider than the engine's."""
    value = next(value for value in graph.input if value.name == "encoder_hidden_states")
    value.type.tensor_type.shape.dim[1].dim_value += 1


def weight(graph: onnx.GraphProto) -> onnx.TensorProto:
    """The tensor."""
    return next(tensor for tensor in graph.initializer if tensor.name == TENSOR)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, f"has not the model's tensors, such as {TENSOR}"),
        (folded, f"has not the model's tensors, such as {TENSOR}"),
        (typed_otherwise, f"{TENSOR} of the fp16 graph is not of fp16 and shape"),
        (reshaped, f"{TENSOR} of the fp16 graph is not of fp16 and shape"),
    ],
)
def test_a_tensor_that_could_not_be_refitted_is_found_before_the_parser(
    damaged: Callable[[Change], Path], change: Change, reason: str
) -> None:
    """Renamed, folded, of another type or shape: the error names the tensor, and what to do."""
    graphs = damaged(change)

    with pytest.raises(BuildError, match=f"{re.escape(reason)}.*export the base model again with --fp16"):
        check_fp16_graph(graphs, BaseModelSpec.load(graphs))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, f"TensorRT-RTX finds no weights called {TENSOR}"),
        (folded, f"TensorRT-RTX finds no weights called {TENSOR}"),
        (of_an_unknown_kind, "TensorRT-RTX cannot read the fp16 graph: .*Convoluted"),
        (asked_in_int32, "timestep of the fp16 graph is DataType.INT32 and not DataType.INT64"),
        (asked_with_more_channels, "encoder_hidden_states of the fp16 graph has shape"),
    ],
)
def test_what_the_parser_makes_of_a_broken_graph_is_one_line(
    rtx: Any, damaged: Callable[[Change], Path], change: Change, reason: str
) -> None:
    """Weights under another name, a node of no known kind, inputs that the engine does not bind so: one sentence."""
    graphs = damaged(change)
    spec = BaseModelSpec.load(graphs)

    with pytest.raises(BuildError, match=reason) as refusal:
        graph = ParsedGraph(rtx, graphs / FP16_DENOISER, TENSORRT_RTX)
        graph.mark_refittable(spec.tensors)
        graph.shapes(EngineSpec.from_model(spec))

    assert len(str(refusal.value).splitlines()) == 1


def test_a_build_goes_as_far_as_the_driver(rtx: Any, tiny_fp16_graphs: Path, tmp_path: Path) -> None:
    """The real builder takes graph, flags, shapes and limits, and ends where it would compile for a GPU."""
    if shutil.which("nvidia-smi"):
        pytest.skip("a driver is here: tests/gpu builds the plan")
    spec = BaseModelSpec.load(tiny_fp16_graphs)

    with pytest.raises(BuildError, match=r"TensorRT-RTX (does not build for this GPU|cannot build a plan)"):
        build_plan(rtx, tiny_fp16_graphs / FP16_DENOISER, spec, tmp_path / "timing.cache", TENSORRT_RTX)


@pytest.fixture
def damaged(tiny_fp16_graphs: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A copy of the tiny fp16 graph after a change; its digest is that of the changed file."""

    def after(change: Change) -> Path:
        folder = tmp_path / FP16_FOLDER
        folder.mkdir()
        model = onnx.load(tiny_fp16_graphs / FP16_DENOISER)
        change(model.graph)
        onnx.save(model, folder / "denoiser.onnx")
        replace(Fp16Spec.load(tiny_fp16_graphs / FP16_FOLDER), files={}).save(folder)
        shutil.copy(tiny_fp16_graphs / "spec.json", tmp_path)
        return tmp_path

    return after
