"""Run a fleet under tenants and faults, and look whether everything holds.

    make chaos SECONDS=900
    python -m bench.chaos --seconds 900 --seed 7

A database, a bucket, two gateways, two tuners and a sampler run as processes, joined by links. One tenant edits
politely, one tunes more than it may, one has tunings that kill their tuners, and two clients of a fourth do all that
clients do. Meanwhile services are killed, stopped and frozen, the database is killed, links are cut, delayed, held and
refused, leases expire, and nobody hears notifications. Then everything must be as it must: every tuning that was
accepted was made once and ended once, as its watchers were told, and its events have no gap; its weights are there
once, whole, and nothing of other attempts; what kills its tuners is FAILED after three attempts, and nothing else
killed one; nobody ever had more tunings, or more that ran, than it may, by what the database wrote down of every
change; what is counted is what was made; the same request gave the same picture; no edit or comparison was lost or goes
on, and those of the polite tenant ended soon. Prints the faults by kind and what is wrong. The exit status is 0 if
nothing was.

The seed, which is printed, draws all actions and faults. In which order they meet is the machine's affair.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random, SystemRandom

from bench.chaos import history
from bench.chaos.clients import GREEDY, POISONER, POLITE, Greedy, Poisoner, Polite, Tenant
from bench.chaos.end import Limits, check_end, polite_seconds
from bench.chaos.faults import Injector, planned
from bench.chaos.fleet import Fleet
from bench.fleet.services import Size
from bench.fuzz.broken_pictures import broken_pictures
from bench.inputs import MODEL
from bench.measure import percentile
from bench.program import say
from bench.soak.clients import Client
from bench.soak.end import check_logs
from bench.soak.ledger import Ledger
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

LEASE_S = 6.0
MOST_TUNINGS, MOST_RUNNING = 6, 1  # of a tenant at a time
SETTINGS = {
    "UNITUNE_THREADS": "1",
    "UNITUNE_LEASE_S": f"{LEASE_S:g}",
    "UNITUNE_CHECKPOINT_S": "3",
    "UNITUNE_TENANT_TUNINGS": f"{MOST_TUNINGS}",
    "UNITUNE_TENANT_RUNNING_TUNINGS": f"{MOST_RUNNING}",
}
BUSY, BUSY_CLIENTS = "busy", 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31), help="drawn by default")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--tuners", type=int, default=2)
    parser.add_argument("--samplers", type=int, default=1)
    parser.add_argument("--fault-every", type=float, default=4.0, metavar="S", help="seconds from fault to fault")
    parser.add_argument(
        "--polite-p95", type=float, default=60.0, metavar="S", help="which a polite tenant's p95 may be"
    )
    parser.add_argument("--base-model", type=Path, default=MODEL)
    parser.add_argument("--home", type=Path, help="a folder for graphs and engine, kept; a temporary one by default")
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = Home((options.home or Path(scratch) / "home").absolute())
        engine = LocalServices(str(options.base_model), home=home, log=say).build()
        logs = (options.out / "logs").absolute()
        size = Size(options.gateways, options.tuners, options.samplers)
        fleet = Fleet(options.base_model, engine, Path(scratch), logs, size, SETTINGS)
        ledger, tunings, crashes = asyncio.run(chaos(fleet, options))
        error_lines = check_logs(fleet.services, ledger)
    report = told(options, ledger, tunings, crashes, error_lines)
    (options.out / "report.txt").write_text(report + "\n", encoding="utf-8")
    print(report)
    return 1 if ledger.wrongs else 0


async def chaos(fleet: Fleet, options: argparse.Namespace) -> tuple[Ledger, dict[str, int], int]:
    """Tenants and faults until the time is over, then the look at the end. What happened, tunings by state, and how
    often a tuning killed its tuner."""
    broken = [data for _, data in broken_pictures(Random(options.seed), bombs=False)]
    async with fleet:
        with closing(fleet.connect()) as database:
            history.note(database)
        ledger, began = Ledger(), time.monotonic()
        poisoner = Poisoner(POISONER, fleet.target, Random(f"{options.seed} poison"), ledger)
        tenants: list[Tenant] = [
            Polite(POLITE, fleet.target, Random(f"{options.seed} polite"), ledger),
            Greedy(GREEDY, fleet.target, Random(f"{options.seed} greedy"), ledger),
            poisoner,
        ]
        clients = [
            Client(f"client{number}", BUSY, fleet.target, Random(f"{options.seed} {number}"), ledger, broken)
            for number in range(BUSY_CLIENTS)
        ]
        injector, stopping = Injector(fleet, ledger, say), asyncio.Event()
        keeping = asyncio.create_task(injector.keep_running())
        faults = planned(options.seconds, Random(options.seed), options.fault_every, fleet.services.names)
        try:
            async with asyncio.TaskGroup() as group:
                for tenant in tenants:
                    group.create_task(tenant.live(stopping))
                for client in clients:
                    group.create_task(client.live(stopping))
                await injector.run(faults)
                await asyncio.sleep(max(0.0, began + options.seconds - time.monotonic()))
                stopping.set()
                say("no more faults; what was begun may end")
            names = (POLITE, GREEDY, POISONER, BUSY)
            limits = Limits(MOST_RUNNING, MOST_TUNINGS, options.polite_p95)
            tunings = await check_end(fleet, names, poisoner.poisons, ledger, limits, lambda: injector.crashes)
            return ledger, tunings, injector.crashes
        finally:
            for tenant in tenants:
                await tenant.close()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


def told(
    options: argparse.Namespace, ledger: Ledger, tunings: dict[str, int], crashes: int, error_lines: dict[str, int]
) -> str:
    """The report."""
    command = ["python", "-m", "bench.chaos"]
    for name in ("seconds", "seed", "gateways", "tuners", "samplers", "fault_every"):
        command += [f"--{name.replace('_', '-')}", f"{getattr(options, name):.12g}"]
    lines = [shlex.join(command), f"It ran for {ledger.now_s:.0f} s.", "", "faults, times, seconds:"]
    seconds = Counter[str]()
    for fault in ledger.faults:
        seconds[fault.what] += round(fault.until_s - fault.at_s)
    for what, number in sorted(Counter(fault.what for fault in ledger.faults).items()):
        lines.append(f"  {what:40} {number:4} {seconds[what]:5}")
    lines += [
        f"  {'tuners killed by a tuning':40} {crashes:4}",
        f"left out: {ledger.left_out}",
        "",
        "what clients did:",
    ]
    for action, ends in sorted(ledger.by_action().items()):
        lines.append(f"  {action:22} {', '.join(f'{number} {end}' for end, number in ends.most_common())}")
    lines += ["", f"tunings: {', '.join(f'{number} {state}' for state, number in sorted(tunings.items()))}"]
    lines.append(f"lines of errors: {', '.join(f'{number} {name}' for name, number in error_lines.items())}")
    if polite := polite_seconds(ledger.outcomes):
        p50, p95 = percentile(polite, 0.5), percentile(polite, 0.95)
        lines.append(
            f"{len(polite)} edits of the polite tenant: p50 {p50:.2f} s, p95 {p95:.2f} s, {max(polite):.2f} s at most"
        )
    lines += [f"WRONG: {wrong}" for wrong in ledger.wrongs]
    return "\n".join([*lines, f"{len(ledger.faults)} faults, {len(ledger.wrongs)} violations"])


if __name__ == "__main__":
    sys.exit(main())
