"""The controlled graph against attention written out in PyTorch, and what is refused."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from tuner_svc.base_model import BaseModel
from tuner_svc.export import controls as controls_of_graphs
from tuner_svc.export.controls import NoAttention, add_controls
from tuner_svc.export.denoiser import example, randomised_denoiser
from unitune.attention import MAPS, OUT, Controls, no_controls
from unitune.base_model import BaseModelSpec

TOLERANCE = 1e-5  # P8's, of values of about 1
PLAIN, CONTROLLED = "denoiser.onnx", "denoiser_controlled.onnx"


class Explicit:
    """Attention of diffusers' UNet with its softmax in the open, which takes maps over by `controls`."""

    def __init__(self, controls: Controls, maps: list[Tensor]) -> None:
        self.controls = Controls(*(torch.from_numpy(array) for array in controls))
        self.maps = maps

    def __call__(
        self, attention: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            linear(of).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for linear, of in ((attention.to_q, hidden_states), (attention.to_k, context), (attention.to_v, context))
        )
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        source, mapper, own, share = self.controls
        if encoder_hidden_states is not None:
            weights = weights[source] @ mapper[:, None] + weights * own[:, None, None]
            if weights.shape[2] == 144:  # of the tiny model's two sizes the largest
                self.maps.append(weights.mean(dim=1))
        else:  # both sizes have at most 256 positions
            share = share[:, None, None, None]
            weights = share * weights[source] + (1 - share) * weights
        return attention.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


def explicit(model: BaseModel, inputs: dict[str, Tensor], controls: Controls) -> tuple[np.ndarray, np.ndarray]:
    """Output and maps of the tiny model with its weights disturbed, by explicit attention."""
    maps: list[Tensor] = []
    denoiser = randomised_denoiser(model, seed=5)
    denoiser.unet.set_attn_processor(Explicit(controls, maps))
    with torch.no_grad():
        answer = denoiser(*inputs.values())
    mean = torch.stack(maps).mean(dim=0).transpose(1, 2).unflatten(-1, (12, 12))
    return answer.numpy(), mean.numpy()


def run(
    graphs: Path, name: str, outputs: list[str], inputs: dict[str, Tensor], model: BaseModel, controls: Controls | None
) -> list[np.ndarray]:
    """A graph's answers with the same disturbed weights, put in by name."""
    spec = BaseModelSpec.load(graphs)
    tensors = randomised_denoiser(model, seed=5).unet.state_dict()
    arrays = {name: np.ascontiguousarray(spec.tensors[name].to_graph(t.numpy())) for name, t in tensors.items()}
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    session = onnxruntime.InferenceSession(graphs / name, options, providers=["CPUExecutionProvider"])
    feed = {key: value.numpy() for key, value in inputs.items()} | (controls._asdict() if controls else {})
    return session.run(outputs, feed)


def some_controls(tokens: int) -> Controls:
    """Two sources that keep their maps, and two rows that each take another mixture of theirs."""
    rng = np.random.default_rng(3)
    controls = no_controls(4, tokens)
    controls.source[2:] = (0, 1)
    controls.mapper[2:] = rng.random((2, tokens, tokens), dtype=np.float32) / tokens
    controls.own[2:] = rng.random((2, tokens), dtype=np.float32)
    controls.share[2:] = (1, 0.5)
    return controls


def test_with_controls_off_it_is_the_plain_graph(tiny_graphs: Path, model: BaseModel) -> None:
    """The same outputs within 1e-6 for a batch of 3, after the same tensors were put into both under the same names."""
    inputs = example(model, batch=3, seed=2)
    (plain,) = run(tiny_graphs, PLAIN, [OUT], inputs, model, None)
    off, maps = run(tiny_graphs, CONTROLLED, [OUT, MAPS], inputs, model, no_controls(3, model.context_tokens))

    assert np.abs(plain - off).max() <= 1e-6
    assert (3, model.context_tokens, 12, 12) == maps.shape
    assert np.allclose(1, maps.sum(axis=1), atol=1e-5)


@pytest.mark.parametrize("is_controlled", [False, True])
def test_it_answers_like_explicit_attention(tiny_graphs: Path, model: BaseModel, is_controlled: bool) -> None:
    """Outputs and maps are those of attention written out in PyTorch within 1e-5, with controls off and on (P8)."""
    inputs, tokens = example(model, batch=4, seed=3), model.context_tokens
    controls = some_controls(tokens) if is_controlled else no_controls(4, tokens)
    expected, expected_maps = explicit(model, inputs, controls)
    answer, maps = run(tiny_graphs, CONTROLLED, [OUT, MAPS], inputs, model, controls)

    assert np.abs(expected - answer).max() <= TOLERANCE
    assert np.abs(expected_maps - maps).max() <= TOLERANCE


def test_fused_attention_is_explicit_attention(model: BaseModel) -> None:
    """PyTorch's own attention answers as the one written out here within 1e-5, so that either may be exported (P8)."""
    inputs = example(model, batch=2, seed=4)
    expected, _ = explicit(model, inputs, no_controls(2, model.context_tokens))
    with torch.no_grad():
        fused = randomised_denoiser(model, seed=5)(*inputs.values()).numpy()

    assert np.abs(expected - fused).max() <= TOLERANCE


def test_every_control_has_an_effect_on_its_own_row_alone(tiny_graphs: Path, model: BaseModel) -> None:
    """A row that takes maps answers otherwise for each control; the rows it takes them from answer as before."""
    inputs, tokens = example(model, batch=2, seed=6), model.context_tokens
    off, _ = run(tiny_graphs, CONTROLLED, [OUT, MAPS], inputs, model, no_controls(2, tokens))
    for name in ("mapper", "own", "share"):
        controls = no_controls(2, tokens)
        controls.source[1] = 0
        getattr(controls, name)[1] = {"mapper": np.eye(tokens), "own": 0.5, "share": 1}[name]
        answer, _ = run(tiny_graphs, CONTROLLED, [OUT, MAPS], inputs, model, controls)

        assert np.array_equal(off[0], answer[0]), name
        assert np.abs(off[1] - answer[1]).max() > 1e-3, name


def test_both_graphs_read_one_data_file(tiny_graphs: Path) -> None:
    """The controlled graph has the plain one's outside initializers at the same places, and no others."""
    plain, controlled = (ir.load(tiny_graphs / name).graph.initializers for name in (PLAIN, CONTROLLED))

    def outside(initializers: dict[str, ir.Value]) -> dict[str, tuple[str, int, int]]:
        tensors = {name: value.const_value for name, value in initializers.items()}
        return {
            name: (tensor.location, tensor.offset, tensor.length)
            for name, tensor in tensors.items()
            if isinstance(tensor, ir.ExternalTensor)
        }

    assert set(BaseModelSpec.load(tiny_graphs).tensors) == set(outside(plain))
    assert outside(plain) == outside(controlled)


@pytest.fixture(scope="module")
def written_out(tiny_fp16_graphs: Path) -> ir.Model:
    """The tiny model's graph without any control, attention written out; that in fp16 is there. Tests change copies."""
    return ir.load(tiny_fp16_graphs / "fp16" / "denoiser.onnx")


def test_the_smallest_layers_are_controlled_where_all_are_large(
    written_out: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Self-attention is taken over in the layers of the smallest size, as SDXL has none of 256 places or fewer."""
    kept = {}
    for most in (256, 1):
        monkeypatch.setattr(controls_of_graphs, "MAX_POSITIONS", most)
        graph = ir.from_proto(ir.to_proto(written_out)).graph
        add_controls(graph, (12, 12), 16)
        share = next(value for value in graph.inputs if value.name == "share")
        (as_rows,) = (node.outputs[0] for node, _ in share.uses())
        kept[most] = sum(node.op_type == "Mul" for node, _ in as_rows.uses())

    assert 0 < kept[1] < kept[256]


def test_a_graph_without_cross_attention_is_refused(written_out: ir.Model) -> None:
    """Another name for the text embedding leaves no keys that come from it; a side that fits no layer is named."""
    graph, other = (ir.from_proto(ir.to_proto(written_out)).graph for _ in range(2))
    with pytest.raises(NoAttention, match="no size of"):
        add_controls(graph, (10, 10), 16)

    next(value for value in other.inputs if value.name == "encoder_hidden_states").name = "context"
    with pytest.raises(NoAttention, match="text embedding"):
        add_controls(other, (12, 12), 16)
