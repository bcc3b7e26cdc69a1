"""Moving weights in and out of an ONNX file, held against the onnx package."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sampler_svc.engines.onnx_file import initializers, put_outside, structure_digest

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((3, 5), dtype=np.float32)
BIAS = RNG.standard_normal(5, dtype=np.float32)
SHAPE = np.array([1, -1], dtype=np.int64)
TABLE = RNG.standard_normal((40, 40), dtype=np.float32)


def save(folder: Path, *, outside: tuple[str, ...] = (), weight: np.ndarray = WEIGHT) -> Path:
    """A graph with a weight, a bias stored as `float_data`, a shape and a large constant; some of them outside."""
    tensors = [
        numpy_helper.from_array(weight, "weight"),
        helper.make_tensor("bias", TensorProto.FLOAT, BIAS.shape, BIAS.tolist()),
        numpy_helper.from_array(SHAPE, "shape"),
        numpy_helper.from_array(TABLE, "table"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Reshape", ["sum", "shape"], ["out"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, "m"])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="name", value="kept")
    path, data = folder / "graph.onnx", b""
    for tensor in model.graph.initializer:
        if tensor.name in outside:
            raw = numpy_helper.to_array(tensor).tobytes()
            for field in ("float_data", "int64_data", "raw_data"):
                tensor.ClearField(field)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": "graph.onnx.data", "offset": len(data), "length": len(raw)}.items():
                tensor.external_data.add(key=key, value=str(value))
            data += raw
    if data:
        (folder / "graph.onnx.data").write_bytes(data)
    onnx.save(model, path)
    return path


def values(path: Path) -> dict[str, np.ndarray]:
    """What the onnx package reads."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def outside(path: Path) -> set[str]:
    """Names that the onnx package finds outside."""
    model = onnx.load(path, load_external_data=False)
    return {tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}


@pytest.mark.parametrize("before", [(), ("weight",), ("shape",), ("weight", "bias", "shape", "table")])
def test_named_weights_go_outside_and_shapes_inside(tmp_path: Path, before: tuple[str, ...]) -> None:
    """Wherever each lay before, every value stays what it was, and so do nodes, inputs and metadata."""
    path = save(tmp_path, outside=before)
    model, was = onnx.load(path), values(path)

    put_outside(tmp_path, "graph.onnx", {"weight", "bias"})

    assert outside(path) - {"table"} == {"weight", "bias"}
    assert ("table" in outside(path)) == ("table" in before)
    for name, value in values(path).items():
        np.testing.assert_array_equal(value, was[name])
        assert value.dtype == was[name].dtype
    after = onnx.load(path)
    assert after.graph.node == model.graph.node
    assert (after.graph.input, after.graph.output) == (model.graph.input, model.graph.output)
    assert (after.metadata_props, after.opset_import) == (model.metadata_props, model.opset_import)
    onnx.checker.check_model(path)


def test_initializers_tell_name_shape_and_place(tmp_path: Path) -> None:
    """What is inside has bytes, what is outside a place in the data file."""
    found = initializers(save(tmp_path, outside=("weight",)).read_bytes())

    assert {name: item.shape for name, item in found.items()} == {
        "weight": (3, 5),
        "bias": (5,),
        "shape": (2,),
        "table": (40, 40),
    }
    assert found["weight"].outside == (0, 60) and found["weight"].inside is None
    assert found["bias"].inside == BIAS.tobytes() and found["bias"].outside is None


def test_a_weight_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Nothing is written when a named weight is missing."""
    path = save(tmp_path)
    before = path.read_bytes()

    with pytest.raises(ValueError, match="lost 1 of its weights, such as lost"):
        put_outside(tmp_path, "graph.onnx", {"weight", "lost"})

    assert path.read_bytes() == before


def test_a_data_file_that_ends_too_early_is_told(tmp_path: Path) -> None:
    """A truncated data file is never padded."""
    save(tmp_path, outside=("weight", "bias"))
    data = tmp_path / "graph.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])

    with pytest.raises(ValueError, match="ends within bias"):
        put_outside(tmp_path, "graph.onnx", {"weight", "bias"})


def test_structure_does_not_depend_on_values_that_lie_outside(tmp_path: Path) -> None:
    """Other weights, same structure; another node's name, shape or inner constant, another structure."""
    names = ("weight", "bias")
    digest = structure_digest(save(tmp_path, outside=names).read_bytes())

    assert structure_digest(save(tmp_path, outside=names, weight=WEIGHT + 1).read_bytes()) == digest
    assert structure_digest(save(tmp_path, outside=names, weight=WEIGHT[:, :4]).read_bytes()) != digest
    assert structure_digest(save(tmp_path, outside=("bias",)).read_bytes()) != digest


@pytest.mark.parametrize("length", [1, 10, 100, 400])
def test_bytes_that_are_no_graph_raise_value_errors(tmp_path: Path, length: int) -> None:
    """A file cut short is an error in words, never an index out of range."""
    with pytest.raises(ValueError, match=r"not an ONNX file|initializer"):
        initializers(save(tmp_path).read_bytes()[:-length])
