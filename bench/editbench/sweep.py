"""Look for a method's defaults on the development split: tuning and sampling settings, best first.

    python -m bench.editbench.sweep --method imagic          # its grid, a few cases; prints the row for PRESET
    python -m bench.editbench.sweep --method sdedit --strength 0.6 0.7 --guidance 3
    python -m bench.editbench.sweep --updates 96 128 192 --strength 0.85 0.9 0.95 --guidance 4 6 8
    python -m bench.editbench.sweep --codec none int8 int4 sign lora   # what smaller weights cost
    python -m bench.editbench.sweep --scheduler ddim dpmpp_2m --num-inference-steps 4 8 30

Every rival has a grid in GRIDS; an option replaces its values. UniTune stays at its preset except for the given
options. A setting's rank is its success plus a fiftieth for every dB at which kept pixels lie nearer to 28 dB;
beyond 28 dB only success counts. The winners go into stickerbook/save_model.py, and the test split has never been
looked at. Interrupt it at will: the same command goes on.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from bench.editbench.cases import CATEGORIES, Picture, load
from bench.editbench.intervals import mean_of
from bench.editbench.results import Result, by_setting
from bench.editbench.run import run
from bench.editbench.settings import PER_PROMPT, Setting, setting_of
from bench.inputs import MODEL
from tuner_svc.model_folder import read_preset
from unitune.base_model import Preset
from unitune.choices import CODECS, EDIT_METHODS, MODES, PROMPT_TO_PROMPT
from unitune.diffusion.solvers import SCHEDULERS
from unitune.settings import num_cores

ENOUGH_DB = 28.0
FEW_PICTURES = 6  # of the development split, for methods that tune on each, and for those that edit slowly
# Seconds of one core, from docs/editbench.md: an update of a batch of 4, and an edit.
UPDATE_S, EDIT_S = 0.18, 0.4
EDITS_BESIDE = 3  # a Prompt-to-Prompt edit in ordinary ones: each step has one row to invert and four to edit, not two

Values = tuple[float | int | str, ...]

# By the preset's own names. Published learning rates were found for a model of 860 million parameters, and a small one
# needs far higher ones. What tunes keeps its paper's start from the noisiest level.
GRIDS: Mapping[str, Mapping[str, Values]] = {
    "unitune": {},
    "sdedit": {"strength": (0.5, 0.6, 0.7, 0.8, 0.9), "guidance_scale": (3.0, 5.0, 8.0)},
    "imagic": {
        "batch": (4,),
        "embedding_updates": (100,),
        "embedding_learning_rate": (1e-3, 1e-2),
        "updates": (100,),
        "learning_rate": (1e-4, 5e-4),
        "eta": (0.4, 0.6, 0.8, 1.0),
        "guidance_scale": (3.0, 5.0),
    },
    "dreambooth": {
        "batch": (4,),
        "num_class_images": (32,),
        "updates": (64, 128),
        "learning_rate": (1e-4, 3e-4),
        "guidance_scale": (3.0, 5.0),
    },
    "textual_inversion": {
        "batch": (4,),
        "updates": (200,),
        "learning_rate": (1e-3, 3e-3, 1e-2),
        "num_vectors": (1, 4),
        "guidance_scale": (3.0, 5.0),
    },
    PROMPT_TO_PROMPT: {
        "cross_replace": (0.2, 0.4, 0.8),
        "self_replace": (0.2, 0.4, 0.6),
        "guidance_scale": (3.0, 5.0, 8.0),
    },
}
OPTIONS = {  # of the command line, for axes of a grid
    "mode": str,
    "updates": int,
    "learning_rate": float,
    "batch": int,
    "embedding_updates": int,
    "embedding_learning_rate": float,
    "num_class_images": int,
    "prior_weight": float,
    "num_vectors": int,
    "eta": float,
    "strength": float,
    "guidance_scale": float,
    "interpolation": float,
    "guidance_sigma_low": float,
    "guidance_sigma_high": float,
    "scheduler": str,
    "num_inference_steps": int,
    "codec": str,
    "cross_replace": float,
    "self_replace": float,
}
CHOICES = {"mode": MODES, "scheduler": tuple(SCHEDULERS), "codec": CODECS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=EDIT_METHODS, default="unitune")
    for name, kind in OPTIONS.items():
        short = "--guidance" if name == "guidance_scale" else f"--{name.replace('_', '-')}"
        parser.add_argument(short, dest=name, nargs="+", type=kind, choices=CHOICES.get(name))
    parser.add_argument("--pictures", type=int, help="number of pictures, the first ones")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    began = time.monotonic()
    given = {name: tuple(values) for name in OPTIONS if (values := getattr(options, name))}
    tried = settings_of(read_preset(MODEL), options.method, {**GRIDS[options.method], **given})
    pictures = cases_for(options.method)[: options.pictures]
    expected_s = expected(list(tried), pictures) / num_cores()
    print(f"{len(tried)} settings of {options.method}, {sum(len(p.cases) for p in pictures)} cases")
    print(f"about {expected_s / 60:.0f} min on {num_cores()} idle cores if nothing is there yet", flush=True)
    results = by_setting(run(MODEL, pictures, list(tried), options.out, "development split"))
    ranked = sorted(results.items(), key=lambda entry: -rank(entry[1]))
    heads = ("setting", "rank", "success", "kept attributes", "kept pixels, dB", "distance", "edit s", "weights MB")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, group in ranked:
        costs = np.mean([(result.edit_s, result.artifact_bytes / 1e6) for result in group], axis=0)
        values = (rank(group), *figures(group), *costs)
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    best = next(row for setting, row in tried.items() if setting.name == ranked[0][0])
    place = "PRESET" if options.method == "unitune" else f'PRESET["methods"]["{options.method}"]'
    print(f"\nbest, for {place} in stickerbook/save_model.py: {json.dumps(best)}")
    print(f"done in {time.monotonic() - began:.0f} s")


def settings_of(preset: Preset, method: str, grid: Mapping[str, Values]) -> dict[Setting, dict[str, float | int | str]]:
    """All combinations of a grid's values, each with its row for the preset. Raises InvalidField as a tuning's config
    does."""
    found = {}
    for values in product(*grid.values()):
        row = dict(zip(grid, values, strict=True))
        codec = row.pop("codec", None)
        own = replace(preset, methods={**preset.methods, method: {**preset.methods.get(method, {}), **row}})
        words = [method, *(f"{key} {value:g}" if not isinstance(value, str) else value for key, value in row.items())]
        name = " ".join([*words, str(codec)] if codec else words)
        found[setting_of(own, method).at(name, codec=codec)] = row
    return found


def cases_for(method: str) -> list[Picture]:
    """The development split, or so much of it as a method's tunings leave time for: a few pictures with all their
    edits, and of one tuning per prompt one edit of every category, each of another picture."""
    pictures = load("development")
    if method in ("unitune", "sdedit"):
        return pictures
    if method not in PER_PROMPT:
        return pictures[:FEW_PICTURES]
    chosen, left = [], list(pictures)
    for category in CATEGORIES:
        picture = next(p for p in left if any(case.category == category for case in p.cases))
        left.remove(picture)
        chosen.append(replace(picture, cases=tuple(c for c in picture.cases if c.category == category)))
    return chosen


def expected(settings: Sequence[Setting], pictures: Sequence[Picture]) -> float:
    """Seconds of one core that the settings take, roughly."""
    cases = [case for picture in pictures for case in picture.cases]
    tunings = {(case.picture, setting.tuning_of(case)) for setting in settings for case in cases}
    edits = sum(EDITS_BESIDE if setting.method == PROMPT_TO_PROMPT else 1 for setting in settings)
    total = EDIT_S * edits * len(cases)
    total += EDIT_S * sum({p: t.num_class_images for p, t in tunings if t and t.method == "dreambooth"}.values())
    for _, tuning in tunings:
        if tuning is None:
            continue
        updates = tuning.updates + (tuning.embedding_updates if tuning.method == "imagic" else 0)
        has_prior = tuning.method == "dreambooth" and tuning.num_class_images > 0
        total += updates * UPDATE_S * tuning.batch / 4 * (2 if has_prior else 1)
    return total


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
