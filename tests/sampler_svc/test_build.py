"""Building an engine: what is in its folder, when it is built again, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from sampler_svc.build import cpu as cpu_build
from sampler_svc.build.__main__ import main
from sampler_svc.build.builder import BuildError
from sampler_svc.build.folder import build, read_graphs
from sampler_svc.engines.cpu import backend
from sampler_svc.engines.folder import EngineManifest, UnusableEngine, open_folder
from sampler_svc.engines.onnx_file import initializers
from unitune.base_model import BaseModelSpec, file_digest


@pytest.fixture
def graphs(tiny_graphs: Path, tmp_path: Path) -> Path:
    """A copy of the exported graphs, to be damaged."""
    return Path(shutil.copytree(tiny_graphs, tmp_path / "graphs"))


@pytest.fixture
def engine(engine_folder: Path, tmp_path: Path) -> Path:
    """A copy of a built engine, to be damaged."""
    return Path(shutil.copytree(engine_folder, tmp_path / "engine"))


def test_every_weight_of_the_built_graph_lies_outside(engine_folder: Path, spec: BaseModelSpec) -> None:
    """No tensor of the specification was renamed, folded away or left where a refit cannot reach it."""
    found = initializers((engine_folder / "denoiser.onnx").read_bytes())

    assert spec.tensors.keys() <= found.keys()
    assert {name for name, item in found.items() if item.outside is not None} == set(spec.tensors)


def test_the_built_graph_is_smaller_than_the_exported_one(engine_folder: Path, tiny_graphs: Path) -> None:
    """Offline optimisation has been done, not only copied."""
    built, exported = (
        len(onnx.load(folder / "denoiser.onnx", load_external_data=False).graph.node)
        for folder in (engine_folder, tiny_graphs)
    )

    assert built < exported


def test_the_manifest_tells_key_and_digests(engine_folder: Path, spec: BaseModelSpec) -> None:
    """Everything that the engine depends on, and every file with its digest and size."""
    manifest = EngineManifest.load(engine_folder)

    assert manifest.key.base_model == spec.digest
    assert manifest.key.backend == backend()
    assert manifest.key.platform.count("-") == 1
    assert set(manifest.files) == {path.name for path in engine_folder.iterdir()} - {"manifest.json"}
    for name, (digest, size) in manifest.files.items():
        assert (file_digest(engine_folder / name), (engine_folder / name).stat().st_size) == (digest, size)


def test_building_again_is_at_once(engine: Path, tiny_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete engine with the same key is the answer; nothing is verified or written again."""
    monkeypatch.setattr(cpu_build, "verify", None)
    before = (engine / "manifest.json").stat().st_mtime_ns

    assert build(tiny_graphs, engine) == engine
    assert (engine / "manifest.json").stat().st_mtime_ns == before


def test_a_build_tells_its_stages(engine: Path, tiny_graphs: Path) -> None:
    """Each as it begins; a complete engine has none."""
    told: list[str] = []
    build(tiny_graphs, engine, say=told.append)
    assert [] == told

    (engine / "manifest.json").write_text("{}")
    build(tiny_graphs, engine, say=told.append)

    checks = "checking the engine with its own and with other weights"
    assert ["checking the graphs", "building the engine", checks] == told


def test_an_incomplete_engine_is_built_again(engine: Path, tiny_graphs: Path) -> None:
    """A file that is missing or cut short makes the folder incomplete, and what replaces it is whole."""
    (engine / "text_encoder.onnx").unlink()

    build(tiny_graphs, engine)

    assert open_folder(engine, backend()) == BaseModelSpec.load(tiny_graphs)
    assert [path.name for path in engine.parent.iterdir()] == ["engine"]


def test_engines_are_found_below_a_root_by_their_key(tiny_graphs: Path, tmp_path: Path) -> None:
    """The program's last line is the folder, named by the key; a second run prints the same one."""
    command = [sys.executable, "-m", "sampler_svc.build", "--graphs", tiny_graphs, "--engines", tmp_path / "engines"]

    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))

    folder = Path(first.stdout.splitlines()[-1])
    assert folder == Path(second.stdout.splitlines()[-1])
    assert folder == tmp_path / "engines" / read_graphs(tiny_graphs)[1].digest[:16]
    assert open_folder(folder, backend()).name == BaseModelSpec.load(tiny_graphs).name
    assert list((tmp_path / "engines").iterdir()) == [folder]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("version", {"version": "1.0.0"}),
        ("runtime", {"runtime": "tensorrt"}),
        ("optimisation", {"optimisation": "none"}),
        ("cpu", {}),
        ("platform", {}),
    ],
)
def test_an_engine_of_another_machine_or_runtime_is_refused(engine: Path, field: str, change: dict[str, str]) -> None:
    """The error names what differs and says to build again; nothing is tried."""
    manifest = json.loads((engine / "manifest.json").read_text())
    manifest["key"]["backend"] |= change
    if not change:
        manifest["key"][field] = "another"
    (engine / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(UnusableEngine, match=rf"its {field} was .*sampler_svc\.build"):
        open_folder(engine, backend())


@pytest.mark.parametrize("name", ["denoiser.onnx", "denoiser.safetensors", "spec.json", "tokenizer.json"])
def test_a_damaged_engine_is_refused(engine: Path, name: str) -> None:
    """One byte of any file is enough, before anything of it is loaded."""
    data = bytearray((engine / name).read_bytes())
    data[len(data) // 2] ^= 1
    (engine / name).write_bytes(data)

    with pytest.raises(UnusableEngine, match=rf"damaged \({name}\)"):
        open_folder(engine, backend())


def test_an_engine_of_another_version_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its specification has another schema: the error says to build again, and nothing of it is loaded."""
    monkeypatch.setattr("unitune.base_model.SCHEMA", 99)

    with pytest.raises(UnusableEngine, match=r"another version .*sampler_svc\.build"):
        open_folder(engine, backend())


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"key": {"schema": 99}}'])
def test_a_folder_without_a_readable_manifest_is_refused(engine: Path, text: str | None) -> None:
    """The error says to build, whatever is wrong with the manifest."""
    (engine / "manifest.json").unlink()
    if text is not None:
        (engine / "manifest.json").write_text(text)

    with pytest.raises(UnusableEngine, match=r"sampler_svc\.build"):
        open_folder(engine, backend())


def test_the_key_follows_the_graphs(graphs: Path) -> None:
    """Another base model, another exported file or another structure is another engine."""
    spec, key = read_graphs(graphs)
    keys, text = {key.digest}, (graphs / "spec.json").read_text()

    for digest in (spec.digest, spec.files["tokenizer.json"]):
        (graphs / "spec.json").write_text(text.replace(digest, "00" * 32))
        keys.add(read_graphs(graphs)[1].digest)
    (graphs / "spec.json").write_text(text)
    assert read_graphs(graphs)[1].digest == key.digest
    model = onnx.load(graphs / "denoiser.onnx", load_external_data=False)
    model.graph.node[0].name = "another"
    onnx.save(model, graphs / "denoiser.onnx")
    keys.add(read_graphs(graphs)[1].digest)

    assert len(keys) == 4


@pytest.mark.parametrize("name", ["denoiser.onnx", "denoiser.safetensors", "image_decoder.onnx", "tokenizer.json"])
def test_damaged_graphs_are_refused(graphs: Path, tmp_path: Path, name: str) -> None:
    """A file that is not the one its specification was written for is found before anything is built."""
    data = bytearray((graphs / name).read_bytes())
    data[len(data) // 2] ^= 1
    (graphs / name).write_bytes(data)

    with pytest.raises(BuildError, match=f"{name} is missing or damaged"):
        build(graphs, tmp_path / "engine")

    assert not (tmp_path / "engine").exists()


def adopt(graphs: Path) -> None:
    """Write the digests of the files as they are now into the specification."""
    spec = json.loads((graphs / "spec.json").read_text())
    spec["files"] = {name: file_digest(graphs / name) for name in spec["files"]}
    (graphs / "spec.json").write_text(json.dumps(spec))


def test_a_weight_stored_inside_the_graph_is_refused(graphs: Path, tmp_path: Path) -> None:
    """A refit could not reach it, and would leave the picture before in it."""
    model = onnx.load(graphs / "denoiser.onnx")
    onnx.save(model, graphs / "denoiser.onnx")
    adopt(graphs)

    with pytest.raises(BuildError, match="stored inside"):
        build(graphs, tmp_path / "engine")

    assert not (tmp_path / "engine").exists()


def test_a_weight_that_the_graph_lacks_is_refused(graphs: Path, tmp_path: Path) -> None:
    """The specification's tensors and the graph's weights must be the same names."""
    spec = json.loads((graphs / "spec.json").read_text())
    name = sorted(spec["tensors"])[0]
    spec["tensors"][f"{name}.lost"] = spec["tensors"].pop(name)
    (graphs / "spec.json").write_text(json.dumps(spec))

    with pytest.raises(BuildError, match=rf"no weight called {name}\.lost"):
        build(graphs, tmp_path / "engine")


def test_a_weight_of_another_layout_is_refused(graphs: Path, tmp_path: Path) -> None:
    """A matrix that the specification calls transposed is found by its shape in the graph."""
    spec = json.loads((graphs / "spec.json").read_text())
    name = next(
        name
        for name, tensor in sorted(spec["tensors"].items())
        if tensor["layout"] == "same" and len(tensor["shape"]) == len(set(tensor["shape"])) == 2
    )
    spec["tensors"][name]["layout"] = "transposed"
    (graphs / "spec.json").write_text(json.dumps(spec))

    with pytest.raises(BuildError, match=rf"{name} is .* in the graph and must be"):
        build(graphs, tmp_path / "engine")


def test_an_engine_that_does_not_answer_like_the_graphs_is_not_published(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When verification fails there is no folder of that name, nor anything else left over."""
    real = cpu_build._fill

    def tampering(folder: Path, *rest: object) -> None:
        real(folder, *rest)
        model = onnx.load(folder / "denoiser.onnx", load_external_data=False)
        constant = next(
            tensor
            for tensor in model.graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.data_location != onnx.TensorProto.EXTERNAL
        )
        constant.raw_data = (onnx.numpy_helper.to_array(constant) * np.float32(1.5)).tobytes()
        onnx.save(model, folder / "denoiser.onnx")

    monkeypatch.setattr(cpu_build, "_fill", tampering)
    with pytest.raises(BuildError, match="does not answer like"):
        build(graphs, tmp_path / "engine")

    assert [path.name for path in tmp_path.iterdir()] == ["graphs"]


def test_a_folder_with_other_files_is_left_alone(tiny_graphs: Path, tmp_path: Path) -> None:
    """A mistyped --out deletes nothing."""
    (tmp_path / "photo.png").write_bytes(b"mine")

    with pytest.raises(BuildError, match="other files"):
        build(tiny_graphs, tmp_path)

    assert (tmp_path / "photo.png").read_bytes() == b"mine"


def test_a_folder_without_graphs_ends_the_program_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the reason on stderr, nothing on stdout."""
    assert main(["--graphs", str(tmp_path), "--out", str(tmp_path / "engine")]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1 and "holds no exported graphs" in said.err
