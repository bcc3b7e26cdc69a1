"""Look for the preset on the development split: tuning and sampling settings, best first.

    python -m bench.editbench.sweep --updates 96 128 192 --strength 0.85 0.9 0.95 --guidance 4 6 8

A setting's rank is its success plus a fiftieth for every dB at which kept pixels lie nearer to 28 dB; beyond 28 dB only
success counts. The winners go into stickerbook/save_model.py, and the test split has never been looked at.
"""

import argparse
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path

from bench.editbench.__main__ import MODEL
from bench.editbench.cases import load
from bench.editbench.intervals import mean_of
from bench.editbench.results import Result, by_setting
from bench.editbench.run import run
from bench.editbench.settings import Tuning, unitune
from tuner_svc import base_model

ENOUGH_DB = 28.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    preset = unitune(base_model.load(MODEL).preset)
    assert preset.tuning is not None
    parser.add_argument("--mode", nargs="+", default=[preset.tuning.mode])
    parser.add_argument("--updates", nargs="+", type=int, default=[preset.tuning.updates])
    parser.add_argument("--learning-rate", nargs="+", type=float, default=[preset.tuning.learning_rate])
    parser.add_argument("--strength", nargs="+", type=float, default=[preset.strength])
    parser.add_argument("--guidance", nargs="+", type=float, default=[preset.guidance_scale])
    parser.add_argument("--interpolation", nargs="+", type=float, default=[preset.interpolation])
    parser.add_argument("--sdedit", action="store_true", help="sweep SDEdit's strength and guidance instead")
    parser.add_argument("--pictures", type=int, help="only so many pictures")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    tunings: list[Tuning | None] = [None]
    if not options.sdedit:
        tunings = [Tuning(*values) for values in product(options.mode, options.updates, options.learning_rate)]
    settings = [
        preset.at(
            f"{'sdedit' if tuning is None else f'{tuning.mode} u{tuning.updates} lr{tuning.learning_rate:g}'} "
            f"s{strength:g} g{guidance:g} i{interpolation:g}",
            tuning=tuning,
            strength=strength,
            guidance_scale=guidance,
            interpolation=interpolation,
            rare_tokens=tuning is not None,
        )
        for tuning, strength, guidance, interpolation in product(
            tunings, options.strength, options.guidance, options.interpolation
        )
    ]
    pictures = load("development")[: options.pictures]
    results = by_setting(run(MODEL, pictures, settings, options.out, "development split"))
    ranked = sorted(results.items(), key=lambda entry: -rank(entry[1]))
    print("| setting | rank | success | kept attributes | kept pixels, dB | distance |\n|---|---|---|---|---|---|")
    for name, group in ranked:
        print(f"| {name} | {rank(group):.3f} | " + " | ".join(f"{value:.3f}" for value in figures(group)) + " |")
    best = next(setting for setting in settings if setting.name == ranked[0][0])
    print(f"\nbest: {json.dumps(asdict(best))}")


def figures(results: list[Result]) -> tuple[float, float, float, float]:
    """Success, kept attributes, kept pixels in dB, distance to the ground truth."""
    found = (
        mean_of(results, lambda r: float(r.score.success)),
        mean_of(results, lambda r: r.score.kept_attributes),
        mean_of(results, lambda r: r.score.kept_psnr_db),
        mean_of(results, lambda r: r.score.distance),
    )
    return tuple(estimate.mean if estimate else 0.0 for estimate in found)  # type: ignore[return-value]


def rank(results: list[Result]) -> float:
    """The larger the better."""
    success, kept_attributes, kept_db, _ = figures(results)
    return 0.5 * (success + min(success, kept_attributes)) + min(kept_db - ENOUGH_DB, 0) / 50


if __name__ == "__main__":
    main()
