"""EditBench: UniTune and its rivals on pictures that training never drew, judged against exact ground truth.

    make editbench                 the test split: 208 edits of 52 pictures
    make editbench QUICK=1         24 edits of 6 pictures

Prints the table and writes out/editbench/report.json, contact sheets and plots. Interrupt it at will: the same command
goes on. Give it an idle machine if its seconds are to mean something.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.editbench import pictures as drawings
from bench.editbench import report
from bench.editbench.automatic import chosen_by_gate
from bench.editbench.cases import load
from bench.editbench.grid import around
from bench.editbench.results import Result, by_setting
from bench.editbench.run import engine_folder, run
from bench.editbench.settings import automatic_points, sdedit, unitune
from bench.editbench.statements import same_as_sdedit, statements
from sampler_svc.gate import Gate
from stickerbook.commit import commit
from tuner_svc import base_model

MODEL = Path(__file__).parents[2] / "stickerbook" / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 cases, and only the settings that the statements need")
    parser.add_argument("--pictures", type=int, help="only so many pictures, the first ones")
    parser.add_argument("--no-grid", action="store_true", help="all cases, but no settings for the plot")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    began = time.monotonic()
    preset = base_model.load(MODEL).preset
    methods = [unitune(preset), sdedit(preset)]
    pictures = load("test", quick=options.quick)[: options.pictures]
    points = automatic_points(preset)
    everywhere = [*methods, *points]
    varied = [*same_as_sdedit(methods[0]), *around(methods[0], quick=options.quick or options.no_grid)]
    few = load("test", quick=True)
    found = run(MODEL, few, [*everywhere, *dict.fromkeys(varied)], options.out, "pictures with all settings")
    if not options.quick:
        found = [r for r in found if r.setting not in {s.name for s in everywhere}]
        found += run(MODEL, pictures, everywhere, options.out, "all pictures")

    results = by_setting(found)
    cases = [case for picture in pictures for case in picture.cases]
    gate = Gate(engine_folder(MODEL, options.out), preset)
    of_points = [results[point.name] for point in points]
    results["automatic"] = chosen_by_gate(gate, cases, of_points, options.out)
    best = mean_of_best(of_points)
    rows = {name: report.method_row(results[name]) for name in ("unitune", "automatic", "sdedit")}
    stated = statements(results, methods[0], options.out)
    written = {
        "commit": commit(),
        "cases": len(results["unitune"]),
        "pictures": len(pictures),
        "settings": {method.name: asdict(method) for method in methods},
        "methods": rows,
        "preference_over_sdedit": report.preferences(results),
        "automatic": {"points": [asdict(point) for point in points], "success_of_best_point": best},
        "statements": stated,
        "seconds": round(time.monotonic() - began),
    }
    (options.out / "report.json").write_text(json.dumps(written, indent=1) + "\n")
    by_case = {name: {result.case: result for result in results[name]} for name in rows}
    for which in ("best", "median", "worst"):
        page = drawings.sheet(drawings.chosen(cases, results["unitune"], which), by_case, options.out)
        page.save(options.out / f"{which}.png")
    if not (options.quick or options.no_grid):
        drawings.fidelity_against_alignment(results, methods[0], options.out / "fidelity-against-alignment.png")
    print(report.table(rows, stated))
    share = best and rows["automatic"]["success"]["mean"] / best  # type: ignore[index]
    print(f"\nautomatic settings reach {share:.0%} of what the best point of each case would ({best:.1%} right)")
    print(f"{written['cases']} cases in {written['seconds']} s; report, sheets and plots are in {options.out}")


def mean_of_best(points: Sequence[Sequence[Result]]) -> float:
    """The share of cases that at least one point gets right."""
    right = [any(result.score.success for result in of_case) for of_case in zip(*points, strict=True)]
    return round(sum(right) / len(right), 4)


if __name__ == "__main__":
    main()
