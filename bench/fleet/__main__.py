"""A fleet on this machine against one sampler: how often weights are warm, how long edits take, how many are lost.

    python -m bench.fleet
    python -m bench.fleet --model tiny --quick

Runs PostgreSQL, a store, two gateways, two tuners and four samplers as processes on loopback, one thread each. Users
of three tenants edit through both gateways: first with pauses (`visits`), then without (`rush`). Then the same load
goes to the same gateways over one sampler. Every picture must be the same there. Exit status 1: an edit was lost, a
picture differs, a service logged a mistake, or less than 90 % of the edits of `visits` found their weights warm.

What is gained is bounded by the cores: on two of them four samplers of one thread each have twice what one has.
Writes out/fleet/report.json, which `python -m bench.scale --check` compares with the simulation. Takes about four
minutes on two idle cores, the export of the base model included.
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

from bench.fleet.load import Load, rush, visits
from bench.fleet.report import Costs, Outcome, Phase, Report
from bench.fleet.services import DATABASE, GATEWAY, SAMPLER, Fleet, Size
from bench.fleet.users import Lost, Made, Users
from bench.inputs import MODEL, PICTURE
from bench.program import say
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

SIZE = Size(gateways=2, tuners=2, samplers=4)
THREADS = 1
STEPS, UPDATES = 20, 16
VISITS, EDITS_OF_A_VISIT, RUSHED_EDITS = 4, 6, 15
ALONE = 8  # edits that are measured one at a time
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
    number, quick = options.tunings, options.quick
    alone = 2 if quick else ALONE
    loads = {
        "visits": visits(number, 1 if quick else VISITS, 2 if quick else EDITS_OF_A_VISIT, options.seed),
        "rush": rush(number, 2 * number, 2 if quick else RUSHED_EDITS),
    }
    async with Users(fleet.addresses, STEPS) as users:
        say(f"{number} tunings")
        tuned_s = await users.tune(number, PICTURE.read_bytes(), UPDATES if not quick else 2)
        tuning_s = tuned_s * SIZE.tuners / number
        say("edits one at a time")
        idle = await asyncio.to_thread(commits_per_s, fleet)
        warm = await one_at_a_time(users, [0])
        sampling = fleet.cpu_s()[SAMPLER]
        warm += await one_at_a_time(users, [0] * alone)
        sampling = (fleet.cpu_s()[SAMPLER] - sampling) / alone
        on_fleet = {"visits": await lived(users, "visits", loads["visits"])}
        before, cpu, own = await asyncio.to_thread(fleet.commits), fleet.cpu_s(), time.process_time()
        began, edits = time.monotonic(), loads["rush"].edits
        on_fleet["rush"] = await lived(users, "rush", loads["rush"])
        after, passed_s = await asyncio.to_thread(fleet.commits), time.monotonic() - began
        spent = {kind: seconds - cpu[kind] for kind, seconds in fleet.cpu_s().items()}
        own = time.process_time() - own
    say("gateways over one sampler")
    await asyncio.to_thread(fleet.use_samplers, 1)
    async with Users(fleet.addresses, STEPS) as again:
        again.tunings = users.tunings
        cold = await one_at_a_time(again, [index % number for index in range(alone + number)])
        on_one = {name: await lived(again, name, load) for name, load in loads.items()}
    taken = [edit for edit in warm[1:] if edit.warm] or warm
    kept = [edit.refit_s for edit in cold[number:] if not edit.warm] or [0.0]
    first = [edit.refit_s for edit in (*warm[:1], *cold[:number]) if not edit.warm] or kept
    costs = Costs(
        edit_s=statistics.median(edit.seconds for edit in taken),
        sampling_s=statistics.median(edit.sampling_s for edit in taken),
        refit_s=max(first),
        kept_refit_s=statistics.median(kept),
        tuning_s=tuning_s,
        sampling_cpu_s=sampling,
        gateway_cpu_s=spent[GATEWAY] / edits,
        database_cpu_s=spent[DATABASE] / edits,
        client_cpu_s=own / edits,
        commits=max(0.0, after - before - idle * passed_s) / edits,
        idle_commits_per_s=idle,
    )
    phases = {name: Phase(load, Outcome.of(*on_fleet[name]), Outcome.of(*on_one[name])) for name, load in loads.items()}
    differing = sum(differ(on_fleet[name][0], on_one[name][0]) for name in loads)
    return Report(
        command=command,
        model=options.model,
        cores=os.cpu_count() or 1,
        threads=THREADS,
        gateways=SIZE.gateways,
        samplers=SIZE.samplers,
        tunings=number,
        steps=STEPS,
        costs=costs,
        phases=phases,
        differing=differing,
    )


def commits_per_s(fleet: Fleet) -> float:
    """Of gateways that nobody asks."""
    before, began = fleet.commits(), time.monotonic()
    time.sleep(IDLE_S)
    return (fleet.commits() - before) / (time.monotonic() - began)


async def one_at_a_time(users: Users, tunings: Sequence[int]) -> list[Made]:
    """Edits of these tunings, each after the one before. Raises RuntimeError for one that is lost."""
    made = []
    for index, tuning in enumerate(tunings):
        edit = await users.edit(tuning, seed=index, gateway=index)
        if isinstance(edit, Lost):
            raise RuntimeError(f"an edit was lost: {edit.error}")
        made.append(edit)
    return made


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
