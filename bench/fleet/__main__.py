"""A fleet on this machine against one sampler: how often weights are warm, how long edits take, how many are lost.

    python -m bench.fleet
    python -m bench.fleet --model tiny --quick

Runs PostgreSQL, a store, two gateways, two tuners and four samplers as processes on loopback, one thread each. Users
of three tenants edit through both gateways: first with pauses (`visits`), then without (`rush`). Then the same load
goes to the same gateways over one sampler. Every picture must be the same there. Exit status 1: an edit was lost, a
picture differs, a service logged a mistake, or less than 90 % of the edits of `visits` found their weights warm.

What is gained is bounded by the cores: on two of them four samplers of one thread each have twice what one has.
Writes out/fleet/report.json, which `python -m bench.scale --check` compares with the simulation. Its costs are of edits
one at a time, before, between and after the loads. Takes about five minutes on two idle cores, the export of the base
model included.
"""

import argparse
import asyncio
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.fleet.alone import CLIENT, Alone, cpu_s
from bench.fleet.load import Load, rush, visits
from bench.fleet.report import Costs, Outcome, Phase, Report
from bench.fleet.services import DATABASE, Fleet, Size
from bench.fleet.users import Lost, Made, Users
from bench.inputs import MODEL, PICTURE
from bench.program import say
from bench.started import GATEWAY, SAMPLER
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

SIZE = Size(gateways=2, tuners=2, samplers=4)
THREADS = 1
STEPS, UPDATES = 20, 16
VISITS, EDITS_OF_A_VISIT, RUSHED_EDITS = 4, 6, 15
ALONE = 8  # edits that are measured one at a time, each time
IDLE_S = 5.0
WARM_GOAL = 0.9

Ended = Sequence[Made | Lost]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("stickerbook", "tiny"), default="stickerbook")
    parser.add_argument("--tunings", type=int, default=SIZE.samplers, help="one an engine by default")
    parser.add_argument("--seed", type=int, default=7, help="of the users' pauses")
    parser.add_argument("--quick", action="store_true", help="few edits, to see that it runs")
    parser.add_argument("--home", type=Path, help="a folder for graphs and engine, kept; a temporary one by default")
    parser.add_argument("--out", type=Path, default=Path("out/fleet/report.json"))
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory(prefix="unitune-fleet-") as scratch:
        model = MODEL if options.model == "stickerbook" else tiny(Path(scratch))
        home = Home((options.home or Path(scratch) / "home").absolute())
        engine = LocalServices(str(model), home=home, log=say).build()
        logs, settings = options.out.parent / "logs", {"UNITUNE_THREADS": str(THREADS)}
        with Fleet(SIZE, model, engine, Path(scratch) / "fleet", logs, settings) as fleet:
            report = asyncio.run(measured(fleet, options, shlex.join(["python", "-m", "bench.fleet", *given])))
            mistakes = fleet.mistakes()
    report.write(options.out)
    print(report.table())
    warm = report.phases["visits"].fleet.warm_share
    is_good = not (report.lost or report.differing or mistakes or warm < WARM_GOAL)
    rushed = report.phases["rush"]
    print(
        f"{report.lost} lost, {report.differing} pictures differ, {len(mistakes)} mistakes logged, {warm:.0%} warm "
        f"(goal {WARM_GOAL:.0%}), {rushed.fleet.edits_per_s / rushed.one_sampler.edits_per_s:.2f} times the edits/s of "
        f"one sampler on {report.cores} cores; {options.out}"
    )
    for line in mistakes[:10]:
        print(line)
    return 0 if is_good else 1


def tiny(folder: Path) -> Path:
    """The tests' tiny base model."""
    from tests.tiny_model import save_tiny_model  # torch is slow to import

    return save_tiny_model(folder / "tiny")


async def measured(fleet: Fleet, options: argparse.Namespace, command: str) -> Report:
    """Costs, then both loads on the fleet and on one sampler."""
    number, quick, cores = options.tunings, options.quick, os.cpu_count() or 1
    alone, at_once = 2 if quick else ALONE, range(min(cores, number))
    on_fleet: dict[str, tuple[list[Made | Lost], float]] = {}
    on_one: dict[str, tuple[list[Made | Lost], float]] = {}
    commits: dict[str, float] = {}  # of an edit in each load
    loads = {
        "visits": visits(number, 1 if quick else VISITS, 2 if quick else EDITS_OF_A_VISIT, options.seed),
        "rush": rush(number, 2 * number, 2 if quick else RUSHED_EDITS),
    }
    async with Users(fleet.addresses, STEPS) as users:
        say(f"{number} tunings")
        tuned_s = await users.tune(number, PICTURE.read_bytes(), UPDATES if not quick else 2)
        tuning_s = tuned_s * SIZE.tuners / number
        idle_commits, idle_cpu = await asyncio.to_thread(idle, fleet)
        begun, warm = Alone(fleet, idle_cpu), Alone(fleet, idle_cpu)
        await begun.edit(users, [0])
        for name, load in loads.items():
            await warm.edit(users, [0] * alone)
            await warm.crowd(users, at_once, alone)
            before, began = await asyncio.to_thread(fleet.commits), time.monotonic()
            on_fleet[name] = await lived(users, name, load)
            after, passed_s = await asyncio.to_thread(fleet.commits), time.monotonic() - began
            commits[name] = max(0.0, after - before - idle_commits * passed_s) / load.edits
        await warm.edit(users, [0] * alone)
        await warm.crowd(users, at_once, alone)
    say("gateways over one sampler")
    await asyncio.to_thread(fleet.use_samplers, 1)
    async with Users(fleet.addresses, STEPS) as again:
        again.tunings = users.tunings
        cold, in_turn = Alone(fleet, idle_cpu), [index % number for index in range(alone)]
        await cold.edit(again, range(number))
        for name, load in loads.items():
            await cold.edit(again, in_turn)
            on_one[name] = await lived(again, name, load)
        await cold.edit(again, in_turn)
    kept = [edit.refit_s for edit in cold.made[number:] if not edit.warm] or [0.0]
    first = [edit.refit_s for edit in (*begun.made, *cold.made[:number]) if not edit.warm] or kept
    single = [*warm.made, *cold.made]
    costs = Costs(
        edit_s=statistics.fmean(edit.seconds - edit.refit_s for edit in single),
        sampling_s=statistics.fmean(edit.sampling_s for edit in single),
        samplings_s=tuple(edit.sampling_s for edit in single),
        computes=min(1.0, warm.cpu_s(SAMPLER) / statistics.fmean(edit.sampling_s for edit in warm.made)),
        crowding=warm.crowding(),
        refit_s=max(first),
        kept_refit_s=statistics.fmean(kept),
        tuning_s=tuning_s,
        gateway_cpu_s=warm.cpu_s(GATEWAY),
        database_cpu_s=warm.cpu_s(DATABASE),
        client_cpu_s=warm.cpu_s(CLIENT),
        commits=commits["rush"],  # without pauses, in which gateways make commits by themselves
        idle_commits_per_s=idle_commits,
    )
    phases = {name: Phase(load, Outcome.of(*on_fleet[name]), Outcome.of(*on_one[name])) for name, load in loads.items()}
    differing = sum(differ(on_fleet[name][0], on_one[name][0]) for name in loads)
    return Report(
        command=command,
        model=options.model,
        cores=cores,
        threads=THREADS,
        gateways=SIZE.gateways,
        samplers=SIZE.samplers,
        tunings=number,
        steps=STEPS,
        costs=costs,
        phases=phases,
        differing=differing,
    )


def idle(fleet: Fleet) -> tuple[float, dict[str, float]]:
    """Commits, and CPU seconds of each kind of process, a second while nobody asks."""
    commits, before, began = fleet.commits(), cpu_s(fleet), time.monotonic()
    time.sleep(IDLE_S)
    after, passed_s = cpu_s(fleet), time.monotonic() - began
    rates = {kind: (seconds - before[kind]) / passed_s for kind, seconds in after.items()}
    return (fleet.commits() - commits) / (time.monotonic() - began), rates


async def lived(users: Users, name: str, load: Load) -> tuple[list[Made | Lost], float]:
    """What became of a load, with the reason of every loss on standard error."""
    say(f"{name}: {load.edits} edits of {len(load.users)} users")
    ended, wall_s = await users.live(load)
    for edit in ended:
        if isinstance(edit, Lost):
            say(f"lost: {edit.error}")
    return ended, wall_s


def differ(ours: Ended, theirs: Ended) -> int:
    """How many pictures of the same edits are not the same."""
    pairs = zip(ours, theirs, strict=True)
    return sum(
        one.picture != other.picture for one, other in pairs if isinstance(one, Made) and isinstance(other, Made)
    )


if __name__ == "__main__":
    sys.exit(main())
