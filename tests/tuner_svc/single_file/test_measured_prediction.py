"""What a single file predicts, tried where nothing says it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from tests.original_names import original_tensors
from tests.tiny_model import tiny_pipeline
from tuner_svc.base_model import BaseModel, load
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.single_file.measured_prediction import kind_of, measure
from tuner_svc.single_file.model import Source, write_folder
from unitune.diffusion.schedule import Schedule

STICKERBOOK = Path(__file__).parents[3] / "stickerbook" / "model"  # trained, and predicts v


@pytest.fixture(scope="module")
def trained() -> BaseModel:
    """The embedded base model."""
    return load(STICKERBOOK)


def untold(folder: Path, path: Path) -> Path:
    """A copy of a folder whose scheduler does not say what the model predicts."""
    shutil.copytree(folder, path)
    file = path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.write_text(json.dumps(config))
    return path


def test_a_trained_model_shows_what_it_predicts(trained: BaseModel) -> None:
    """A model that predicts v is found to, and the same one read as epsilon, by algebra, is found to predict that."""
    levels = torch.from_numpy(Schedule(**vars(trained.schedule)).alphas_cumprod)

    def as_epsilon(sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        level = levels[timestep][:, None, None, None]
        v = trained.denoiser(sample, timestep, context)
        return level.sqrt().float() * v + (1 - level).sqrt().float() * sample

    assert "v_prediction" == kind_of(measure(trained))
    assert "epsilon" == kind_of(measure(trained, as_epsilon))


def test_a_model_that_gives_no_picture_back_shows_nothing(model: BaseModel) -> None:
    """A random denoiser reads better one way than the other, and neither is a picture."""
    errors = measure(model)
    assert max(errors[:2]) > 2 * min(errors[:2])
    assert kind_of(errors) is None


def test_an_import_measures_what_nothing_says(tmp_path: Path) -> None:
    """The folder predicts what was found, and says that it was measured."""
    config = untold(STICKERBOOK, tmp_path / "config")
    save_file(
        original_tensors(StableDiffusionPipeline.from_pretrained(STICKERBOOK, safety_checker=None)),
        tmp_path / "file.safetensors",
    )
    said: list[str] = []

    folder = write_folder(Source(tmp_path / "file.safetensors", config=config), tmp_path / "made", said.append)

    assert "v_prediction" == load(folder).schedule.prediction_type
    assert json.loads((folder / "unitune_source.json").read_text())["prediction_type_told_by"].startswith("measured, ")
    assert any(line.startswith("it predicts v_prediction (measured, ") for line in said)


def test_an_import_asks_where_trying_shows_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """It names the option, and leaves no folder."""
    config = untold(tiny_model, tmp_path / "config")
    save_file(original_tensors(tiny_pipeline()), tmp_path / "file.safetensors")
    with pytest.raises(UnusableBaseModel, match=r"does not say what it predicts: .*; trying it did not show it"):
        write_folder(Source(tmp_path / "file.safetensors", config=config), tmp_path / "made")
    assert not (tmp_path / "made").exists()
