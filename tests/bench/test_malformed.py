"""Pictures broken on purpose, before the embedded base model's own CLIP filter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.editbench.cases import load
from bench.editbench.malformed import COLLAPSE, KINDS, broken, proposed, table
from bench.inputs import MODEL
from sampler_svc.sampling.clip_filter import ClipFilter, Scores
from stickerbook.render import render
from tuner_svc.base_model import load as load_model
from tuner_svc.export.clip import export_clip
from unitune import images

# Edits that a CLIP sees: the time of day in black and white gains too little, whatever the picture.
CASES = [c for picture in load("development")[:3] for c in picture.cases if c.category in ("place", "object")]


@pytest.fixture(scope="module")
def clip_filter(tmp_path_factory):
    """The embedded base model's CLIP and thresholds; its autoencoder as the tuner has it."""
    model, folder = load_model(MODEL), tmp_path_factory.mktemp("clip")
    export_clip(folder, MODEL)

    @torch.no_grad()
    def round_trip_error(picture: images.Pixels) -> float:
        image = images.to_model(picture, model.image_side)
        redrawn = model.image_decoder(model.encode_image(image)).clamp(-1, 1).numpy()
        return float(np.sqrt(np.mean(((redrawn - image) / 2) ** 2)))

    return ClipFilter(folder, model.preset, round_trip_error, threads=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_picture_is_refused_and_its_original_is_not(clip_filter, kind):
    """A ground truth passes; the same, broken, does not, and except for a collapse it is called malformed."""
    assert CASES
    for case in CASES:
        score = clip_filter.scorer(render(case.scene), case.prompt)
        assert clip_filter.passes(score(render(case.wanted))), case.id
        assert not clip_filter.passes(score(broken(case, kind))), case.id
        assert clip_filter.is_malformed(score(broken(case, kind))) == (kind != COLLAPSE), case.id


def test_thresholds_are_proposed_where_good_pictures_pass():
    """Nearly all good pictures are within, the gain lies above a collapse's, and the table tells both gates apart."""
    good = [Scores(0.5 + i / 100, 0.2, 0.4 + i / 100, 0.02 + i / 1000, 0.01 + i / 1000, i / 500) for i in range(50)]
    collapsed = [Scores(0.5 + i / 1000, 0.5, 1.0, 0.0, 0.1, 0.0) for i in range(-50, 50)]

    found = proposed(good, collapsed)

    assert 0.04 < found["clip_filter_gain"] <= 0.05
    for name in ("prompt", "kept", "detail"):
        assert np.mean([getattr(s, name) >= found[f"clip_filter_{name}"] for s in good]) >= 0.98
    for name in ("round_trip", "saturated"):
        assert np.mean([getattr(s, name) <= found[f"clip_filter_{name}"] for s in good]) >= 0.98
    assert found["clip_filter_round_trip"] == pytest.approx(0.07) and found["clip_filter_saturated"] == pytest.approx(
        0.1
    )


def test_the_table_tells_what_both_thresholds_let_pass(clip_filter):
    """In force and proposed, side by side, from the same scores."""
    well = Scores(prompt=0.9, base_prompt=0.1, kept=0.9, round_trip=0.01, detail=0.1, saturated=0.0)
    strict = replace(clip_filter._preset, clip_filter_round_trip=0.001)

    (*_, line) = table(clip_filter, {"good": [well]}, strict).splitlines()

    assert line == "| good | 1 | 100.0 % | 0.0 % | 0.0 % | 100.0 % |"
