"""Time to quality: how good edits are after so many seconds of tuning, with and without the warm start.

    python -m bench.editbench.time_to_quality                 the development split, about an hour on two cores
    python -m bench.editbench.time_to_quality --pictures 10   in a quarter of that

At the base model's preset, except for the updates: from the base model at the paper's learning rate, and from the warm
start at its own. Prints the table of docs/editbench.md, and writes out/editbench/time-to-quality.png. Interrupt it at
will: the same command goes on. Its seconds are of one core of an idle machine.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from bench.editbench.cases import load
from bench.editbench.intervals import mean_of, preference
from bench.editbench.report import percent, plain
from bench.editbench.results import Result, by_setting
from bench.editbench.run import run
from bench.editbench.settings import Setting, from_warm_start, setting_of
from bench.inputs import MODEL
from tuner_svc.model_folder import read_preset

UPDATES = (16, 32, 48, 64, 96, 128)
WARM_UPDATES = (0, 8, 16, 24, 32, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("development", "test"), default="development")
    parser.add_argument("--pictures", type=int, help="number of pictures, the first ones")
    parser.add_argument("--updates", type=int, nargs="*", default=UPDATES, help="from the base model")
    parser.add_argument("--warm-updates", type=int, nargs="*", default=WARM_UPDATES, help="from the warm start")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    own = setting_of(read_preset(MODEL), "unitune")
    warm = from_warm_start(own, MODEL)
    starts = {
        "the base model": [with_updates(own, number) for number in options.updates],
        "the warm start": [with_updates(warm, number) for number in options.warm_updates],
    }
    pictures = load(options.split)[: options.pictures]
    settings = [setting for group in starts.values() for setting in group]
    results = by_setting(run(MODEL, pictures, settings, options.out, "time to quality"))
    print("| begins at | updates | learning rate | tuning, s | right | kept pixels | distance to truth |")
    print("|---|---|---|---|---|---|---|")
    for start, group in starts.items():
        for setting in group:
            print(row(start, setting, results[setting.name]))
    plot({start: [results[one.name] for one in group] for start, group in starts.items()}, options.out)
    if options.split == "test":
        sdedit = setting_of(read_preset(MODEL), "sdedit")
        of_sdedit = run(MODEL, pictures, [sdedit], options.out, "SDEdit")
        for setting in settings:
            wins = preference(results[setting.name], of_sdedit)["all"]
            print(f"{setting.name}: preferred over SDEdit in {percent(plain(wins))}")


def with_updates(setting: Setting, updates: int) -> Setting:
    """The same with another number of updates."""
    assert setting.tuning is not None
    return setting.at(f"{setting.name}, {updates}", tuning=replace(setting.tuning, updates=updates))


def row(start: str, setting: Setting, results: Sequence[Result]) -> str:
    """Of the table, in Markdown."""
    assert setting.tuning is not None
    tuning, right = setting.tuning, mean_of(results, lambda r: float(r.score.success))
    kept, distance = (mean_of(results, lambda r: r.score.kept_psnr_db), mean_of(results, lambda r: r.score.distance))
    assert right is not None and kept is not None and distance is not None
    seconds = np.mean([result.tuning_s for result in results])
    figures = f"{seconds:.1f} | {percent(plain(right))} | {kept.mean:.1f} dB | {distance.mean:.4f}"
    return f"| {start} | {tuning.updates} | {tuning.learning_rate:g} | {figures} |"


def plot(groups: dict[str, list[list[Result]]], out: Path) -> None:
    """Right edits and kept pixels against the seconds of a tuning."""
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(6.4, 6.4), sharex=True)
    for start, results in groups.items():
        seconds = [np.mean([result.tuning_s for result in group]) for group in results]
        right = [mean_of(group, lambda r: float(r.score.success)) for group in results]
        kept = [mean_of(group, lambda r: r.score.kept_psnr_db) for group in results]
        above.plot(seconds, [100 * one.mean for one in right if one], "o-", label=start)
        below.plot(seconds, [one.mean for one in kept if one], "o-")
    above.set_ylabel("right edits, %")
    below.set_ylabel("kept pixels, dB")
    below.set_xlabel("seconds of tuning, one core")
    above.legend(title="a tuning begins at")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out / "time-to-quality.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
