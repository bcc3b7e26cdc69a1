"""Models that were distilled to few steps: recognised, sampled as they must be, and not tuned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_model import save_tiny_model
from tuner_svc.base_model import BaseModel
from tuner_svc.few_steps import KINDS, names_of_file, told_by_names
from tuner_svc.model_folder import read_preset, read_schedule
from tuner_svc.tune import check
from tuner_svc.tuning_config import TuningConfig
from unitune.base_model import Preset
from unitune.choices import TUNING_METHODS
from unitune.errors import InvalidField


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the tiny model."""
    return save_tiny_model(tmp_path / "tiny")


def change(path: Path, **values: object) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("sd_turbo", "turbo", 4),
        ("dreamshaperXL_v2TurboDpmppSDE", "turbo", 4),
        ("sdxl_lightning_8step", "lightning", 8),
        ("juggernautXL_v9Rdphoto2Lightning", "lightning", 4),
        ("Hyper-SD15-4steps-lora", "hyper", 4),
        ("realisticVisionV60B1_v51HyperVAE", "hyper", 8),
        ("hyper-sd15-8step", "hyper", 8),
        ("lcm-lora-sdv1-5", "lcm", 4),
        ("LCM_Dreamshaper_v7", "lcm", 4),
        ("TCD-SD15-LoRA", "tcd", 4),
        ("v1-5-pruned-emaonly", None, None),
        ("hyperrealism_v3", None, None),
        ("Hyper-Realistic-v2", None, None),
        ("calcmark", None, None),
        ("2steps_to_heaven", None, None),
    ],
)
def test_a_name_tells_how_a_model_was_distilled(name: str, kind: str | None, steps: int | None) -> None:
    """Kind and steps are in the names that people give; words that only look alike are not taken for one."""
    found = told_by_names(names_of_file(Path(f"/models/{name}.safetensors"), {}))
    assert (kind, steps) == ((found.kind, found.steps) if found else (None, None))


def test_metadata_and_folders_tell_it_too() -> None:
    """A title comes before the file's name, and a file of a name that all have is called as its folder is."""
    titled = told_by_names(names_of_file(Path("a.safetensors"), {"modelspec.title": "SDXL Lightning 2step"}))
    assert titled is not None
    assert ("lightning", 2, "the modelspec.title of a.safetensors") == titled
    beside = told_by_names(names_of_file(Path("/m/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"), {}))
    assert beside is not None
    assert ("lcm", "the folder of pytorch_lora_weights.safetensors") == (beside.kind, beside.source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distilled_model_is_sampled_as_its_kind_must_be(kind: str, folder: Path) -> None:
    """No guidance, which is 1 here, few steps, at least one of which every method's strength leaves (M13)."""
    (folder / "unitune_preset.json").write_text(json.dumps({"distilled": kind, "num_inference_steps": 2}))

    preset = read_preset(folder)

    wanted = {
        "lcm": ("lcm", ""),
        "tcd": ("tcd", ""),
        "turbo": ("euler", "trailing"),
        "lightning": ("euler", "trailing"),
    }
    assert wanted.get(kind, ("ddim", "trailing")) == (preset.scheduler, preset.timestep_spacing)
    assert (2, 1.0, kind) == (preset.num_inference_steps, preset.guidance_scale, preset.distilled)
    assert {guidance for _, guidance in preset.automatic_points} == {1.0}
    for method in ("unitune", "sdedit"):
        own = preset.method_preset(method)
        assert int(own.strength * own.num_inference_steps) >= 1


def test_a_folder_tells_by_its_own_configurations(folder: Path) -> None:
    """The scheduler's class, or the name that the network was saved from; a preset that is there has the word."""
    assert Preset() == read_preset(folder)
    change(folder / "unet" / "config.json", _name_or_path="stabilityai/sd-turbo")
    assert ("turbo", "euler", 1.0) == _told(read_preset(folder))
    change(folder / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")
    assert ("lcm", "lcm", 1.0) == _told(read_preset(folder))
    change(folder / "scheduler" / "scheduler_config.json", _class_name="TCDScheduler")
    assert ("tcd", "tcd", 1.0) == _told(read_preset(folder))
    (folder / "unitune_preset.json").write_text("{}")
    assert Preset() == read_preset(folder)


def test_sdxl_turbo_has_the_scheduler_that_it_is_published_with(folder: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    """Euler's ancestral form for a model with SDXL's two text encoders, Euler's own for the others."""
    pair = Path(shutil.copytree(tiny_sdxl, tmp_path / "pair"))
    for one, wanted in ((folder, "euler"), (pair, "euler_ancestral")):
        (one / "unitune_preset.json").write_text('{"distilled": "turbo"}')
        assert ("turbo", wanted, 1.0) == _told(read_preset(one))
        assert "trailing" == read_preset(one).timestep_spacing
    (pair / "unitune_preset.json").unlink()
    change(pair / "unet" / "config.json", _name_or_path="stabilityai/sdxl-turbo")
    assert ("turbo", "euler_ancestral", 1.0) == _told(read_preset(pair))


def _told(preset: Preset) -> tuple[str, str, float]:
    return preset.distilled, preset.scheduler, preset.guidance_scale


def test_a_model_that_ends_in_pure_noise_is_sampled_from_there(folder: Path) -> None:
    """Spacing leading, which published configurations say, is replaced by trailing, and guidance is rescaled (M14)."""
    change(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="leading",
    )

    schedule, preset = read_schedule(folder), read_preset(folder)

    assert ("trailing", 0.7, 5.0) == (schedule.timestep_spacing, preset.guidance_rescale, preset.guidance_scale)
    (folder / "unitune_preset.json").write_text('{"guidance_scale": 6}')
    assert (0.7, 6.0) == (read_preset(folder).guidance_rescale, read_preset(folder).guidance_scale)
    change(folder / "scheduler" / "scheduler_config.json", timestep_spacing="linspace")
    assert "linspace" == read_schedule(folder).timestep_spacing


@pytest.mark.parametrize("method", TUNING_METHODS)
def test_a_distilled_model_is_not_tuned(method: str, model: BaseModel) -> None:
    """The refusal names the kind and what to do instead."""
    config = TuningConfig.from_preset(model.preset, method)
    distilled = replace(model, preset=replace(model.preset, distilled="turbo"))

    with pytest.raises(InvalidField, match="few steps \\(turbo\\)") as refused:
        check(distilled, config)

    assert {"field": "config.method", "value": method}.items() <= refused.value.metadata.items()
    assert "sdedit" in refused.value.metadata["remedy"]
