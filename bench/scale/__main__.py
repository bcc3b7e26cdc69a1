"""A fleet on paper: 1 to 1,000 samplers, and a day of 1,000,000 users with autoscaling, prices and limits.

    python -m bench.scale
    python -m bench.scale --check out/fleet/report.json

Costs are assumptions about a graphics card (bench/scale/costs.py) unless options give others; what an edit takes of a
gateway and of the database is read from --fleet. The choice of a sampler is the gateway's own code. The day is
simulated with a part of its users (--share), on as much smaller a fleet. Writes out/scale/report.json and scale.png.

--check only simulates the real run of a report of `python -m bench.fleet`, with the costs that were measured there, and
compares the mean of some simulated runs: exit status 1 if edits a second, mean or median differ by more than 15 %.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from bench.fleet.report import Report
from bench.program import say
from bench.scale import plots
from bench.scale.capacity import Ceilings
from bench.scale.check import JUDGED, WITHIN, compared
from bench.scale.costs import ASSUMED, Costs, assumed
from bench.scale.curves import Prices, day, limits, per_1000_edits, steady
from bench.scale.demand import Demand
from bench.scale.policies import PolicyName

SIZES = (1, 4, 10, 40, 100, 400, 1000)
ENGINES, KEEPS = (1, 2, 4), (0, 4, 8, 16)
MEMORY_SAMPLERS, MEMORY_LOAD = 40, 0.4
STARTS_S = (90.0, 300.0)
EDITS_EACH = (1, 2, 4, 8, 16, 32)
USERS = (1e4, 1e5, 1e6, 1e7)
COMMITS, NOTIFYING = 3100.0, 200.0  # a second, of a disk with other work: python -m bench.scale.commits
OF_ONE_MACHINE = ("serving_cpu_s", "beside_cpu_s", "computes", "crowding", "edits_s")
OPTIONS = [field.name for field in fields(Costs) if field.name not in OF_ONE_MACHINE]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="REPORT", help="a report of bench.fleet to compare with")
    parser.add_argument("--fleet", type=Path, metavar="REPORT", help="a report of bench.fleet, for costs of gateways")
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{getattr(ASSUMED, name):g} by default")
    parser.add_argument("--users", type=float, default=1e6, help="of a day, each with one visit")
    parser.add_argument("--edits", type=int, default=8, help="of a visit")
    parser.add_argument("--looks-s", type=float, default=8.0, help="mean seconds between two edits of a visit")
    parser.add_argument("--peak", type=float, default=4.0, help="the highest rate over the mean of the day")
    parser.add_argument("--load", type=float, default=0.2, help="seconds of edits for each engine and second")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="samplers of the largest fleet")
    parser.add_argument("--engines", type=int, default=1, help="of a sampler")
    parser.add_argument("--keeps", type=int, default=8, help="tunings whose decoded weights a sampler keeps")
    parser.add_argument("--share", type=float, default=0.02, help="of the day's users")
    parser.add_argument("--sampler-price", type=float, default=1.0, help="of an hour")
    parser.add_argument("--tuner-price", type=float, default=1.0, help="of an hour")
    parser.add_argument("--commits", type=float, default=COMMITS, help="a second: python -m bench.scale.commits")
    parser.add_argument("--notifying", type=float, default=NOTIFYING, help="a second, with a notification in each")
    parser.add_argument("--quick", action="store_true", help="small fleets, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("out/scale"))
    options = parser.parse_args(arguments)
    try:
        if options.check is not None:
            return check(Report.read(options.check))
        fleet = Report.read(options.fleet) if options.fleet is not None else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    costs = replace(assumed(fleet), **given)
    report = curves(costs, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    plots.draw(report, options.out / "scale.png")
    show(report)
    return 0


def check(report: Report) -> int:
    """Compare the simulation with a real run; the exit status."""
    wrong = False
    print("| load | figure | real | simulated | difference |\n|---|---|---|---|---|")
    for one in compared(report):
        wrong |= one.is_wrong
        mark = " (too far)" if one.is_wrong else "" if one.figure in JUDGED else " (not judged)"
        print(f"| {one.load} | {one.figure} | {one.real:.3f} | {one.simulated:.3f} | {one.difference:+.0%}{mark} |")
    print(f"{'not ' if wrong else ''}within {WITHIN:.0%}")
    return int(wrong)


def curves(costs: Costs, options: argparse.Namespace) -> dict[str, object]:
    """Everything that the picture shows."""
    quick = options.quick
    demand = Demand(options.users, options.edits, options.looks_s, options.peak)
    memory = {"engines": options.engines, "keeps": options.keeps}
    by_number = []
    for samplers in SIZES[:3] if quick else [size for size in SIZES if size <= options.most]:
        for policy in PolicyName:
            began = time.monotonic()
            edits = 300 if quick else min(2000 + 20 * samplers, 6000)
            point = steady(costs, demand, samplers, policy, options.load, edits=edits, **memory)
            by_number.append(asdict(point))
            say(f"{samplers} samplers, {policy}: p95 {point.p95_s:.2f} s ({time.monotonic() - began:.1f} s)")
    kept = [
        asdict(
            steady(
                costs, demand, 4 if quick else MEMORY_SAMPLERS, PolicyName.GATEWAY, MEMORY_LOAD,
                engines=engines, keeps=keeps, edits=300 if quick else 2000,
            )
        )
        for engines in (ENGINES[:1] if quick else ENGINES)
        for keeps in (KEEPS[:2] if quick else KEEPS)
    ]  # fmt: skip
    days = []
    for start_s in STARTS_S[:1] if quick else STARTS_S:
        began = time.monotonic()
        part = replace(demand, visits_per_day=options.users * (0.0005 if quick else options.share))
        days.append(day(costs, part, start_s=start_s, **memory))
        say(f"a day, samplers start in {start_s:g} s ({time.monotonic() - began:.1f} s)")
    prices = Prices(options.sampler_price, options.tuner_price)
    ceilings = Ceilings(options.commits, options.notifying)
    return {
        "costs": asdict(costs),
        "demand": asdict(demand),
        "share": options.share,
        "by_number": by_number,
        "memory": kept,
        "days": [asdict(one) for one in days],
        "cost": {str(number): per_1000_edits(days[0], prices, number) for number in EDITS_EACH},
        "ceilings": asdict(ceilings),
        "limits": limits(demand, costs, ceilings, (*USERS, options.users)),
    }


def show(report: dict[str, object]) -> None:
    """The figures of the page."""
    for name in ("by_number", "memory"):
        for one in report[name]:  # type: ignore[attr-defined]
            shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in one.items()}
            print(f"{name:10} {json.dumps(shown)}")
    for one in report["days"]:  # type: ignore[attr-defined]
        shown = {key: round(value, 3) for key, value in one.items() if isinstance(value, (int, float))}
        print(f"{'day':10} {json.dumps(shown)}")
    for name in ("cost", "limits"):
        for key, value in report[name].items():  # type: ignore[attr-defined]
            print(f"{name:10} {key:>9} {json.dumps(value)}")


if __name__ == "__main__":
    sys.exit(main())
