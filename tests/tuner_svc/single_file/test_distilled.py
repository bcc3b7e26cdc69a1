"""Single files and LoRA that were distilled to few steps, written as folders that are sampled so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.original_names import original_tensors
from tests.tiny_model import tiny_pipeline
from tuner_svc.base_model import load
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.model import Lora, Source, write_folder
from unitune_client.local.doctor import base_model_findings

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny base model as a single file whose name says nothing."""
    file = tmp_path_factory.mktemp("file") / "tiny.safetensors"
    save_file(original_tensors(tiny_pipeline()), file)
    return Source(file, config=tiny_model)


def named(plain: Source, path: Path) -> Source:
    """The same file under another name."""
    path.hardlink_to(plain.file)
    return replace(plain, file=path)


def lora(path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A LoRA of the tiny model that changes nothing."""
    tensors = {f"{LINEAR}.lora_down.weight": torch.zeros(2, 48), f"{LINEAR}.lora_up.weight": torch.zeros(48, 2)}
    save_file(tensors, path, metadata)
    return path


def preset(folder: Path) -> dict[str, object]:
    """The preset of a folder; empty without one."""
    file = folder / "unitune_preset.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def test_a_files_name_writes_a_preset(plain: Source, tmp_path: Path) -> None:
    """It is said, is in the base model that is loaded, and doctor tells it with its source."""
    said: list[str] = []

    folder = write_folder(named(plain, tmp_path / "tiny_lightning_2step.safetensors"), tmp_path / "made", said.append)

    assert any("for 2 steps, lightning (the name of tiny_lightning_2step.safetensors)" in line for line in said)
    own = load(folder).preset
    assert ("lightning", 2, "euler", "trailing") == (
        own.distilled,
        own.num_inference_steps,
        own.scheduler,
        own.timestep_spacing,
    )
    told = dict(base_model_findings(folder))["distilled"]
    assert told == "lightning, 2 steps (the name of tiny_lightning_2step.safetensors)"
    assert {} == preset(write_folder(plain, tmp_path / "plain"))
    assert "distilled" not in dict(base_model_findings(tmp_path / "plain"))


def test_a_loras_metadata_writes_a_preset(plain: Source, tmp_path: Path) -> None:
    """A distilling LoRA that is merged makes a distilled model; with a weight of 0 it does not."""
    file = lora(tmp_path / "a.safetensors", {"ss_output_name": "lcm_sd15"})

    merged = write_folder(replace(plain, loras=(Lora(file, 1.0),)), tmp_path / "merged")
    left_out = write_folder(replace(plain, loras=(Lora(file, 0.0),)), tmp_path / "left_out")

    assert {"distilled": "lcm", "num_inference_steps": 4} == preset(merged)
    assert {} == preset(left_out)


def test_the_callers_word_comes_first(plain: Source, tmp_path: Path) -> None:
    """A kind and its steps can be told, and a name that misleads can be set right."""
    turbo = named(plain, tmp_path / "turbo_tax.safetensors")

    assert {} == preset(write_folder(replace(turbo, distilled="no"), tmp_path / "no"))
    told = write_folder(replace(plain, distilled="hyper", steps=6), tmp_path / "told")
    assert {"distilled": "hyper", "num_inference_steps": 6} == preset(told)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 4}, "--steps is 4: give --distilled beside it, one of lcm, turbo"),
        ({"distilled": "lightning", "steps": 1}, r"is for 1 step \(--distilled\), .* give the weights for 2 steps"),
    ],
)
def test_what_cannot_be_sampled_so_is_refused(
    changes: dict[str, object], complaint: str, plain: Source, tmp_path: Path
) -> None:
    """Steps of no kind, and the weights for one step, before anything is written."""
    with pytest.raises(UnusableBaseModel, match=complaint):
        write_folder(replace(plain, **changes), tmp_path / "made")  # type: ignore[arg-type]
    assert not (tmp_path / "made").exists()
