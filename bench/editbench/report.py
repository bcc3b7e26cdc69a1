"""The report: one row per method, the paper's statements, and what they were measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bench.editbench.cases import CATEGORIES
from bench.editbench.intervals import Estimate, mean_of, preference
from bench.editbench.results import Result


def method_row(results: Sequence[Result]) -> dict[str, object]:
    """What EditBench says of one method, with 95 % intervals."""
    figures = {
        "success": mean_of(results, lambda r: float(r.score.success)),
        "kept_attributes": mean_of(results, lambda r: r.score.kept_attributes),
        "kept_psnr_db": mean_of(results, lambda r: r.score.kept_psnr_db),
        "ssim": mean_of(results, lambda r: r.score.ssim),
        "distance": mean_of(results, lambda r: r.score.distance),
    }
    row: dict[str, object] = {name: plain(figure) for name, figure in figures.items()}
    row["tuning_s"] = mean([result.tuning_s for result in results])
    row["edit_s"] = mean([result.edit_s for result in results])
    row["success_by_category"] = {
        category: plain(mean_of([r for r in results if r.category == category], lambda r: float(r.score.success)))
        for category in CATEGORIES
    }
    row["success_aligned"] = plain(mean_of([r for r in results if r.aligned], lambda r: float(r.score.success)))
    row["success_unaligned"] = plain(mean_of([r for r in results if not r.aligned], lambda r: float(r.score.success)))
    return row


def preferences(results: Mapping[str, Sequence[Result]], setting: str) -> dict[str, object]:
    """A setting's over SDEdit."""
    return {name: plain(wins) for name, wins in preference(results[setting], results["sdedit"]).items()}


def table(methods: Mapping[str, Mapping[str, object]], statements: Sequence[Mapping[str, object]]) -> str:
    """For the terminal, in Markdown."""
    lines = ["| method | success | kept attributes | kept pixels, dB | SSIM | distance to truth | tuning s | edit s |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, row in methods.items():
        success, kept = percent(row["success"]), percent(row["kept_attributes"])
        psnr, ssim, distance = (number(row[key], digits) for key, digits in
                                (("kept_psnr_db", 1), ("ssim", 3), ("distance", 3)))  # fmt: skip
        cells = (name, success, kept, psnr, ssim, distance, f"{row['tuning_s']:.1f}", f"{row['edit_s']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| the paper's statement | paper | ours | agrees |", "|---|---|---|---|"]
    lines += [
        f"| {row['statement']} | {row['paper']} | {row['ours']} | {'yes' if row['agrees'] else 'no'} |"
        for row in statements
    ]
    return "\n".join(lines)


def plain(figure: Estimate | None) -> dict[str, float] | None:
    """An estimate for report.json, rounded."""
    return None if figure is None else {key: round(value, 4) for key, value in asdict(figure).items()}


def mean(values: Sequence[float]) -> float:
    """Rounded; there is at least one value."""
    return round(sum(values) / len(values), 3)


def percent(figure: object) -> str:
    """Of `plain`: mean and interval as percentages."""
    assert isinstance(figure, dict)
    return f"{100 * figure['mean']:.1f} % ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"


def number(figure: object, digits: int) -> str:
    """Of `plain`: the mean, or a dash where there is none."""
    return f"{figure['mean']:.{digits}f}" if isinstance(figure, dict) else "-"
