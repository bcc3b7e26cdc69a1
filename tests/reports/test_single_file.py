"""A base model from a model site: one file, brought by a user who has nothing else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.original_names import original_tensors
from tests.reports.conftest import Unitune
from tests.tiny_model import tiny_pipeline
from tuner_svc.export.exported_folder import DIGEST_CHARACTERS
from tuner_svc.model_folder import digest
from unitune.base_model import BaseModelSpec


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model as one file."""
    file = tmp_path_factory.mktemp("download") / "tiny-v1.safetensors"
    save_file(original_tensors(tiny_pipeline()), file)
    return file


@pytest.mark.parametrize("are_graphs_there", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_downloaded_file_edits_a_picture(
    tiny_file: Path,
    tiny_model: Path,
    tiny_graphs: Path,
    tmp_path: Path,
    photo: Path,
    unitune: Unitune,
    are_graphs_there: bool,
) -> None:
    """`unitune import` writes a folder, `doctor` tells what it predicts, and an edit with it has a picture. Its graphs
    are those of the model that the file was made of, as an earlier start left them, or the edit has them exported."""
    folder = tmp_path / "tiny"
    here = {"UNITUNE_ADDRESS": ""}  # its own services, whose base model this is
    ended = unitune("import", tiny_file, "-o", folder, "--config", tiny_model)
    assert (0, f"{folder}\n") == (ended.returncode, ended.stdout), ended.stderr
    assert "predicts epsilon" in ended.stderr
    told = unitune("doctor", "--base-model", folder, env=here)
    assert "epsilon (the family's own)" in told.stdout, told.stdout
    if are_graphs_there:
        model_digest = digest(folder)
        graphs = shutil.copytree(tiny_graphs, tmp_path / "home" / "graphs" / model_digest[:DIGEST_CHARACTERS])
        replace(BaseModelSpec.load(graphs), digest=model_digest).save(graphs)
    asked = ("--base-model", folder, "--updates", "1", "--steps", "2", "-o", tmp_path / "out")
    edited = unitune("edit", photo, "a dog", *asked, env=here)
    assert 0 == edited.returncode, edited.stderr
    assert ("exporting the denoiser" in edited.stderr) == (not are_graphs_there), edited.stderr
    assert [path for path in (tmp_path / "out").iterdir() if path.suffix == ".png"]


def test_a_file_that_is_none_is_refused_in_one_sentence(tmp_path: Path, photo: Path, unitune: Unitune) -> None:
    """An SDXL refiner given as the base model ends the command with what it is and what is accepted; no traceback."""
    entries = {
        "model.diffusion_model.label_emb.0.0.weight": {"dtype": "F16", "shape": [0, 2560], "data_offsets": [0, 0]},
        "model.diffusion_model.input_blocks.0.0.weight": {"dtype": "F16", "shape": [0, 4], "data_offsets": [0, 0]},
    }
    header = json.dumps(entries).encode()
    file = tmp_path / "xl.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    ended = unitune("edit", photo, "a dog", "--base-model", file, env={"UNITUNE_ADDRESS": ""})
    assert 1 == ended.returncode
    assert f"error: {file} is an SDXL refiner: give a Stable Diffusion 1.x, 2.x or XL model" in ended.stderr, (
        ended.stderr
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nothere.safetensors",), "FILE is 'nothere.safetensors': it is not a file that can be read"),
        (("model.ckpt",), "give a .safetensors file or a folder in diffusers layout; files that are pickled"),
        (("m.safetensors", "-o", "there"), "/there: it is there already; give another folder"),
        (("m.safetensors", "--lora", "l.safetensors"), "--lora is 'l.safetensors': there is no such file"),
        (("m.safetensors", "--lora", "m.safetensors:nan"), "its weight must be a finite number, as in FILE:0.8"),
        (
            ("m.safetensors", "--fast-lora", "l.safetensors:1"),
            "--fast-lora is 'l.safetensors:1': there is no such file",
        ),
    ],
)
def test_an_import_that_cannot_be_is_refused_at_once(
    arguments: tuple[str, ...], told: str, tmp_path: Path, unitune: Unitune
) -> None:
    """What needs no look into the file is told under its own option, before any program is started."""
    for name in ("m.safetensors", "model.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "there").mkdir()
    ended = unitune("import", *arguments)
    assert (2, "") == (ended.returncode, ended.stdout)
    assert told in ended.stderr
    assert not (tmp_path / "home").exists()
