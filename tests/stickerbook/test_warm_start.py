"""The warm start of the embedded model."""

from dataclasses import replace

import numpy as np
import pytest

from bench.editbench.settings import from_warm_start, setting_of
from bench.inputs import MODEL
from stickerbook.render import render
from stickerbook.train_warm_start import FIRST_SEED
from stickerbook.world import FIRST_HELD_OUT_SEED, draw_scene
from tuner_svc.base_model import BaseModel, load
from tuner_svc.learn_warm_start import PICTURES, ROUNDS
from tuner_svc.model_folder import WARM_START_FILES, read_preset
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return load(MODEL)


def test_it_is_small_and_asks_for_a_quarter_of_the_updates(model: BaseModel) -> None:
    """3 MB at most in the repository; the paper's setting stays the preset's."""
    assert sum((MODEL / file).stat().st_size for file in WARM_START_FILES) <= 3_000_000
    assert model.warm_start is not None and 4 * model.warm_start.settings.updates == model.preset.updates == 128


def test_no_scene_that_it_was_learned_from_is_held_out() -> None:
    """EditBench's pictures are drawn from other seeds."""
    assert FIRST_SEED + ROUNDS * PICTURES < FIRST_HELD_OUT_SEED


def test_a_few_updates_from_it_learn_more_of_a_picture(model: BaseModel) -> None:
    """Of a held-out scene, with the same draws: the mean loss of eight updates is lower than from the base model at
    either learning rate."""
    assert model.warm_start is not None
    warm = TuningConfig(**{**model.warm_start.settings.defaults(), "updates": 8})
    picture = images.to_model(render(draw_scene(FIRST_HELD_OUT_SEED + 7, "held_out")), model.image_side)
    others = [replace(warm, warm_start=False), replace(warm, warm_start=False, learning_rate=1e-4)]
    losses = [float(np.mean(tune(model, picture, config).losses)) for config in (warm, *others)]
    assert losses[0] < 0.95 * min(losses[1:])


def test_editbench_measures_it_as_it_is_shipped(model: BaseModel) -> None:
    """Its setting differs from the preset's in the tuning alone, and has another key; without a warm start the key is
    that of before there was one."""
    plain = setting_of(read_preset(MODEL), "unitune")
    warm = from_warm_start(plain, MODEL)
    assert model.warm_start is not None and warm.tuning is not None
    assert warm.tuning.warm_start and warm.tuning.learning_rate == model.warm_start.settings.learning_rate
    assert warm.at(plain.name, tuning=plain.tuning) == plain
    assert warm.key("digest", "case") != plain.key("digest", "case")
    with pytest.raises(ValueError, match="has no warm start"):
        from_warm_start(plain, MODEL.parent)
