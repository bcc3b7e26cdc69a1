"""The graphs folder, made once for all tests, and what is refused."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests.tiny_model import WORDS
from tuner_svc.base_model import BaseModel, load
from tuner_svc.export.__main__ import main
from tuner_svc.export.attention import fuse_attention
from tuner_svc.export.base_model import export, export_under
from tuner_svc.export.check import check_graph
from tuner_svc.export.denoiser import example, match, randomised_denoiser
from tuner_svc.export.exported_folder import (
    DIGEST_CHARACTERS,
    IDENTITIES_FILE,
    ExportError,
    is_complete,
    is_export_of,
)
from tuner_svc.export.graph import to_graph
from tuner_svc.export.operators import TRANSLATIONS, plain_attention, plain_group_norm, plain_linear
from tuner_svc.export.preview import latent_to_rgb
from tuner_svc.model_folder import digest as digest_of
from tuner_svc.model_folder import graphs_digest
from unitune.base_model import BaseModelSpec, TensorSpec, file_digest
from unitune.images import ModelImage
from unitune.known_pictures import KNOWN_PICTURES_FILE, KnownPictures
from unitune_client.local.home import Home

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "denoiser.onnx",
    "denoiser.safetensors",
    "denoiser_controlled.onnx",
    "fast_lora.safetensors",
    "image_decoder.onnx",
    "image_encoder.onnx",
    "super_resolution.onnx",
    "super_resolution.safetensors",
    "super_resolution_2.onnx",
    "super_resolution_2.safetensors",
    "text_encoder.onnx",
    "tokenizer.json",
}


# The base model here is the services', with all that one can have: what its export has written is whole.


@pytest.fixture(scope="session")
def services_graphs(built_home: Home) -> Path:
    """Its graphs folder, as the services have had it exported."""
    (folder,) = built_home.graphs.iterdir()
    return folder


@pytest.fixture(scope="session")
def model(services_model: Path) -> BaseModel:
    """It in memory."""
    return load(services_model)


@pytest.fixture(scope="module")
def spec(services_graphs: Path) -> BaseModelSpec:
    """The specification as the sampler reads it."""
    return BaseModelSpec.load(services_graphs)


def run(path: Path, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """A graph's answer on ONNX Runtime, with some initializers replaced by name."""
    options = onnxruntime.SessionOptions()
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_the_specification_describes_the_model(spec: BaseModelSpec, model: BaseModel) -> None:
    """Sides, digest, schedule and preset are the base model's own."""
    for field in ("name", "digest", "image_side", "latent_side", "latent_channels", "context_tokens", "context_width"):
        assert getattr(model, field) == getattr(spec, field), field
    assert (model.schedule, model.preset, model.vocabulary) == (spec.schedule, spec.preset, spec.vocabulary)


def test_every_file_is_listed_with_its_digest(services_graphs: Path, spec: BaseModelSpec) -> None:
    """The folder holds these files and no other, and none was changed after it was digested."""
    assert FILES == set(spec.files)
    assert {*FILES, "spec.json", IDENTITIES_FILE} == {path.name for path in services_graphs.iterdir()}
    for name, digest in spec.files.items():
        assert digest == hashlib.sha256((services_graphs / name).read_bytes()).hexdigest(), name


def test_every_tensor_is_an_initializer_of_its_own(
    services_graphs: Path, spec: BaseModelSpec, model: BaseModel, tmp_path: Path
) -> None:
    """A bijection by name: shape and values are the base tensor in the layout that the specification says."""
    base = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    for name in ("denoiser.onnx", "denoiser.safetensors"):  # an engine may have linked it, which this reader refuses
        shutil.copyfile(services_graphs / name, tmp_path / name)
    graph = ir.load(tmp_path / "denoiser.onnx").graph

    assert base.keys() == spec.tensors.keys()
    for name, tensor in spec.tensors.items():
        assert base[name].shape == tensor.shape
        assert np.array_equal(tensor.to_graph(base[name]), graph.initializers[name].const_value.numpy()), name
    assert {"same", "reshaped"} == {tensor.layout for tensor in spec.tensors.values()}


def test_tensors_lie_outside_and_shapes_inside(services_graphs: Path, spec: BaseModelSpec) -> None:
    """The file of base weights holds exactly the tensors, however small; shapes stay inside, where they can be read."""
    graph = onnx.load(services_graphs / "denoiser.onnx", load_external_data=False).graph
    outside = {one.name for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    locations = {entry.value for one in graph.initializer for entry in one.external_data if entry.key == "location"}

    assert set(spec.tensors) == outside
    assert {"denoiser.safetensors"} == locations
    for name in ("text_encoder", "image_encoder", "image_decoder"):
        frozen = onnx.load(services_graphs / f"{name}.onnx", load_external_data=False).graph
        assert not any(one.data_location == onnx.TensorProto.EXTERNAL for one in frozen.initializer), name


def test_graphs_tell_nothing_of_the_machine(services_graphs: Path) -> None:
    """No path, no name of a source file is left in any graph."""
    for path in services_graphs.glob("*.onnx"):
        assert not [
            word for word in (b".py", b"/home", b"/work", b"/tmp", b"site-packages") if word in path.read_bytes()
        ]


def test_the_denoiser_answers_like_torch_with_two_weight_sets(
    services_graphs: Path, spec: BaseModelSpec, model: BaseModel
) -> None:
    """S10: base weights, then all others put in by name, then the base again, at batch sizes 1, 2 and 5."""
    others = randomised_denoiser(model, seed=7)
    sets = {
        "base": (model.denoiser, {}),
        "others": (
            others,
            {name: spec.tensors[name].to_graph(t.numpy()) for name, t in others.unet.state_dict().items()},
        ),
    }
    for batch in (1, 2, 5):
        inputs = example(model, batch, seed=batch)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        answers = []
        for module, weights in sets.values():
            answers.append(run(services_graphs / "denoiser.onnx", arrays, weights))
            with torch.no_grad():
                expected = module(*inputs.values()).numpy()
            np.testing.assert_allclose(answers[-1], expected, atol=1e-5 * np.abs(expected).max())
        assert np.abs(answers[0] - answers[1]).max() > 1e-2


def test_attention_is_one_node(services_graphs: Path, model: BaseModel) -> None:
    """Every attention of the denoiser is, and none of the controlled graph, whose maps must be in reach."""
    nodes, controlled = (
        Counter(node.op_type for node in onnx.load(services_graphs / name, load_external_data=False).graph.node)
        for name in ("denoiser.onnx", "denoiser_controlled.onnx")
    )
    attentions = sum(isinstance(module, Attention) for module in model.denoiser.unet.modules())

    assert (attentions, 0) == (nodes["MultiHeadAttention"], nodes["Softmax"])
    assert (attentions, 0) == (controlled["Softmax"], controlled["MultiHeadAttention"])


class Attending(torch.nn.Module):
    """Attention of six places to four others, two heads; its maps are halved on their way if you like."""

    def __init__(self, *, halved: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q, self.to_k, self.to_v, self.to_out = (torch.nn.Linear(8, 8) for _ in range(4))
        self.halved = halved

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        others = places[:, 2:]
        query, key, value = (
            linear(of).unflatten(-1, (2, 4)).transpose(1, 2)
            for linear, of in ((self.to_q, places), (self.to_k, others), (self.to_v, others))
        )
        if self.halved:
            maps = ((query * 0.5) @ (key * 0.5).transpose(-1, -2)).softmax(-1)
            return self.to_out((maps * 0.5 @ value).transpose(1, 2).flatten(2))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("halved", [False, True])
def test_attention_in_one_node_answers_like_torch(halved: bool, tmp_path: Path) -> None:
    """With other numbers of queries and keys; what does more than attention does is left as it is."""
    module, places = Attending(halved=halved).eval(), torch.randn((2, 6, 8), generator=torch.Generator().manual_seed(1))
    graph = fuse_attention(to_graph(module, {"places": places}, "out", translations=TRANSLATIONS))
    ir.save(graph, tmp_path / "attending.onnx")

    assert (0 if halved else 1) == sum(node.op_type == "MultiHeadAttention" for node in graph.graph)
    answer = run(tmp_path / "attending.onnx", {"places": places.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answer, module(places).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (torch.nn.Linear(4, 6), (2, 4)),
        (torch.nn.Linear(4, 6), (2, 3, 4)),
        (torch.nn.Linear(4, 6, bias=False), (2, 3, 5, 4)),
        (torch.nn.GroupNorm(2, 4), (2, 4, 5)),
        (torch.nn.GroupNorm(2, 4), (2, 4, 3, 5)),
        (torch.nn.GroupNorm(2, 4, affine=False), (2, 4, 3, 5)),
    ],
)
def test_our_operators_answer_like_torch(operator: torch.nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Products of matrices and group norms of several ranks, with tensors that are not 0 and 1, at two batch sizes.
    Every tensor lies in the graph as it does in PyTorch."""
    generator = torch.Generator().manual_seed(0)
    for tensor in operator.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    values = torch.randn(shape, generator=generator)
    graph = to_graph(operator.eval(), {"values": values}, "out", translations=TRANSLATIONS)
    ir.save(graph, tmp_path / "operator.onnx")

    assert "transposed" not in {found.spec.layout for found in match(tensors_of(operator), graph).values()}
    for batch in (values, values[:1]):
        answer = run(tmp_path / "operator.onnx", {"values": batch.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(answer, operator(batch).numpy(), atol=1e-5)


@pytest.mark.parametrize("more", [{"is_causal": True}, {"dropout_p": 0.1}, {"enable_gqa": True}])
def test_attention_that_is_not_plain_is_refused(more: dict[str, Any]) -> None:
    """What the denoiser's own attention does not ask is not dropped without a word."""
    value = ir.Value(name="query", shape=ir.Shape((2, 4, 9, 8)))
    with pytest.raises(ValueError, match="without a mask"):
        plain_attention(value, value, value, **more)
    with pytest.raises(ValueError, match="without a mask"):
        plain_attention(value, value, value, attn_mask=value)


@pytest.mark.parametrize("sizes", [["n", "k", "c"], ["n"]])
def test_an_operator_of_other_sizes_is_refused(sizes: list[str | int]) -> None:
    """Channels may not be free, and there must be rows: what a shape in the graph would have to guess is not."""
    values, weight = ir.Value(name="values", shape=ir.Shape(sizes)), ir.Value(name="w", shape=ir.Shape([6, 4]))

    for refused in (lambda: plain_linear(values, weight), lambda: plain_group_norm(values, 2, weight, weight)):
        with pytest.raises(ValueError, match="fixed channels"):
            refused()


def test_a_module_that_cannot_be_exported_is_refused_with_the_cause() -> None:
    """One line, from the end of the exporter's pages, in an error that the program tells as it is."""
    group_norm = torch.nn.GroupNorm(2, 4)

    with pytest.raises(ExportError, match=r"^PyTorch cannot export it: only operators of fixed channels.*$"):
        to_graph(group_norm, {"values": torch.randn(2, 4)}, "out", translations=TRANSLATIONS)


def test_each_tensor_matters_by_its_own_name(services_graphs: Path, spec: BaseModelSpec, model: BaseModel) -> None:
    """Replacing one tensor in the graph does what replacing it in torch does, for one of each layout and for norms."""
    others = {name: tensor.numpy() for name, tensor in randomised_denoiser(model, seed=3).unet.state_dict().items()}
    inputs = example(model)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    base = run(services_graphs / "denoiser.onnx", arrays)
    by_layout = {tensor.layout: name for name, tensor in spec.tensors.items()}

    for name in {*by_layout.values(), "conv_norm_out.weight", "conv_norm_out.bias", "conv_in.bias"}:
        answer = run(services_graphs / "denoiser.onnx", arrays, {name: spec.tensors[name].to_graph(others[name])})
        with torch.no_grad():
            expected = torch.func.functional_call(
                model.denoiser.unet, {name: torch.from_numpy(others[name])}, tuple(inputs.values())
            ).sample.numpy()
        assert np.abs(answer - base).max() > 1e-4, name
        np.testing.assert_allclose(answer, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_the_frozen_graphs_answer_like_torch(services_graphs: Path, model: BaseModel, image: ModelImage) -> None:
    """Text encoder, image encoder with scaling and mode, and image decoder agree with PyTorch on real input."""
    ids = model.input_ids(["", "a cat on a beach", "beikkpic a dog"])
    vectors = torch.randn((2, model.context_width), generator=torch.Generator().manual_seed(3))
    ids[1, 2:4] = torch.tensor([-1, -2])  # two words that only the vectors know
    latent = model.encode_image(image)
    with torch.no_grad():
        hidden, decoded = model.text_encoder(ids, vectors).numpy(), model.image_decoder(latent).numpy()

    for name, inputs, expected in (
        ("text_encoder", {"input_ids": ids.numpy(), "vectors": vectors.numpy()}, hidden),
        ("image_encoder", {"image": image}, latent.numpy()),
        ("image_decoder", {"latent": latent.numpy()}, decoded),
    ):
        np.testing.assert_allclose(run(services_graphs / f"{name}.onnx", inputs), expected, atol=1e-5, err_msg=name)


def test_the_text_encoder_takes_any_number_of_vectors(services_graphs: Path, model: BaseModel) -> None:
    """One vector, or as many as a prompt may hold, stand where their ids are."""
    for number in (1, 14):
        vectors = torch.randn((number, model.context_width), generator=torch.Generator().manual_seed(number))
        ids = model.input_ids(["a cat"])
        ids[0, 1 : 1 + number] = -1 - torch.arange(number)
        with torch.no_grad():
            expected = model.text_encoder(ids, vectors).numpy()
        found = run(services_graphs / "text_encoder.onnx", {"input_ids": ids.numpy(), "vectors": vectors.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_base_weights_are_the_models_own(services_graphs: Path, spec: BaseModelSpec, model: BaseModel) -> None:
    """denoiser.safetensors holds every tensor by its name, bit-equal, fp32."""
    stored = load_file(services_graphs / spec.base_weights)

    assert model.tensors().keys() == stored.keys()
    assert all(np.array_equal(model.tensors()[name].numpy(), tensor) for name, tensor in stored.items())
    assert {np.dtype(np.float32)} == {tensor.dtype for tensor in stored.values()}


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "beikkpic",
        "beikkpic a cat",
        "A  CAT\non a Beach!",
        "it's 3 o'clock",
        "naïve café 日本 🙂",
        "x " * 100,
        *WORDS,
    ],
)
def test_tokenizers_alone_gives_the_same_ids(services_graphs: Path, model: BaseModel, prompt: str) -> None:
    """Without transformers the ids are the same: lower case, padding, and the end kept when a prompt is cut."""
    tokenizer = Tokenizer.from_file(str(services_graphs / "tokenizer.json"))

    assert model.input_ids([prompt])[0].tolist() == tokenizer.encode(prompt).ids


def test_the_preview_map_is_the_decoder_where_that_is_linear(spec: BaseModelSpec, model: BaseModel) -> None:
    """An autoencoder whose decoder is a matrix and an offset gives just these; the specification has their shape."""
    generator = torch.Generator().manual_seed(0)
    matrix, offset = 0.1 * torch.randn((4, 3), generator=generator), torch.tensor([0.1, -0.2, 0.3])
    into = torch.randn((4, 3), generator=generator)

    class Encoder(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            small = torch.nn.functional.avg_pool2d(image, 4)
            # One channel is a product, so that the four are independent.
            return torch.einsum("nrhw,cr->nchw", small, into) + small[:, :1] * small[:, 1:2]

    class Decoder(torch.nn.Module):
        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            colours = torch.einsum("nchw,cr->nrhw", latent, matrix) + offset[:, None, None]
            return torch.nn.functional.interpolate(colours, scale_factor=4)

    fitted = np.array(latent_to_rgb(replace(model, image_encoder=Encoder(), image_decoder=Decoder())))

    np.testing.assert_allclose(fitted, torch.vstack([matrix, offset]).numpy(), atol=1e-4)
    assert (model.latent_channels + 1, 3) == np.array(spec.latent_to_rgb).shape


def test_a_complete_folder_is_not_made_again(services_model: Path, services_graphs: Path) -> None:
    """A second export returns at once and changes no file."""
    before = {path.name: path.stat().st_mtime_ns for path in services_graphs.iterdir()}
    said: list[str] = []

    assert services_graphs == export(services_model, services_graphs, said.append)
    assert [] == said
    assert before == {path.name: path.stat().st_mtime_ns for path in services_graphs.iterdir()}


def test_a_root_finds_the_folder_by_the_models_digest(
    services_model: Path, services_graphs: Path, spec: BaseModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Graphs below a root are found again, and the program's last line of stdout names them."""
    folder = shutil.copytree(services_graphs, tmp_path / spec.digest[:16])

    assert folder == export_under(services_model, tmp_path)
    assert 0 == main(["--base-model", str(services_model), "--graphs-root", str(tmp_path)])
    assert str(folder) == capsys.readouterr().out.splitlines()[-1]


WITHOUT_PYTORCH = """
import sys
sys.modules.update(dict.fromkeys(["diffusers", "torch", "transformers"]))
from tuner_svc.export.__main__ import main
sys.exit(main())
"""


def test_graphs_that_are_there_are_found_without_pytorch(
    services_model: Path, services_graphs: Path, spec: BaseModelSpec, tmp_path: Path
) -> None:
    """It takes seconds to load, and nobody waits for it who starts services whose graphs are there."""
    folder = shutil.copytree(services_graphs, tmp_path / spec.digest[:DIGEST_CHARACTERS])
    command = [sys.executable, "-c", WITHOUT_PYTORCH, "--base-model", services_model, "--graphs-root", tmp_path]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert (0, f"{folder}\n") == (done.returncode, done.stdout), done.stderr


def test_a_folder_that_lacks_a_file_is_not_complete(services_graphs: Path, spec: BaseModelSpec, tmp_path: Path) -> None:
    """Neither a missing graph nor another model's digest counts."""
    folder = shutil.copytree(services_graphs, tmp_path / "graphs")

    assert is_complete(folder, spec.digest)
    assert not is_complete(folder, "0" * 64)
    (folder / "tokenizer.json").unlink()
    assert not is_complete(folder, spec.digest)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_folder_is_not_complete_and_is_exported_again(
    services_model: Path, services_graphs: Path, spec: BaseModelSpec, tmp_path: Path, damage: str
) -> None:
    """Its files' names are not enough: one that is shorter, or has another byte, is found. Where the graphs of these
    tests lie, a damaged folder lay before; a root gets a whole folder in its place, and nothing of it is left."""
    folder = shutil.copytree(services_graphs, tmp_path / spec.digest[:16])
    weights = folder / spec.base_weights
    assert is_export_of(folder, services_model, spec.digest)
    with weights.open("r+b") as file:
        if damage == "cut":
            file.truncate(weights.stat().st_size - 1)
        else:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))

    assert not is_complete(folder, spec.digest) and not is_export_of(folder, services_model, spec.digest)
    assert is_complete(services_graphs, spec.digest) and [services_graphs] == list(services_graphs.parent.iterdir())
    assert "left_over" not in {path.name for path in services_graphs.iterdir()}


def test_files_that_were_checked_are_not_read_again(
    services_graphs: Path, spec: BaseModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied folder is read once; then sizes, times and inodes are enough."""
    folder, read = shutil.copytree(services_graphs, tmp_path / "graphs"), list[str]()

    def digested(path: Path) -> str:
        read.append(path.name)
        return file_digest(path)

    monkeypatch.setattr("tuner_svc.export.exported_folder.file_digest", digested)

    assert is_complete(folder, spec.digest) and sorted(spec.files) == sorted(read)
    read.clear()
    assert is_complete(folder, spec.digest) and [] == read


def test_a_folder_with_other_files_is_left_alone(services_model: Path, tmp_path: Path) -> None:
    """Nothing is written where something else lies."""
    (tmp_path / "letter.txt").write_text("dear")

    with pytest.raises(ExportError, match="holds something else"):
        export(services_model, tmp_path)

    assert ["letter.txt"] == [path.name for path in tmp_path.iterdir()]


def test_a_failed_export_leaves_nothing(services_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that does not pass its check never gets a folder, and no partial one stays."""
    monkeypatch.setattr("tuner_svc.export.check.TOLERANCE", -1.0)

    with pytest.raises(ExportError, match="differs from PyTorch"):
        export(services_model, tmp_path / "graphs")

    assert [] == list(tmp_path.iterdir())


def test_the_program_refuses_what_is_no_model_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1, stdout is empty, and one line on stderr says what is missing."""
    code = main(["--base-model", str(tmp_path), "--out", str(tmp_path / "out")])

    said = capsys.readouterr()
    assert (1, "") == (code, said.out)
    assert [f"export: {tmp_path} is not a diffusers folder: it has no model_index.json"] == said.err.splitlines()


class Pair(torch.nn.Module):
    """Two linear layers, for graphs that take no time to export."""

    def __init__(self, *, equal: bool = False, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4)
        self.third = torch.nn.Linear(6, 4) if unused else None
        if equal:
            self.second.weight = torch.nn.Parameter(self.first.weight.detach().T.clone())

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(sample))


def tensors_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A module's tensors by name."""
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def test_equal_tensors_cannot_be_told_apart() -> None:
    """Two tensors that are each other's transpose are refused rather than confused."""
    pair = Pair(equal=True).eval()

    with pytest.raises(ExportError, match=r"second\.weight and first\.weight are equal"):
        match(tensors_of(pair), to_graph(pair, {"sample": torch.randn(2, 4)}, "out"))


def test_a_tensor_that_the_graph_has_lost_is_named() -> None:
    """A weight that a refit could not reach stops the export."""
    pair = Pair(unused=True).eval()

    with pytest.raises(ExportError, match=r"2 tensors are not in the graph, such as third\.bias"):
        match(tensors_of(pair), to_graph(pair, {"sample": torch.randn(2, 4)}, "out"))


def test_a_tensor_that_is_twice_in_the_graph_is_refused() -> None:
    """Two initializers with one tensor's values would be refitted only once."""
    pair = Pair().eval()
    graph = to_graph(pair, {"sample": torch.randn(2, 4)}, "out")
    again = ir.tensor(pair.first.bias.detach().numpy(), name="again")
    graph.graph.register_initializer(ir.Value(name="again", const_value=again))

    with pytest.raises(ExportError, match=r"first\.bias is in the graph twice"):
        match(tensors_of(pair), graph)


def test_layouts_are_found_by_value() -> None:
    """A linear layer's weight may be transposed in the graph, its bias not; both are recognised."""
    pair = Pair().eval()

    found = match(tensors_of(pair), to_graph(pair, {"sample": torch.randn(2, 3, 4)}, "out"))

    assert pair.state_dict().keys() == found.keys()
    assert TensorSpec((6, 4), "float32", "transposed") == found["first.weight"].spec
    assert TensorSpec((6,), "float32", "same") == found["first.bias"].spec


def test_a_graph_of_another_model_does_not_pass_the_check(tmp_path: Path) -> None:
    """The check compares values: a graph made from other weights is found out."""
    pair, inputs = Pair().eval(), {"sample": torch.randn(2, 4)}
    ir.save(to_graph(pair, inputs, "out"), tmp_path / "pair.onnx")
    check_graph(tmp_path / "pair.onnx", pair, inputs)
    with torch.no_grad():
        pair.second.bias += 0.01

    with pytest.raises(ExportError, match=r"pair\.onnx differs from PyTorch"):
        check_graph(tmp_path / "pair.onnx", pair, inputs)


def test_an_export_goes_with_the_pictures_that_its_base_model_knows(
    services_model: Path, services_graphs: Path, tmp_path: Path
) -> None:
    """They are not in the digest, so an export with other limits, or none, is made again (the end of N25)."""
    folder = Path(shutil.copytree(services_model, tmp_path / "tiny"))
    assert is_export_of(services_graphs, folder, digest_of(folder))

    limits = KnownPictures(np.zeros(2, np.float32), np.eye(2, dtype=np.float32), 1.0, 0.1, "squares")
    limits.save(folder)

    assert digest_of(folder) == digest_of(services_model)
    assert not is_export_of(services_graphs, folder, digest_of(folder))
    graphs = Path(shutil.copytree(services_graphs, tmp_path / "graphs"))
    shutil.copy(folder / KNOWN_PICTURES_FILE, graphs)  # as an export does; two files that say the same may differ
    assert is_export_of(graphs, folder, digest_of(folder))
    replace(limits, distance=2.0).save(folder)
    assert not is_export_of(graphs, folder, digest_of(folder))


def test_a_preset_alone_is_no_reason_to_export_again(
    services_model: Path, services_graphs: Path, tmp_path: Path
) -> None:
    """The graphs of a model that differs in its preset are its own, too, under second names; its specification has its
    own preset and digest, and the first one stays as it was."""
    root, own = tmp_path / "graphs", Path(shutil.copytree(services_model, tmp_path / "other"))
    first = Path(shutil.copytree(services_graphs, root / digest_of(services_model)[:DIGEST_CHARACTERS]))
    before, said = (first / "spec.json").read_bytes(), []
    (own / "unitune_preset.json").write_text('{"strength": 0.6, "updates": 64}')

    folder = export_under(own, root, said.append)

    assert ["taking the graphs over, since only the preset differs"] == said
    spec, theirs = BaseModelSpec.load(folder), BaseModelSpec.load(first)
    assert (digest_of(own), "other", 0.6, 64) == (spec.digest, spec.name, spec.preset.strength, spec.preset.updates)
    assert replace(spec, digest=theirs.digest, name=theirs.name, preset=theirs.preset) == theirs
    assert spec.digest != theirs.digest and before == (first / "spec.json").read_bytes()
    assert all((folder / name).stat().st_ino == (first / name).stat().st_ino for name in spec.files)
    assert is_export_of(folder, own, digest_of(own))
    assert folder == export_under(own, root, said.append) and 1 == len(said)


def test_graphs_depend_on_every_file_but_the_preset(services_model: Path, tmp_path: Path) -> None:
    """Their digest is another one with another noise schedule, and the same with another preset or without one."""
    own = Path(shutil.copytree(services_model, tmp_path / "other"))
    (own / "unitune_preset.json").write_text('{"strength": 0.6}')
    assert graphs_digest(services_model) == graphs_digest(own) and digest_of(services_model) != digest_of(own)

    scheduler = own / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))

    assert graphs_digest(services_model) != graphs_digest(own)
