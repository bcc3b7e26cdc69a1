"""The curves as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes

matplotlib.use("Agg")  # draws files, needs no display
from matplotlib import pyplot

from bench.scale.policies import PolicyName

COLOURS = {PolicyName.RANDOM: "#c62828", PolicyName.RENDEZVOUS: "#ef8f00", PolicyName.GATEWAY: "#2e7d32"}
GREY = "#546e7a"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture as a PNG."""
    figure, axes = pyplot.subplots(3, 2, figsize=(11, 12), layout="constrained")
    _by_number(axes[0, 0], report["by_number"], "p95_s", "p95 of an edit, s")
    _by_number(axes[0, 1], report["by_number"], "cold", "edits whose weights come from the store, %", 100)
    _memory(axes[1, 0], report["memory"])
    _day(axes[1, 1], report["days"])
    _cost(axes[2, 0], report["cost"])
    _limits(axes[2, 1], report["limits"])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _by_number(axes: Axes, points: Sequence[Mapping[str, Any]], figure: str, label: str, times: float = 1) -> None:
    for policy in PolicyName:
        line = [(one["samplers"], times * one[figure]) for one in points if one["policy"] == policy]
        axes.plot(*zip(*line, strict=True), "o-", color=COLOURS[policy], label=policy)
    axes.set_xscale("log")
    if figure.endswith("_s"):
        _seconds(axes, [one[figure] for one in points])
    else:
        axes.set_ylim(0, 100)
    axes.set_xlabel(f"samplers, each with {points[0]['load']:.0%} of its time in edits")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend()


def _memory(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    for engines in dict.fromkeys(one["engines"] for one in points):
        line = [(one["keeps"], one["p95_s"]) for one in points if one["engines"] == engines]
        axes.plot(*zip(*line, strict=True), "o-", label=f"{engines} engine{'s' if engines > 1 else ''} a sampler")
    _seconds(axes, [one["p95_s"] for one in points])
    axes.set_xlabel(f"tunings whose decoded weights a sampler keeps ({points[0]['load']:.0%} of its time in edits)")
    axes.set_ylabel("p95 of an edit, s")
    axes.grid(alpha=0.3)
    axes.legend()


def _day(axes: Axes, days: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for one in days:
        label = f"p95, where a sampler starts in {one['start_s']:g} s"
        lines += axes.plot(one["hours"], [value or float("nan") for value in one["window_p95_s"]], label=label)
    numbers = axes.twinx()
    for name, colour in (("samplers", "black"), ("tuners", GREY)):
        lines += numbers.plot(days[0]["scaled_hours"], days[0][name], color=colour, linewidth=0.8, label=name)
    numbers.set_ylabel("samplers, tuners")
    numbers.set_ylim(bottom=0)
    axes.set_ylim(0, 2 * max(max(one["window_p95_s"]) for one in days))
    axes.set_ylabel("p95 of an edit, s")
    axes.set_xlabel("hour of the day")
    axes.grid(alpha=0.3)
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="upper left")


def _seconds(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers."""
    axes.set_yscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if min(values) / 2.5 < tick < max(values) * 2.5]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _cost(axes: Axes, costs: Mapping[str, Mapping[str, float]]) -> None:
    numbers = list(costs)
    samplers = [costs[number]["samplers"] for number in numbers]
    tuners = [costs[number]["tuners"] for number in numbers]
    axes.bar(numbers, samplers, color="#2e7d32", label="samplers")
    axes.bar(numbers, tuners, bottom=samplers, color="#ef8f00", label="tuners")
    axes.set_xlabel("edits of each tuning")
    axes.set_ylabel("1,000 edits, in prices of an hour")
    axes.legend()


def _limits(axes: Axes, limits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    names = [one["what"] for one in next(iter(limits.values())) if one["share"] is not None]
    for name in names:
        line = [(float(users), one["share"]) for users, asked in limits.items() for one in asked if one["what"] == name]
        axes.plot(*zip(*line, strict=True), "o-", label=name)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("visits a day")
    axes.set_ylabel("asked at the peak, of what one can do")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
