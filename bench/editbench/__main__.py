"""EditBench: UniTune and its rivals on pictures that training never drew, judged against exact ground truth.

    make editbench                 the test split: 208 edits of 52 pictures
    make editbench QUICK=1         24 edits of 6 pictures

Prints the table and writes out/editbench/report.json, contact sheets and plots. Interrupt it at will: the same command
goes on. Give it an idle machine if its seconds are to mean something.
"""

import argparse
import json
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from bench.editbench import pictures as drawings
from bench.editbench import report
from bench.editbench.cases import load
from bench.editbench.grid import around
from bench.editbench.results import by_setting
from bench.editbench.run import run
from bench.editbench.settings import sdedit, unitune
from bench.editbench.statements import same_as_sdedit, statements
from tuner_svc import base_model

MODEL = Path(__file__).parents[2] / "stickerbook" / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 cases, and only the settings that the statements need")
    parser.add_argument("--out", type=Path, default=Path("out/editbench"))
    options = parser.parse_args()
    began = time.monotonic()
    preset = base_model.load(MODEL).preset
    methods = [unitune(preset), sdedit(preset)]
    pictures = load("test", quick=options.quick)
    found = run(MODEL, pictures, methods, options.out, "methods")
    few = load("test", quick=True)
    varied = [*same_as_sdedit(methods[0]), *around(methods[0], quick=options.quick)]
    found += run(MODEL, few, list({setting.name: setting for setting in varied}.values()), options.out, "settings")

    results = by_setting(found)
    rows = {method.name: report.method_row(results[method.name]) for method in methods}
    stated = statements(results, methods[0], options.out)
    written = {
        "commit": commit(),
        "cases": len(results["unitune"]),
        "pictures": len(pictures),
        "settings": {method.name: asdict(method) for method in methods},
        "methods": rows,
        "preference_over_sdedit": report.preferences(results),
        "statements": stated,
        "seconds": round(time.monotonic() - began),
    }
    (options.out / "report.json").write_text(json.dumps(written, indent=1) + "\n")
    cases = [case for picture in pictures for case in picture.cases]
    by_case = {method.name: {result.case: result for result in results[method.name]} for method in methods}
    for which in ("best", "median", "worst"):
        page = drawings.sheet(drawings.chosen(cases, results["unitune"], which), by_case, options.out)
        page.save(options.out / f"{which}.png")
    if not options.quick:
        drawings.fidelity_against_alignment(results, methods[0], options.out / "fidelity-against-alignment.png")
    print(report.table(rows, stated))
    print(f"\n{written['cases']} cases in {written['seconds']} s; report, sheets and plots are in {options.out}")


def commit() -> str:
    """The commit that was measured, "+" for changes on top; empty outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


if __name__ == "__main__":
    main()
