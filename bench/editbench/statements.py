"""The paper's statements about UniTune (arXiv 2210.09477), each beside what we measure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.editbench.grid import named
from bench.editbench.intervals import Estimate, mean_of, preference
from bench.editbench.results import Result
from bench.editbench.settings import Setting

PAPER_PREFERENCE = {"all": 0.72, "aligned": 0.60, "unaligned": 0.83}  # of people, over SDEdit, on 93 pairs


def same_as_sdedit(preset: Setting) -> tuple[Setting, Setting]:
    """Zero updates, and SDEdit with the same prompt, strength and guidance: they must agree bit for bit."""
    zero = named(preset, 0, 0.9, 4.0)
    return zero, zero.at("sdedit, same prompt", method="sdedit", tuning=None)


def statements(results: Mapping[str, Sequence[Result]], preset: Setting, out: Path) -> list[dict[str, object]]:
    """One row per statement: the paper's words, our figures, whether they agree."""
    zero, base = same_as_sdedit(preset)
    difference = max(
        _largest_difference(out, *pair) for pair in zip(results[zero.name], results[base.name], strict=True)
    )
    rows: list[dict[str, object]] = [
        {
            "statement": "a. no updates: exactly SDEdit",
            "paper": "the same",
            "ours": f"largest difference of a pixel {difference}",
            "agrees": difference == 0,
        }
    ]
    series = {
        "b. fixed start, more updates: identity and style kept better": [
            named(preset, updates, 0.9, 4.0) for updates in (0, 64, 128, 256)
        ],
        "c. fixed updates, a later start (smaller t0): layout kept better": [
            named(preset, 128, strength, 4.0) for strength in (1.0, 0.9, 0.8, 0.7)
        ],
    }
    for statement, settings in series.items():
        there = [setting for setting in settings if setting.name in results]
        kept = [mean_of(results[setting.name], lambda r: r.score.kept_psnr_db) for setting in there]
        means = [estimate.mean for estimate in kept if estimate is not None]
        figures = ", ".join(f"{setting.name}: {e.mean:.1f}" for setting, e in zip(there, kept, strict=True) if e)
        rows.append(
            {
                "statement": statement,
                "paper": "better step by step",
                "ours": f"PSNR of kept pixels, dB: {figures}",
                "agrees": bool(np.all(np.diff(means) > 0)),
            }
        )
    for name, wins in preference(results["unitune"], results["sdedit"]).items():
        if wins is None:
            continue
        rows.append(
            {
                "statement": f"d. preferred over SDEdit, {name}",
                "paper": f"{100 * PAPER_PREFERENCE[name]:.0f} %",
                "ours": wins.percent(),
                "agrees": wins.low > 0.5,
            }
        )
    plain, strong = results[named(preset, 128, 0.9, 1.0).name], results[named(preset, 128, 0.9, 4.0).name]
    change, changed = _mean(plain, "change"), _mean(strong, "change")
    success, succeeded = _mean(plain, "success"), _mean(strong, "success")
    rows.append(
        {
            "statement": "e. without strong guidance the sample stays at the base image",
            "paper": "stays",
            "ours": f"guidance 1 against 4: success {100 * success.mean:.0f} against {100 * succeeded.mean:.0f} %, "
            f"distance to the base image {change.mean:.3f} against {changed.mean:.3f}",
            "agrees": success.mean < succeeded.mean and change.mean < changed.mean,
        }
    )
    return rows


def _mean(results: Sequence[Result], field: str) -> Estimate:
    found = mean_of(results, lambda r: float(getattr(r.score, field)))
    assert found is not None
    return found


def _largest_difference(out: Path, one: Result, other: Result) -> int:
    pixels = [r.pixels(out).astype(np.int16) for r in (one, other)]
    return int(np.abs(pixels[0] - pixels[1]).max())
