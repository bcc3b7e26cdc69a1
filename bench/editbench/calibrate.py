"""Choose the points of automatic settings, on a sweep of the development split.

    python -m bench.editbench.sweep --strength 0.8 0.9 0.95 1 --guidance 3 5 8
    python -m bench.editbench.calibrate --points 0.9:3 1:3 1:8

Scores the stored pictures of these points with the CLIP filter. Prints how often the picture that it ranks highest is
right, by the share of the base image in the rank and by the preset's `clip_filter_enough`, against every single point
and the best point of each case; and the scores of right and of wrong pictures. `bench.editbench.malformed` chooses the
CLIP filter's thresholds.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from bench.editbench.cases import load
from bench.editbench.results import Result, result_file
from bench.editbench.run import engine_folder, open_clip_filter
from bench.editbench.settings import GUIDED_AT_EVERY_STEP, setting_of
from bench.inputs import MODEL
from sampler_svc.sampling.clip_filter import Scores
from stickerbook.render import render
from tuner_svc import base_model

KEPT_SHARES = (0.0, 0.02, 0.1)
ENOUGH = (1.0, 0.86, 0.84, 0.82, 0.8, 0.78, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", nargs="+", required=True, metavar="STRENGTH:GUIDANCE")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    model = base_model.load(MODEL)
    clip_filter = open_clip_filter(engine_folder(MODEL, options.out))
    preset = setting_of(model.preset, "unitune")
    settings = []
    for point in options.points:
        strength, guidance = (float(value) for value in point.split(":"))
        settings.append(preset.at(point, strength=strength, guidance_scale=guidance, **GUIDED_AT_EVERY_STEP))
    cases = [case for picture in load("development") for case in picture.cases]
    results: list[list[Result]] = []
    scores: list[list[Scores]] = []
    for case in cases:
        found = [Result.read(result_file(options.out, model.digest, case, s), s.name) for s in settings]
        pictures = [r.pixels(options.out) for r in found]
        results.append(found)
        scores.append([*map(clip_filter.scorer(render(case.scene), case.prompt), pictures)])

    right = np.array([[r.score.success for r in row] for row in results])
    kept = np.array([[r.score.kept_psnr_db or np.nan for r in row] for row in results])
    figures = np.array([[(s.prompt, s.base_prompt, s.kept) for s in row] for row in scores])
    for index, setting in enumerate(settings):
        print(f"{setting.name}: {right[:, index].mean():.3f} right, kept {np.nanmean(kept[:, index]):.1f} dB")
    print(f"best point of each case: {right.any(axis=1).mean():.3f} right")
    for share, enough in product(KEPT_SHARES, ENOUGH):
        chosen = np.arange(len(cases)), (figures[..., 0].clip(max=enough) + share * figures[..., 2]).argmax(axis=1)
        line = f"{right[chosen].mean():.3f} right, kept {np.nanmean(kept[chosen]):.1f} dB"
        print(f"chosen by prompt up to {enough} + {share} kept: {line}")
    for name, where in (("right", right), ("wrong", ~right)):
        low, middle, high = np.percentile(figures[where], [10, 50, 90], axis=0).round(2)
        print(f"{name}: prompt, base_prompt, kept at 10, 50 and 90 %: {low}, {middle}, {high}")


if __name__ == "__main__":
    main()
