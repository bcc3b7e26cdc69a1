"""Choose the thresholds of the difference mask, on the development split.

    python -m bench.editbench.thresholds --points 0.9:4 1:2.5

Makes the edits of these points without interpolation, then interpolates and judges them under every choice: above the
first threshold a pixel may belong to a region that changed, and above the second a region has one; how far both fall
with the largest difference; and how small a region may be beside the largest.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from bench.editbench.cases import load
from bench.editbench.run import run
from bench.editbench.scores import score
from bench.editbench.settings import setting_of
from bench.inputs import MODEL
from sampler_svc.sampling.interpolation import mix
from sampler_svc.sampling.masks.difference import OF_LARGEST, SMALLEST, changed
from stickerbook.judge import Judge
from stickerbook.render import render
from tuner_svc.model_folder import read_preset

LOW, HIGH = (0.06, 0.08, 0.1), (0.1, 0.13, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", nargs="+", required=True, metavar="STRENGTH:GUIDANCE")
    parser.add_argument("--low", nargs="+", type=float, default=LOW)
    parser.add_argument("--high", nargs="+", type=float, default=HIGH)
    parser.add_argument("--of-largest", nargs="+", type=float, default=(0.5, OF_LARGEST, 0.7))
    parser.add_argument("--smallest", nargs="+", type=float, default=(0.0, SMALLEST))
    parser.add_argument("--pictures", type=int, help="number of pictures, the first ones")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    preset = setting_of(read_preset(MODEL), "unitune").at("raw", interpolation=0.0)
    settings = []
    for point in options.points:
        strength, guidance = (float(value) for value in point.split(":"))
        settings.append(preset.at(point, strength=strength, guidance_scale=guidance))  # guided as the preset is
    pictures = load("development")[: options.pictures]
    results = run(MODEL, pictures, settings, options.out, "edits without interpolation")
    cases = {case.id: case for picture in pictures for case in picture.cases}
    judge = Judge.load()
    print("| strength:guidance | thresholds | success | kept pixels, dB | distance |\n|---|---|---|---|---|")
    choices = product(options.low, options.high, options.of_largest, options.smallest)
    for setting, choice in product(settings, [None, *choices]):
        scores = []
        for result in (r for r in results if r.setting == setting.name):
            case = cases[result.case]
            edited, base = result.pixels(options.out), render(case.scene)
            mixed = edited if choice is None else mix(edited, base, 1.0, changed(edited, base, *choice))
            scores.append(score(case, mixed, judge))
        kept = np.mean([s.kept_psnr_db for s in scores if s.kept_psnr_db is not None])
        success, distance = (np.mean([getattr(s, name) for s in scores]) for name in ("success", "distance"))
        name = "no interpolation" if choice is None else ", ".join(f"{value:g}" for value in choice)
        print(f"| {setting.name} | {name} | {success:.3f} | {kept:.1f} | {distance:.3f} |", flush=True)


if __name__ == "__main__":
    main()
