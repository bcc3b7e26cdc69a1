"""A fast LoRA beside a base model: what of it is read and refused, and what a tuning makes of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fast_loras import add_fast_lora, lora_tensors, merged_tensors
from tests.original_names import original_tensors
from tests.tiny_model import tiny_pipeline
from tuner_svc.base_model import BaseModel, load
from tuner_svc.model_folder import UnusableBaseModel, digest, read_preset
from tuner_svc.probe import pack_tuned, probe_answer
from tuner_svc.single_file.model import Lora, Source, write_folder
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune.base_model import FastLoraSpec
from unitune.codecs import decode
from unitune.images import ModelImage
from unitune.weights import FAST_LORA_TUNED, PROBE_SEED, unpack

CONFIG = TuningConfig(mode="attn_out", updates=2, batch=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model with a fast LoRA."""
    return add_fast_lora(Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("fast") / "tiny")))


@pytest.fixture(scope="module")
def fast(folder: Path) -> BaseModel:
    """The same in memory."""
    return load(folder)


def test_its_changes_are_those_of_the_file(fast: BaseModel, folder: Path) -> None:
    """With its weight and its alpha, of linear modules and of convolutions; the base model itself stays as it is."""
    assert fast.fast_lora is not None
    plain, wanted = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"), merged_tensors(folder)

    changed = fast.fast_lora.added_to(fast.tensors())

    assert {name for name in plain if not torch.equal(plain[name], wanted[name])} == set(changed)
    assert {2, 4} == {tensor.dim() for tensor in changed.values()}
    for name, tensor in changed.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in fast.tensors().items())


def test_it_is_part_of_the_base_model(folder: Path, model: BaseModel, fast: BaseModel, tmp_path: Path) -> None:
    """Another weight is another base model. A fast edit has its steps, and an edit with it its scheduler, but the base
    model's own settings stay."""
    other = Path(shutil.copytree(folder, tmp_path / "tiny"))
    (other / "fast_lora" / "config.json").write_text('{"distilled": "lcm", "steps": 4, "weight": 0.9}')

    assert 3 == len({model.digest, digest(folder), digest(other)})
    assert FastLoraSpec("lcm", "lcm", 4) == fast.spec.fast_lora
    assert replace(model.preset, fast_steps=4) == fast.preset
    (other / "unitune_preset.json").write_text('{"fast_steps": 6}')
    assert 6 == read_preset(other).fast_steps
    (other / "fast_lora" / "config.json").write_text('{"distilled": "lightning", "steps": 8}')
    assert FastLoraSpec("lightning", "euler", 8, timestep_spacing="trailing") == load(other).spec.fast_lora


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"distilled": "lcm"}, "config.json: steps is None: it must be 2 to 50"),
        ({"distilled": "lcm", "steps": 1}, "steps is 1: it must be 2 to 50"),
        ({"distilled": "quick", "steps": 4}, "distilled is 'quick': it must be one of lcm, turbo, "),
        ({"distilled": "lcm", "steps": 4, "weight": "1"}, "weight is '1': it must be a number"),
        ({"distilled": "lcm", "steps": 4, "scale": 1}, "scale is not a setting; known are distilled, steps, weight"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], told: str, folder: Path, tmp_path: Path) -> None:
    """Each error names the file, the setting and what would be right."""
    other = Path(shutil.copytree(folder, tmp_path / "tiny"))
    (other / "fast_lora" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnusableBaseModel, match=told):
        load(other)


def test_a_lora_that_cannot_be_added_is_refused(folder: Path, tmp_path: Path) -> None:
    """One that changes a text encoder, one of another model, one beside a model that is distilled itself or has fewer
    steps."""
    other = Path(shutil.copytree(folder, tmp_path / "tiny"))
    file, tensors = other / "fast_lora" / "lora.safetensors", lora_tensors(folder)
    save_file({**tensors, "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}, file)
    with pytest.raises(UnusableBaseModel, match=r"changes a text encoder, too .* or merge it by --lora"):
        load(other)
    save_file({**tensors, "lora_unet_mid_block_nothing.alpha": torch.tensor(1.0)}, file)
    with pytest.raises(UnusableBaseModel, match="does not fit this model"):
        load(other)
    (other / "unitune_preset.json").write_text('{"distilled": "turbo"}')
    with pytest.raises(UnusableBaseModel, match=r"distilled to few steps itself .turbo.: leave fast_lora out"):
        read_preset(other)
    (other / "unitune_preset.json").write_text('{"num_inference_steps": 3}')
    with pytest.raises(UnusableBaseModel, match=r"num_inference_steps is 3: its fast LoRA is for 4 steps"):
        read_preset(other)
    (other / "fast_lora" / "config.json").unlink()
    with pytest.raises(UnusableBaseModel, match=r"lacks fast_lora/config\.json"):
        digest(other)


def test_a_tuning_is_of_the_plain_model_and_proves_both(
    model: BaseModel, fast: BaseModel, folder: Path, image: ModelImage
) -> None:
    """The tuned tensors are those without a LoRA, to the bit. The file has one probe more: PyTorch's answer of the
    decoded tensors with the LoRA, which is neither the tuning's nor the LoRA's."""
    tuned, plain = tune(fast, image, CONFIG), tune(model, image, CONFIG)
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in tuned.tensors.items())

    found = unpack(*pack_tuned(fast, tuned, CONFIG, "key", codec="int4", overwrites=False))

    base = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    decoded = {name: torch.from_numpy(one) for name, one in decode(found.tensors, base, "int4").items()}
    both, lora = (probe_answer(model, merged_tensors(folder, own), PROBE_SEED) for own in (decoded, {}))
    np.testing.assert_allclose(found.extras[FAST_LORA_TUNED], both, atol=1e-5)
    assert min(np.abs(both - lora).max(), np.abs(both - found.probe_tuned).max()) > 1e-3
    again = unpack(*pack_tuned(fast, tuned, CONFIG, "key", codec="int4", overwrites=True))
    np.testing.assert_array_equal(found.extras[FAST_LORA_TUNED], again.extras[FAST_LORA_TUNED])
    assert not unpack(*pack_tuned(model, plain, CONFIG, "key")).extras


@pytest.fixture(scope="module")
def source(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The tiny base model as a single file, with a fast LoRA whose name says how it was distilled."""
    root = tmp_path_factory.mktemp("file")
    save_file(original_tensors(tiny_pipeline()), root / "tiny.safetensors")
    save_file(lora_tensors(tiny_model), root / "tiny-lcm-lora.safetensors")
    return Source(root / "tiny.safetensors", config=tiny_model, fast_lora=Lora(root / "tiny-lcm-lora.safetensors", 0.8))


def test_an_imported_model_has_it_beside_its_weights(source: Source, folder: Path, tmp_path: Path) -> None:
    """The LoRA's file is there byte for byte, with its weight and what its name says, and the model loads with it."""
    said: list[str] = []

    made = write_folder(source, tmp_path / "made", said.append)

    assert any("with a fast LoRA for 4 steps, lcm (the name of tiny-lcm-lora.safetensors)" in line for line in said)
    assert source.fast_lora is not None
    assert source.fast_lora.path.read_bytes() == (made / "fast_lora" / "lora.safetensors").read_bytes()
    settings = json.loads((made / "fast_lora" / "config.json").read_text())
    assert {"distilled": "lcm", "steps": 4, "weight": 0.8} == settings
    loaded = load(made)
    assert loaded.fast_lora is not None and "" == loaded.preset.distilled
    wanted = merged_tensors(folder)
    for name, tensor in loaded.fast_lora.added_to(loaded.tensors()).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)
    told = write_folder(replace(source, distilled="tcd", steps=8), tmp_path / "told")
    assert FastLoraSpec("tcd", "tcd", 8) == load(told).spec.fast_lora


def test_an_import_of_what_does_not_go_with_it_is_refused(source: Source, tmp_path: Path) -> None:
    """A model that says to be distilled itself, a LoRA that does not say how, and one of another model: before anything
    is written."""
    assert source.fast_lora is not None
    turbo, silent, other = (tmp_path / f"{name}.safetensors" for name in ("sd_turbo", "silent", "other-lcm"))
    turbo.hardlink_to(source.file)
    silent.hardlink_to(source.fast_lora.path)
    save_file({"lora_unet_nothing.lora_up.weight": torch.zeros(2, 2)}, other)
    for changed, told in (
        (replace(source, file=turbo), "sd_turbo.safetensors is for few steps itself"),
        (replace(source, fast_lora=Lora(silent)), "silent.safetensors: no name says how it was distilled"),
        (replace(source, fast_lora=Lora(other)), "other-lcm.safetensors does not fit this model"),
        (replace(source, distilled="no"), "--distilled is no: a fast LoRA is one for few steps"),
    ):
        with pytest.raises(UnusableBaseModel, match=told):
            write_folder(changed, tmp_path / "made")
        assert not (tmp_path / "made").exists()
    assert write_folder(replace(source, file=turbo, distilled="lcm"), tmp_path / "made").is_dir()
