"""The report of a soak: one page, with plots beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

from bench.measure import percentile
from bench.soak.ledger import DONE, Ledger
from bench.soak.resources import KINDS, Life, Trend
from bench.soak.services import NAMES

matplotlib.use("Agg")  # draws files, needs no display
from matplotlib import pyplot

COLOURS = dict(zip(NAMES, ("#1565c0", "#c62828", "#2e7d32"), strict=True))
EDITS = ("edit own", "edit shared", "edit without tuning")


class Run(NamedTuple):
    """What a soak was, and what came of it."""

    command: str
    seconds: float
    tunings: Mapping[str, int]  # by their last state
    error_lines: Mapping[str, int]  # of each log
    notes: Sequence[str]


def write(folder: Path, run: Run, ledger: Ledger, lives: Sequence[Life], found: Sequence[Trend]) -> Path:
    """Write page and plots; the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw_resources(folder / "resources.png", ledger, lives)
    _draw_edits(folder / "edits.png", ledger)
    page = folder / "report.md"
    page.write_text("\n".join(_lines(run, ledger, found)) + "\n", encoding="utf-8")
    return page


def edit_seconds(ledger: Ledger) -> dict[str, list[float]]:
    """Seconds of the edits that were done, by kind."""
    return {
        action: [each.seconds for each in ledger.outcomes if (each.action, each.ended) == (action, DONE)]
        for action in EDITS
    }


def _lines(run: Run, ledger: Ledger, found: Sequence[Trend]) -> list[str]:
    verdict = f"{len(ledger.wrongs)} violations" if ledger.wrongs else "no violation"
    lines = [f"# Soak: {verdict}", "", f"    {run.command}", "", f"It ran for {run.seconds:.0f} s.", *run.notes, ""]
    lines += [f"- {wrong}" for wrong in ledger.wrongs]
    lines += ["", "## Faults", "", "| fault | times | seconds |", "|---|---|---|"]
    faults = Counter(fault.what for fault in ledger.faults)
    for what, number in sorted(faults.items()):
        harmed_s = sum(fault.until_s - fault.at_s for fault in ledger.faults if fault.what == what)
        lines.append(f"| {what} | {number} | {harmed_s:.0f} |")
    lines += ["", f"Left out for want of time: {ledger.left_out}."]
    lines += ["", "## What clients did, and how it ended", "", "| action | ended |", "|---|---|"]
    for action, ends in sorted(ledger.by_action().items()):
        lines.append(f"| {action} | {', '.join(f'{number} {end}' for end, number in ends.most_common())} |")
    lines += ["", f"Tunings that were left at the end: {_told(run.tunings)}.", ""]
    lines += ["## Seconds of edits that were done", "", "| edit | number | p50 | p95 |", "|---|---|---|---|"]
    for action, seconds in edit_seconds(ledger).items():
        if seconds:
            p50, p95 = percentile(seconds, 0.5), percentile(seconds, 0.95)
            lines.append(f"| {action} | {len(seconds)} | {p50:.2f} | {p95:.2f} |")
    lines += ["", "![edits](edits.png)", "", "## Processes", ""]
    lines += ["| process | figure | looked at for | mean | rises by | flat |", "|---|---|---|---|---|---|"]
    for trend in found:
        flat = "yes" if trend.is_flat else "NO"
        lines.append(
            f"| {trend.life.service} {trend.life.pid} | {trend.kind} | {trend.span_s:.0f} s | {trend.mean:.1f} "
            f"| {trend.rise:+.1f} | {flat} |"
        )
    if not found:
        lines.append("| none lived long enough | | | | | |")
    lines += ["", f"Lines of errors in the logs: {_told(run.error_lines)}.", "", "![resources](resources.png)"]
    return lines


def _told(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items()) or "none"


def _draw_resources(path: Path, ledger: Ledger, lives: Sequence[Life]) -> None:
    figure, rows = pyplot.subplots(len(KINDS), 1, figsize=(10, 11), sharex=True, layout="constrained")
    for axes, kind in zip(rows, KINDS, strict=True):
        for life in lives:
            axes.plot(life.times_s, life.values[kind], color=COLOURS[life.service], linewidth=1)
        for fault in ledger.faults:
            axes.axvspan(fault.at_s, fault.until_s, color="black", alpha=0.08, linewidth=0)
        axes.set_ylabel(kind)
        axes.set_ylim(bottom=0)
    for name in NAMES:
        rows[0].plot([], [], color=COLOURS[name], label=name)
    rows[0].legend(loc="upper left")
    rows[-1].set_xlabel("seconds; grey: a fault")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_edits(path: Path, ledger: Ledger) -> None:
    figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
    for action in EDITS:
        done = [each for each in ledger.outcomes if (each.action, each.ended) == (action, DONE)]
        axes.plot([each.at_s for each in done], [each.seconds for each in done], ".", markersize=4, label=action)
    failed = [each for each in ledger.outcomes if each.action in EDITS and each.ended != DONE]
    axes.plot([each.at_s for each in failed], [each.seconds for each in failed], "kx", markersize=5, label="not done")
    for fault in ledger.faults:
        axes.axvspan(fault.at_s, fault.until_s, color="black", alpha=0.08, linewidth=0)
    axes.set_xlabel("began at, in seconds; grey: a fault")
    axes.set_ylabel("took, in seconds")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
