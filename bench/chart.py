"""The report as one picture: every ratio as a bar with its spread, against 1 and against its goal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes

matplotlib.use("Agg")  # draws files, needs no display
from matplotlib import pyplot

# The figures of a report to show. A figure that is no ratio is divided by its goal.
RATIOS: dict[str, tuple[str, float | None]] = {
    "edit.20_steps.ratio_to_diffusers_eager": ("edit of 20 steps / diffusers eager", 0.45),
    "edit.50_steps.ratio_to_diffusers_eager": ("edit of 50 steps / diffusers eager", 0.45),
    "edit.50_steps.ratio_to_torch_compile": ("edit of 50 steps / torch.compile", None),
    "edit.50_steps.ratio_to_openvino": ("edit of 50 steps / OpenVINO", None),
    "tuning.ratio_to_diffusers_dreambooth": ("tuning / diffusers DreamBooth", 0.5),
    "served_tuning.ratio_to_in_process": ("tuning through the services / in process", 1.05),
    "refit.ratio_to_build": ("refit / build of the engine", 0.05),
    "weights.ratio_to_fp16_full": ("stored tuning / denoiser in fp16", 0.125),
    "cold_start.ratio_to_diffusers": ("cold start / diffusers", None),
    "refit_modes.edit_of_8_steps.in_place_to_new_session": ("edit of 8 steps, in place / new session", None),
    "refit_modes.edit_of_20_steps.in_place_to_new_session": ("edit of 20 steps, in place / new session", None),
    "refit_modes.edit_of_50_steps.in_place_to_new_session": ("edit of 50 steps, in place / new session", None),
}
OTHERS: dict[str, tuple[str, float]] = {
    "refit.denoising_steps": ("refit, in denoising steps", 3.0),
    "gateway.overhead_ms": ("gateway's overhead, in ms", 15.0),
}
MET, MISSED, NO_GOAL = "#2e7d32", "#c62828", "#546e7a"


class Bar(NamedTuple):
    """One row: the median, the smallest and largest of all rounds, and the goal; or the reason why there is none."""

    label: str
    median: float
    smallest: float
    largest: float
    goal: float | None
    missing: str = ""

    @property
    def colour(self) -> str:
        """By whether the median meets the goal."""
        if self.goal is None:
            return NO_GOAL
        return MET if self.median <= self.goal else MISSED


def bars(report: Mapping[str, Any]) -> tuple[list[Bar], list[Bar]]:
    """The ratios of a report, and its other figures as shares of their goals, so that 1 is the goal."""
    ratios = [_bar(report.get(name), label, goal, 1.0) for name, (label, goal) in RATIOS.items()]
    others = [_bar(report.get(name), f"{label} / {goal:g}", 1.0, goal) for name, (label, goal) in OTHERS.items()]
    return ratios, others


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the chart as a PNG."""
    above, below = bars(report)
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(9, 0.38 * (len(above) + len(below)) + 2), height_ratios=(len(above), len(below) + 0.5),
        layout="constrained",
    )  # fmt: skip
    _rows(upper, above)
    upper.set_title("ours / the other: shorter is better, 1 is as fast (or large) as the other", fontsize=10)
    _rows(lower, below)
    lower.set_title("measured / goal", fontsize=10)
    figure.supxlabel(
        "bar: median; whisker: smallest and largest round; thick stroke: goal; green meets it, red does not",
        fontsize=8, color=NO_GOAL,
    )  # fmt: skip
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bar(found: Mapping[str, Any] | None, label: str, goal: float | None, unit: float) -> Bar:
    if found is None or "median" not in found:
        missing = "not measured" if found is None else str(found.get("refused", "not measured"))
        return Bar(label, 0.0, 0.0, 0.0, goal, missing)
    median, smallest, largest = (found[part] / unit for part in ("median", "smallest", "largest"))
    return Bar(label, median, smallest, largest, goal)


def _rows(axes: Axes, rows: list[Bar]) -> None:
    for place, bar in enumerate(rows):
        if bar.missing:
            axes.text(0.01, place, bar.missing, va="center", fontsize=8, color=NO_GOAL, style="italic")
            continue
        spread = [[bar.median - bar.smallest], [bar.largest - bar.median]]
        axes.barh(place, bar.median, xerr=spread, height=0.6, color=bar.colour, ecolor="black", capsize=3)
        axes.text(bar.largest + 0.015 * _end(rows), place, f"{bar.median:.2f}", va="center", fontsize=8)
        if bar.goal is not None:
            axes.plot([bar.goal] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [bar.label for bar in rows], fontsize=9)
    axes.set_xlim(0, _end(rows))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _end(rows: list[Bar]) -> float:
    """The end of the axis: beyond 1 and every whisker."""
    return 1.1 * max(1.0, *(bar.largest for bar in rows))
