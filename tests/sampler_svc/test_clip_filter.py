"""The CLIP filter: exported CLIP towers, scored pictures, and the rule that passes them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sampler_svc.sampling.clip_filter import ClipFilter, Scores
from tests.sampler_svc.tiny_clip import SIDE
from tests.tiny_model import CONTEXT_TOKENS, tiny_tokenizer
from tuner_svc.export.clip import export_clip, has_clip
from tuner_svc.model_folder import CLIP_FOLDER, UnusableBaseModel
from unitune.base_model import Preset


@pytest.fixture
def clip_filter(clip_folder):
    return ClipFilter(clip_folder[1], Preset(), lambda picture: 0.125, threads=1)


def pictures(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_scores_are_cosines_of_the_same_clip_in_pytorch(clip_folder, clip_filter):
    """The exported towers, normalisation and tokenizer give transformers' own similarity."""
    _, _, clip = clip_folder
    base, edited = pictures(1), pictures(2)
    ids = torch.tensor(
        [tiny_tokenizer()("a dog on the beach", padding="max_length", max_length=CONTEXT_TOKENS).input_ids]
    )
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    pixels = ((torch.tensor(np.stack([base, edited])) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = clip(pixel_values=pixels, input_ids=ids)
    (before,), (after,) = expected.logits_per_image / clip.logit_scale.exp()

    scores = clip_filter.scorer(base, "a dog on the beach")(edited)

    assert scores.base_prompt == pytest.approx(before.item(), abs=1e-5)
    assert scores.prompt == pytest.approx(after.item(), abs=1e-5)
    assert scores.kept == pytest.approx((expected.image_embeds[0] @ expected.image_embeds[1]).item(), abs=1e-5)


def test_a_picture_is_exactly_like_itself(clip_filter):
    """cos(picture, same picture) is 1, nothing is gained, and the unit is the cosine (S9)."""
    scores = clip_filter.scorer(pictures(3), "a cat")(pictures(3))

    assert scores.kept == pytest.approx(1.0, abs=1e-6)
    assert scores.gain == 0.0
    assert 2.5 * max(scores.prompt, 0) <= 2.5


def test_pictures_of_any_size_are_scored(clip_filter):
    """A large picture scores as its small copy does."""
    large = np.asarray(Image.fromarray(pictures(4, (8, 8))).resize((96, 96), Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(large).resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    assert clip_filter.scorer(large, "a cat")(small).kept == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "field, value",
    [
        ("prompt", 0.19),
        ("base_prompt", 0.29),
        ("kept", 0.59),
        ("round_trip", 0.151),
        ("detail", 0.0004),
        ("saturated", 0.51),
    ],
)
def test_each_threshold_rejects_by_itself(clip_filter, field, value):
    """Too little of the prompt, too little gained, too little kept, noise, blur, burnt colours: each alone fails."""
    good = Scores(prompt=0.3, base_prompt=0.2, kept=0.7, round_trip=0.1, detail=0.01, saturated=0.4)

    assert clip_filter.passes(good)
    assert not clip_filter.passes(replace(good, **{field: value}))


def test_a_malformed_picture_ranks_behind_every_other(clip_filter):
    """However near the prompt noise is in CLIP's eyes, the farthest picture that is one ranks before it."""
    burnt = Scores(prompt=1.0, base_prompt=0.0, kept=1.0, round_trip=0.9, detail=0.5, saturated=0.9)
    far = Scores(prompt=-1.0, base_prompt=0.0, kept=-1.0, round_trip=0.0, detail=0.5, saturated=0.0)

    assert clip_filter.rank(far) > clip_filter.rank(burnt)
    assert clip_filter.is_malformed(burnt) and not clip_filter.is_malformed(far)


def test_of_pictures_that_show_the_prompt_enough_the_one_nearest_the_base_image_ranks_first(clip_filter):
    """Below `clip_filter_enough` the prompt decides, above it what was kept."""
    enough = clip_filter.with_preset(Preset(clip_filter_enough=0.8))
    overdone = Scores(prompt=0.95, base_prompt=0.0, kept=0.2, round_trip=0.0, detail=0.5, saturated=0.0)
    kept = replace(overdone, prompt=0.81, kept=0.9)
    faint = replace(overdone, prompt=0.7, kept=1.0)

    assert enough.rank(kept) > enough.rank(overdone) > enough.rank(faint)
    assert clip_filter.rank(overdone) > clip_filter.rank(kept)


def test_pixels_are_measured_beside_the_cosines(clip_filter):
    """A checkerboard of black and white has all the detail and saturation there is, grey has neither, and what the base
    image has burnt out itself does not count."""
    checkerboard = np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 255
    checkerboard = np.repeat(checkerboard[..., None], 3, axis=2).astype(np.uint8)
    grey = np.full_like(checkerboard, 128)
    half = grey.copy()
    half[: SIDE // 2] = 255

    burnt, plain = clip_filter.scorer(grey, "a cat")(checkerboard), clip_filter.scorer(grey, "a cat")(grey)

    assert (burnt.detail, burnt.saturated, burnt.round_trip) == (1.0, 1.0, 0.125)
    assert (plain.detail, plain.saturated) == (0.0, 0.0)
    assert clip_filter.scorer(half, "a cat")(checkerboard).saturated == 0.5
    assert clip_filter.scorer(checkerboard, "a cat")(half).saturated == 0.0


def test_a_base_model_without_clip_has_no_clip_filter(tmp_path):
    """No folder, no CLIP filter: nothing is downloaded in its place."""
    assert not has_clip(tmp_path)
    assert ClipFilter.open(tmp_path, Preset(), lambda picture: 0.0) is None


def test_a_folder_that_holds_no_clip_is_refused_by_name(tmp_path):
    """The error says which folder."""
    (tmp_path / CLIP_FOLDER).mkdir()
    (tmp_path / CLIP_FOLDER / "config.json").write_text('{"model_type": "bert"}')

    with pytest.raises(UnusableBaseModel, match=CLIP_FOLDER):
        export_clip(tmp_path, tmp_path)
