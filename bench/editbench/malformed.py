"""Calibrate the CLIP filter's thresholds: pictures broken on purpose must be refused, and good ones must pass.

    python -m bench.editbench.malformed
    python -m bench.editbench.malformed --truths-only     # nothing is tuned or sampled: a minute on a CPU

Good are the ground truths of the development split, and UniTune's and SDEdit's edits of it that the judge calls right
(made where they are not on disk yet). Each ground truth is broken in every way of KINDS. Prints, for the thresholds in
force and for those that it proposes, the share of each kind that passes and the share that is malformed, and the lines
for the preset.

A threshold is proposed where GOOD_SHARE of the good pictures pass it. `clip_filter_gain` alone follows the broken ones:
COLLAPSED_SHARE of the pictures that are the base image still must not reach it.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from bench.editbench.cases import Case, load
from bench.editbench.run import engine_folder, open_clip_filter, run
from bench.editbench.settings import setting_of
from bench.inputs import MODEL
from sampler_svc.sampling.clip_filter import ClipFilter, Scores
from stickerbook.render import render
from tuner_svc.model_folder import read_preset
from unitune.base_model import Preset
from unitune.images import Pixels

GOOD_SHARE = 0.98
COLLAPSED_SHARE = 0.95
COLLAPSE = "collapse"  # to the base image
GREY = 128

# How a good picture is broken: the picture, its base image, a generator. Lengths are in pixels of a 64 pixel picture.
KINDS: Mapping[str, Callable[[Pixels, Pixels, np.random.Generator], Pixels]] = {
    "noise alone": lambda good, base, rng: rng.integers(0, 256, good.shape, dtype=np.uint8),
    "strong noise": lambda good, base, rng: _clipped(good + rng.normal(0, 100, good.shape)),
    "noise": lambda good, base, rng: _clipped(good + rng.normal(0, 50, good.shape)),
    COLLAPSE: lambda good, base, rng: _clipped(base + rng.normal(0, 2, good.shape)),
    "saturation": lambda good, base, rng: _clipped((good.astype(float) - GREY) * 6 + GREY),
    "blur": lambda good, base, rng: _blurred(good, 5),
    "blur to grey": lambda good, base, rng: _clipped((_blurred(good, 8).astype(float) - GREY) * 0.3 + GREY),
    "one colour": lambda good, base, rng: np.broadcast_to(good.mean(axis=(0, 1)), good.shape).astype(np.uint8),
}


def _clipped(picture: np.ndarray) -> Pixels:
    return np.rint(picture).clip(0, 255).astype(np.uint8)


def _blurred(picture: Pixels, radius: float) -> Pixels:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def broken(case: Case, kind: str) -> Pixels:
    """A case's ground truth, broken; the same at every call."""
    return KINDS[kind](render(case.wanted), render(case.scene), np.random.default_rng(0))


def proposed(good: Sequence[Scores], collapsed: Sequence[Scores]) -> dict[str, float]:
    """The preset's thresholds by the rule above, rounded to the side that lets more good pictures pass."""
    thresholds = {"clip_filter_gain": float(np.quantile([s.gain for s in collapsed], COLLAPSED_SHARE))}
    for name in ("prompt", "kept", "detail"):  # at least
        thresholds[f"clip_filter_{name}"] = float(np.quantile([getattr(s, name) for s in good], 1 - GOOD_SHARE))
    for name in ("round_trip", "saturated"):  # at most
        thresholds[f"clip_filter_{name}"] = float(np.quantile([getattr(s, name) for s in good], GOOD_SHARE))
    steps = {"clip_filter_detail": 0.0001}
    rounds = {"clip_filter_gain": np.ceil, "clip_filter_round_trip": np.ceil, "clip_filter_saturated": np.ceil}
    return {
        name: round(float(rounds.get(name, np.floor)(value / steps.get(name, 0.01))) * steps.get(name, 0.01), 4)
        for name, value in thresholds.items()
    }


def table(clip_filter: ClipFilter, scores: Mapping[str, Sequence[Scores]], proposal: Preset) -> str:
    """Shares that pass, under the thresholds in force and under the proposed ones."""
    lines = ["| pictures | number | pass in force | malformed in force | pass proposed | malformed proposed |"]
    lines.append("|---|---|---|---|---|---|")
    for name, group in scores.items():
        cells = [name, str(len(group))]
        for one in (clip_filter, clip_filter.with_preset(proposal)):
            for is_so in (one.passes, one.is_malformed):
                cells.append(f"{100 * np.mean([is_so(s) for s in group]):.1f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truths-only", action="store_true", help="call only ground truths good")
    parser.add_argument("--pictures", type=int, help="number of pictures, the first ones")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    began, preset = time.monotonic(), read_preset(MODEL)
    pictures = load("development")[: options.pictures]
    cases = {case.id: case for picture in pictures for case in picture.cases}
    settings = [] if options.truths_only else [setting_of(preset, method) for method in ("unitune", "sdedit")]
    results = run(MODEL, pictures, settings, options.out, "edits of the development split") if settings else []
    clip_filter = open_clip_filter(engine_folder(MODEL, options.out))

    score = {case.id: clip_filter.scorer(render(case.scene), case.prompt) for case in cases.values()}
    scores = {"ground truths": [score[case.id](render(case.wanted)) for case in cases.values()]}
    for setting in settings:
        scores[f"right edits of {setting.name}"] = [
            score[r.case](r.pixels(options.out)) for r in results if r.setting == setting.name and r.score.success
        ]
    good = [one for group in scores.values() for one in group]
    for kind in KINDS:
        scores[f"broken: {kind}"] = [score[case.id](broken(case, kind)) for case in cases.values()]
    thresholds = proposed(good, scores[f"broken: {COLLAPSE}"])
    print(table(clip_filter, scores, replace(preset, **thresholds)))  # type: ignore[arg-type]
    print(f"\nfor PRESET in stickerbook/save_model.py: {json.dumps(thresholds)}")
    print(f"{len(cases)} cases in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
