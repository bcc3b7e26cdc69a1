"""The fp16 graph: what is typed how, that no tensor is lost, and what holds an engine to PyTorch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file

from tuner_svc.base_model import BaseModel
from tuner_svc.export import fp16
from tuner_svc.export.__main__ import main
from tuner_svc.export.exported_folder import ExportError
from tuner_svc.export.fp16 import MAX_ERROR, check_fp16, export_fp16, is_complete
from unitune.fp16_graph import SELF_TEST_FILE, SELF_TEST_SEEDS, Fp16Spec, self_test_tensors


@pytest.fixture(scope="module")
def fp16_folder(tiny_fp16_graphs: Path) -> Path:
    """The folder of the fp16 graph."""
    return tiny_fp16_graphs / "fp16"


@pytest.fixture(scope="module")
def spec(fp16_folder: Path) -> Fp16Spec:
    """Its specification as the sampler reads it."""
    return Fp16Spec.load(fp16_folder)


def test_every_tensor_is_an_initializer_in_fp16(fp16_folder: Path, spec: Fp16Spec, model: BaseModel) -> None:
    """By its own name, with the base value rounded once, in the layout that the specification says."""
    graph = ir.load(fp16_folder / "denoiser.onnx").graph

    assert spec.tensors.keys() == model.tensors().keys()
    for name, tensor in model.tensors().items():
        found = graph.initializers[name].const_value.numpy()
        assert found.dtype == np.float16
        assert np.array_equal(spec.tensors[name].to_graph(tensor.half().numpy()), found), name


def test_the_graph_is_typed_fp16_within_and_fp32_outside(fp16_folder: Path) -> None:
    """Every convolution and matrix product takes fp16; inputs and output have the fp32 graph's types and names."""
    model = onnx.shape_inference.infer_shapes(onnx.load(fp16_folder / "denoiser.onnx"), data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul", "GroupNormalization")]

    assert len(heavy) > 50
    assert {onnx.TensorProto.FLOAT16} == {types[name] for node in heavy for name in node.input if name in types}
    outside = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    fp32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    assert {"sample": fp32, "timestep": int64, "encoder_hidden_states": fp32, "out": fp32} == outside


def test_the_random_sets_leave_nothing_alike(spec: Fp16Spec, model: BaseModel) -> None:
    """No bias is zero, no two tensors agree, each is exact in fp16, and a seed gives the same set again."""
    first, second = (self_test_tensors(seed, spec.tensors) for seed in SELF_TEST_SEEDS.values())

    for name, tensor in first.items():
        assert tensor.shape == tuple(model.tensors()[name].shape)
        assert np.array_equal(tensor, tensor.astype(np.float16)) and np.all(np.abs(tensor).max() > 0)
        assert not np.array_equal(tensor, second[name])
    assert len({tensor.tobytes() for tensor in first.values()}) == len(first)
    again = self_test_tensors(SELF_TEST_SEEDS["first"], spec.tensors)
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_the_self_tests_answers_are_torchs_and_unlike_each_other(
    fp16_folder: Path, spec: Fp16Spec, model: BaseModel
) -> None:
    """The base answer is the base model's; random sets answer otherwise by far more than fp16's noise."""
    answers = load_file(fp16_folder / SELF_TEST_FILE)
    expected = fp16._answer(model, model.denoiser.unet, {})

    assert {"base", *SELF_TEST_SEEDS} == answers.keys() == spec.noise.keys()
    np.testing.assert_allclose(answers["base"], expected, rtol=0, atol=1e-5)
    for name in SELF_TEST_SEEDS:
        assert 1e-5 < spec.noise[name] < 0.01
        assert np.linalg.norm(answers[name] - answers["base"]) > 0.5 * np.linalg.norm(answers[name])


def test_the_check_finds_a_single_stale_tensor(fp16_folder: Path, spec: Fp16Spec, model: BaseModel) -> None:
    """With random sets, one tensor of all left as it was goes beyond three times the noise, whichever it is."""
    answers = load_file(fp16_folder / SELF_TEST_FILE)
    first, second = (self_test_tensors(seed, spec.tensors) for seed in SELF_TEST_SEEDS.values())
    unet = fp16.Fp16Denoiser(model.denoiser).unet
    names = sorted(first)[:: len(first) // 12]

    for name in names:
        stale = fp16._answer(model, unet, {**first, name: second[name]})
        error = np.linalg.norm(stale - answers["first"]) / np.linalg.norm(answers["first"])
        assert error > MAX_ERROR * spec.noise["first"], name


def test_a_graph_that_answers_otherwise_is_not_written(fp16_folder: Path, spec: Fp16Spec, model: BaseModel) -> None:
    """The check names the set of weights and the size of the error."""
    answers = load_file(fp16_folder / SELF_TEST_FILE)
    answers["second"] = answers["second"] * np.float32(1.1)

    with pytest.raises(ExportError, match="with second weights"):
        check_fp16(fp16_folder / "denoiser.onnx", model, spec.tensors, answers, spec.noise)


def test_weights_beyond_fp16_are_refused(model: BaseModel, tmp_path: Path) -> None:
    """A base model whose weights overflow has no fp16 graph, and the error names the tensor."""
    large = replace(model)
    name, tensor = next((name, tensor) for name, tensor in large.tensors().items() if name.endswith("conv_out.bias"))
    before = tensor.clone()
    with torch.no_grad():
        tensor[0] = 1e6
        try:
            with pytest.raises(ExportError, match=f"{name} has values beyond"):
                export_fp16(large, tmp_path)
        finally:
            tensor.copy_(before)


def test_an_fp16_graph_is_found_again_until_a_file_of_it_changes(
    tiny_model: Path, tiny_fp16_graphs: Path, tmp_path: Path
) -> None:
    """`--fp16` on a complete folder writes nothing; with one byte changed it is complete no more."""
    graphs = Path(shutil.copytree(tiny_fp16_graphs, tmp_path / "graphs"))
    digest = json.loads((graphs / "spec.json").read_text())["digest"]
    arguments = ["--base-model", str(tiny_model), "--out", str(graphs), "--fp16"]
    written = (graphs / "fp16" / "fp16.json").stat().st_mtime_ns

    assert main(arguments) == 0
    assert (graphs / "fp16" / "fp16.json").stat().st_mtime_ns == written
    assert is_complete(graphs, digest) and not is_complete(graphs, "another")
    with open(graphs / "fp16" / "self_test.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert not is_complete(graphs, digest)


def test_an_incomplete_fp16_graph_is_made_again(tiny_fp16_graphs: Path) -> None:
    """Where the fp16 graph of these tests lies, `--fp16` found an incomplete one; nothing of it is left."""
    digest = json.loads((tiny_fp16_graphs / "spec.json").read_text())["digest"]

    assert is_complete(tiny_fp16_graphs, digest)
    assert not (tiny_fp16_graphs / "fp16" / "left_over").exists()
    assert not [path.name for path in tiny_fp16_graphs.iterdir() if path.name.startswith(".")]
