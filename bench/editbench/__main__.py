"""EditBench: UniTune and its rivals on pictures that training never drew, judged against exact ground truth.

    make editbench                 the test split: 208 edits of 52 pictures
    make editbench QUICK=1         24 edits of 6 pictures
    python -m bench.editbench --methods unitune,sdedit,imagic     with these rivals alone

Rivals run on the 24 quick cases, since some need a tuning for every prompt, and are compared with UniTune on these;
with --quick on the first eight of them.
Prints the tables and writes out/editbench/report.json, contact sheets, one of them for each method, plots. Interrupt
it at will: the same command goes on. Give it an idle machine if its seconds are to mean something.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.editbench import pictures as drawings
from bench.editbench import report, rivals
from bench.editbench.automatic import chosen_by_clip_filter
from bench.editbench.cases import Picture, load
from bench.editbench.grid import settings_around
from bench.editbench.results import Result, by_setting
from bench.editbench.run import engine_folder, open_clip_filter, run
from bench.editbench.settings import automatic_points, from_warm_start, setting_of
from bench.editbench.statements import same_as_sdedit, statements
from bench.inputs import MODEL
from stickerbook.commit import commit
from tuner_svc.model_folder import read_preset
from unitune.choices import EDIT_METHODS

PICTURES_OF_QUICK_RIVALS = 2  # of six, four cases each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 cases, and only the settings that the statements need")
    parser.add_argument("--pictures", type=int, help="number of pictures, the first ones")
    parser.add_argument("--no-grid", action="store_true", help="all cases, but no settings for the plot")
    parser.add_argument(
        "--methods",
        type=methods_of,
        help=f"of {', '.join(EDIT_METHODS)}, with commas; default: UniTune and those in the model's preset",
    )
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    began = time.monotonic()
    preset = read_preset(MODEL)
    methods = [setting_of(preset, "unitune"), setting_of(preset, "sdedit")]
    # The papers' updates for a rival that was not swept would take hours on a CPU, and say little of a small model.
    names = options.methods or ("unitune", *(name for name in EDIT_METHODS if name in preset.methods))
    others = [setting_of(preset, name) for name in names if name not in ("unitune", "sdedit")]
    pictures = load("test", quick=options.quick)[: options.pictures]
    warm = from_warm_start(methods[0], MODEL)
    points = [point.at(point.name, tuning=warm.tuning) for point in automatic_points(preset)]  # as they are shipped
    everywhere = [*methods, warm, *points]
    varied = [*same_as_sdedit(methods[0]), *settings_around(methods[0], quick=options.quick or options.no_grid)]
    few = load("test", quick=True)[: options.pictures]
    found = run(MODEL, few, [*everywhere, *dict.fromkeys(varied)], options.out, "pictures with all settings")
    for_rivals = few[:PICTURES_OF_QUICK_RIVALS] if options.quick else few
    of_rivals = run(MODEL, for_rivals, others, options.out, "rivals")
    if not options.quick:
        found = [r for r in found if r.setting not in {s.name for s in everywhere}]
        found += run(MODEL, pictures, everywhere, options.out, "all pictures")

    results = by_setting(found)
    cases = [case for picture in pictures for case in picture.cases]
    clip_filter = open_clip_filter(engine_folder(MODEL, options.out))
    of_points = [results[point.name] for point in points]
    results["automatic"] = chosen_by_clip_filter(clip_filter, cases, of_points, options.out)
    best = mean_of_best(of_points)
    rows = {name: report.method_row(results[name]) for name in ("unitune", warm.name, "automatic", "sdedit")}
    stated = statements(results, methods[0], options.out)
    compared = on_same_cases({**results, **by_setting(of_rivals)}, ["unitune", *names], for_rivals)
    beside = rivals.beside_papers(compared)
    written = {
        "commit": commit(),
        "cases": len(results["unitune"]),
        "pictures": len(pictures),
        "settings": {method.name: asdict(method) for method in (*methods, warm, *others)},
        "methods": rows,
        "preference_over_sdedit": {name: report.preferences(results, name) for name in ("unitune", warm.name)},
        "automatic": {"points": [asdict(point) for point in points], "success_of_best_point": best},
        "statements": stated,
        "rivals": {
            "pictures": [picture.id for picture in for_rivals],
            "methods": rivals.rows(compared),
            "papers": beside,
        },
        "seconds": round(time.monotonic() - began),
    }
    (options.out / "report.json").write_text(json.dumps(written, indent=1) + "\n")
    of_cases = {name: {r.case: r for r in group} for name, group in {**compared, **results}.items()}
    for which in ("best", "median", "worst"):
        shown = drawings.chosen(cases, results["unitune"], which)
        drawings.sheet(shown, {name: of_cases[name] for name in rows}, options.out).save(options.out / f"{which}.png")
    examples = drawings.one_of_each_category([case for picture in for_rivals for case in picture.cases])
    for name in {**rows, **compared}:
        pair = (name, "sdedit" if name == "unitune" else "unitune")
        page = drawings.sheet(examples, {other: of_cases[other] for other in pair}, options.out)
        page.save(options.out / f"{name}.png")
    if not (options.quick or options.no_grid):
        drawings.fidelity_against_alignment(results, methods[0], options.out / "fidelity-against-alignment.png")
    print(report.table(rows, stated))
    subset = f"the same {len(compared['unitune'])} cases of {len(for_rivals)} pictures of the quick subset"
    wins = written["preference_over_sdedit"][warm.name]["all"]  # type: ignore[index]
    print(f"\n{warm.name}: preferred over SDEdit in {report.percent(wins)}")
    print(f"\n{rivals.table(rivals.rows(compared), beside, subset)}")
    share = best and rows["automatic"]["success"]["mean"] / best  # type: ignore[index]
    print(f"\nautomatic settings reach {share:.0%} of what the best point of each case would ({best:.1%} right)")
    print(f"{written['cases']} cases in {written['seconds']} s; report, sheets and plots are in {options.out}")


def methods_of(text: str) -> tuple[str, ...]:
    """The methods named in a list with commas. Raises ArgumentTypeError for one that is none."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in EDIT_METHODS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a method; known are {', '.join(EDIT_METHODS)}")
    return names


def on_same_cases(
    results: Mapping[str, Sequence[Result]], methods: Sequence[str], pictures: Sequence[Picture]
) -> dict[str, list[Result]]:
    """The methods' results on these pictures alone, in the order of the methods."""
    ids = {picture.id for picture in pictures}
    return {method: [result for result in results[method] if result.picture in ids] for method in methods}


def mean_of_best(points: Sequence[Sequence[Result]]) -> float:
    """The share of cases that at least one point gets right."""
    right = [any(result.score.success for result in of_case) for of_case in zip(*points, strict=True)]
    return round(sum(right) / len(right), 4)


if __name__ == "__main__":
    main()
