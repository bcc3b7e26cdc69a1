"""What people would rather see: contact sheets of cases, and fidelity against alignment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from bench.editbench.cases import CATEGORIES, Case
from bench.editbench.grid import GUIDANCES, STRENGTHS, UPDATES, named
from bench.editbench.intervals import mean_of
from bench.editbench.results import Result
from bench.editbench.settings import Setting
from stickerbook.render import render

matplotlib.use("Agg")
from matplotlib import pyplot

PANEL, GAP, TEXT = 160, 8, 44
COLUMNS = 2  # cases beside each other


def sheet(cases: Sequence[Case], results: Mapping[str, Mapping[str, Result]], out: Path) -> Image.Image:
    """Per case: base image, ground truth, and each method's picture, with prompt and verdict under them."""
    width = (PANEL + GAP) * (2 + len(results))
    height = PANEL + TEXT
    rows = -(-len(cases) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (width + 3 * GAP), rows * height + GAP), (250, 250, 248))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for index, case in enumerate(cases):
        left, top = (index % COLUMNS) * (width + 3 * GAP) + GAP, (index // COLUMNS) * height + GAP
        panels = [(render(case.scene), "base image"), (render(case.wanted), "ground truth")]
        for name, by_case in results.items():
            result = by_case[case.id]
            kept = "" if result.score.kept_psnr_db is None else f" {result.score.kept_psnr_db:.0f} dB"
            verdict = "right" if result.score.success else "not right"
            panels.append((result.pixels(out), f"{name}: {verdict}{kept}"))
        for column, (pixels, label) in enumerate(panels):
            x = left + column * (PANEL + GAP)
            page.paste(Image.fromarray(pixels).resize((PANEL, PANEL), Image.Resampling.NEAREST), (x, top))
            draw.text((x, top + PANEL + 2), label, fill=(40, 40, 40), font=font)
        draw.text((left, top + PANEL + 18), case.prompt, fill=(40, 40, 40), font=font)
    return page


def chosen(cases: Sequence[Case], results: Sequence[Result], which: str, count: int = 12) -> list[Case]:
    """The best, median or worst cases of a method: by success first, then by distance to the ground truth."""
    by_id = {case.id: case for case in cases}
    ranked = sorted(results, key=lambda r: (not r.score.success, r.score.distance))
    start = {"best": 0, "median": (len(ranked) - count) // 2, "worst": len(ranked) - count}[which]
    return [by_id[result.case] for result in ranked[max(start, 0) : max(start, 0) + count]]


def one_of_each_category(cases: Sequence[Case]) -> list[Case]:
    """The first case of every category, in the order of CATEGORIES."""
    first = {case.category: case for case in reversed(cases)}
    return [first[category] for category in CATEGORIES if category in first]


def fidelity_against_alignment(results: Mapping[str, Sequence[Result]], preset: Setting, path: Path) -> None:
    """One line per number of updates and guidance; along it the strength falls."""
    figure, axes = pyplot.subplots(1, len(GUIDANCES), figsize=(5 * len(GUIDANCES), 4.4), sharex=True, sharey=True)
    for axis, guidance in zip(axes, GUIDANCES, strict=True):
        for updates in UPDATES:
            there = [results[name] for s in STRENGTHS if (name := named(preset, updates, s, guidance).name) in results]
            points = [
                (mean_of(group, lambda r: float(r.score.success)), mean_of(group, lambda r: r.score.kept_psnr_db))
                for group in there
            ]
            known = [(100 * success.mean, kept.mean) for success, kept in points if success and kept]
            label = "SDEdit (0 updates)" if updates == 0 else f"{updates} updates"
            axis.plot(*zip(*known, strict=True), "o-", label=label)
            for strength, point in zip(STRENGTHS, known, strict=False):
                axis.annotate(f"{strength:g}", point, fontsize=8, xytext=(3, 3), textcoords="offset points")
        axis.set_title(f"guidance {guidance:g}; numbers are strengths")
        axis.set_xlabel("edits that came out right, %")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("kept pixels, dB (no interpolation)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
