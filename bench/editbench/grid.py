"""Settings around the preset: what the paper's statements and the plots are read from, and what a sweep tries."""

from dataclasses import replace
from itertools import product

from bench.editbench.settings import GUIDED_AT_EVERY_STEP, Setting

UPDATES = (0, 64, 128, 256)
STRENGTHS = (0.7, 0.8, 0.9, 1.0)
GUIDANCES = (1.0, 4.0, 8.0)
STEPS = 30  # of which every strength leaves a number of its own


def named(preset: Setting, updates: int, strength: float, guidance_scale: float) -> Setting:
    """The preset's method at other values and guided at every step, without interpolation, which would hide what the
    sampling keeps."""
    assert preset.tuning is not None
    return preset.at(
        f"u{updates} s{strength:g} g{guidance_scale:g}",
        tuning=replace(preset.tuning, updates=updates),
        strength=strength,
        guidance_scale=guidance_scale,
        num_inference_steps=STEPS,
        interpolation=0.0,
        **GUIDED_AT_EVERY_STEP,
    )


def settings_around(preset: Setting, *, quick: bool) -> list[Setting]:
    """All combinations, or the few that the paper's statements need."""
    assert preset.tuning is not None
    if not quick:
        return [named(preset, *values) for values in product(UPDATES, STRENGTHS, GUIDANCES)]
    middle = named(preset, 128, 0.9, 4.0)
    few = [named(preset, u, 0.9, 4.0) for u in (0, 64)] + [named(preset, 128, s, 4.0) for s in (0.7, 1.0)]
    return [middle, *few, named(preset, 128, 0.9, 1.0)]
