"""Run real services under clients and faults, and look whether everything holds.

    make soak SECONDS=900
    python -m bench.soak --seconds 900 --seed 7

Eight clients of three tenants tune, edit, watch, cancel, leave and err at random. Meanwhile services are stopped,
killed and frozen, connections are cut, and the disk of state and store is filled. In the last 40 % of the time only
connections are cut and services frozen for a moment, so that processes live long enough to see whether they grow. Then
everything must be as it must: every tuning ended once, its weights are there once, no edit was lost without an error
that may be tried again, nothing was INTERNAL, no event is missing or came twice, no process grew, and nothing is left
when all is deleted. Writes out/soak/report.md with plots. The exit status is 0 if nothing was wrong.

The seed, which is printed, draws all actions and faults. In which order they meet is the machine's affair.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random, SystemRandom

from bench.fuzz.broken_pictures import broken_pictures
from bench.inputs import MODEL
from bench.program import say
from bench.soak import report
from bench.soak.clients import Client
from bench.soak.disk import mounted
from bench.soak.end import check_end, check_logs
from bench.soak.faults import Fault, Injector, planned
from bench.soak.ledger import Ledger
from bench.soak.proxy import Proxy
from bench.soak.resources import Life, Sampler, trends
from bench.soak.services import Services
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

# Little decoded weights in memory, so that what may be kept is kept soon, and a process that grows then leaks.
SETTINGS = {
    "UNITUNE_THREADS": "1",
    "UNITUNE_LEASE_S": "8",
    "UNITUNE_CHECKPOINT_S": "3",
    "UNITUNE_KEPT_WEIGHTS_GB": "0.1",
}
# In MiB: of the disk at the begin, and more for each second, so that only a fault fills it, and no data.
DISK, DISK_OF_A_SECOND = 512, 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31), help="drawn by default")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tenants", type=int, default=3)
    parser.add_argument("--fault-every", type=float, default=10.0, metavar="S", help="seconds from fault to fault")
    parser.add_argument("--base-model", type=Path, default=MODEL)
    parser.add_argument("--home", type=Path, help="a folder for graphs and engine, kept; a temporary one by default")
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        home = Home((options.home or scratch / "home").absolute())
        engine = LocalServices(str(options.base_model), home=home, log=say).build()
        notes, disk = [], None
        try:
            size = round(DISK + options.seconds * DISK_OF_A_SECOND)
            disk = stack.enter_context(mounted(scratch / "data", f"{size}m"))
        except OSError as error:
            notes.append(f"The disk was never full: {error}.")
        logs = options.out / "logs"
        with Services(options.base_model, engine, scratch / "data", logs, SETTINGS) as services:
            faults = planned(options.seconds, Random(options.seed), options.fault_every, has_disk=disk is not None)
            broken = [data for _, data in broken_pictures(Random(options.seed), bombs=False)]
            ledger = Ledger()
            lives, tunings = asyncio.run(soak(services, options, faults, disk, broken, ledger))
        error_lines = check_logs(services, ledger)
    found = trends(lives)
    for trend in found:
        if not trend.is_flat:
            ledger.wrong(f"the {trend.life.service}'s {trend.kind}: {trend.mean:.1f}, and rose by {trend.rise:.1f}")
    command = shlex.join(
        ["python", "-m", "bench.soak", "--seconds", f"{options.seconds:g}", "--seed", str(options.seed)]
    )
    page = report.write(
        options.out, report.Run(command, ledger.now_s, tunings, error_lines, notes), ledger, lives, found
    )
    for wrong in ledger.wrongs:
        print(f"WRONG: {wrong}")
    print(f"{len(ledger.outcomes)} actions, {len(ledger.faults)} faults, {len(ledger.wrongs)} violations; {page}")
    return 1 if ledger.wrongs else 0


async def soak(
    services: Services,
    options: argparse.Namespace,
    faults: Sequence[Fault],
    disk: Path | None,
    broken: Sequence[bytes],
    ledger: Ledger,
) -> tuple[list[Life], dict[str, int]]:
    """Clients and faults until the time is over, then the look at the end; the processes, and tunings by state."""
    tenants = [f"tenant{number}" for number in range(options.tenants)]
    proxy, sampler, stopping = Proxy(services.address), Sampler(services, ledger), asyncio.Event()
    await proxy.start()
    clients = [
        Client(
            f"client{number}",
            tenants[number % len(tenants)],
            proxy.address,
            Random(f"{options.seed} {number}"),
            ledger,
            broken,
        )
        for number in range(options.clients)
    ]
    began = time.monotonic()
    looking = asyncio.create_task(sampler.run())
    try:
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.live(stopping))
            await Injector(services, proxy, disk, ledger, say).run(faults)
            await asyncio.sleep(max(0.0, began + options.seconds - time.monotonic()))
            stopping.set()
            say("no more faults; what was begun may end")
        tunings = await check_end(services, tenants, ledger, say)
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        await proxy.stop()
    return sampler.lives, tunings


if __name__ == "__main__":
    sys.exit(main())
