"""What must hold of a fleet when all faults are over: of the database, the store, and what clients were told."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import closing
from typing import Any

from bench.chaos.clients import LIMITED, POLITE_EDIT
from bench.chaos.fleet import Fleet
from bench.measure import percentile
from bench.soak.clients import CANCELLED, EXPECTED, PROMPTS
from bench.soak.end import LOOKS_EVERY_S, check_tunings, misplaced, settle
from bench.soak.ledger import DONE, Ledger, Outcome
from bench.started import GATEWAY
from gateway.state import MAX_CRASHES
from unitune.errors import from_status
from unitune.v1.tuning_pb2 import Tuning, TuningEvent
from unitune_client import AsyncClient

CRASHED = "WORKER_CRASHED"
EDITS = 2  # that READY tunings of each tenant are asked for
FILES_S = 60.0  # until the files of attempts that were lost are gone
# A gateway that begins deletes at once what nobody owns for so long: the files of a tuner that was killed.
UNOWNED_S = "1"
# How an edit may end beside DONE: its caller wanted it so, or it was refused for a limit.
MAY_END = {DONE, CANCELLED, EXPECTED, LIMITED, "left", "ended without an event", "DEADLINE_UNREACHABLE"}
OF_DEADLINES = "edit with a deadline"


async def check_end(
    fleet: Fleet, tenants: Iterable[str], poisons: Set[str], ledger: Ledger, most_polite_s: float
) -> dict[str, int]:
    """Look at everything; what is wrong is in the ledger. The number of tunings by their last state."""
    clients = {tenant: AsyncClient(fleet.target, tenant=tenant) for tenant in tenants}
    ended = Counter[str]()
    try:
        await settle(clients, ledger)
        with closing(fleet.connect()) as database:
            check_tunings(database, ledger)
        rows = fleet.rows("SELECT number, tenant, name, state, attempt, blob FROM tunings")
        check_ends(rows, events_of(fleet), poisons, ledger)
        check_usage(dict(fleet.rows("SELECT tenant, sum(tunings) FROM usage GROUP BY tenant")), rows, ledger)
        ready: dict[str, set[str]] = {tenant: set() for tenant in clients}
        for _, tenant, name, state, *_ in rows:
            ended[Tuning.State.Name(state).removeprefix("STATE_")] += 1
            if state == Tuning.STATE_READY:
                ready[tenant].add(name)
        check_known(ledger, {name for _, _, name, *_ in rows})
        await check_files(fleet, ready, ledger)
        for tenant, names in ready.items():
            for name in sorted(names)[:EDITS]:
                tuning = await clients[tenant].get_tuning(name)
                await clients[tenant].edit_to_end(tuning, PROMPTS[0], num_inference_steps=2)
    finally:
        for client in clients.values():
            await client.close()
    check_edits(ledger.outcomes, ledger, most_polite_s)
    return dict(ended)


def events_of(fleet: Fleet) -> dict[int, list[str]]:
    """The kinds of all events of each tuning's row, in order."""
    found: dict[int, list[str]] = {}
    for number, blob in fleet.rows("SELECT tuning, blob FROM events ORDER BY tuning, sequence"):
        found.setdefault(number, []).append(TuningEvent.FromString(blob).WhichOneof("event") or "")
    return found


def check_ends(
    rows: Sequence[tuple[Any, ...]], events: Mapping[int, Sequence[str]], poisons: Set[str], ledger: Ledger
) -> None:
    """What kills its tuners is FAILED after so many attempts, and nothing else is unless it was lost as often. As many
    attempts began as there were, and the weights of a READY one are those of the last."""
    for number, _, name, state, attempt, blob in rows:
        tuning = Tuning.FromString(blob)
        started = events.get(number, ()).count("started")
        if started != attempt:
            ledger.wrong(f"{name} tells of {started} attempts of {attempt}")
        reason = from_status(tuning.error).reason if state == Tuning.STATE_FAILED else ""
        if name in poisons and (reason != CRASHED or attempt < MAX_CRASHES):
            ledger.wrong(
                f"{name} kills its tuners, and is {Tuning.State.Name(state)} {reason} after {attempt} attempts"
            )
        if name not in poisons and reason and (reason != CRASHED or attempt < MAX_CRASHES):
            ledger.wrong(f"{name} is FAILED after {attempt} attempts: {tuning.error.message}")
        if state == Tuning.STATE_READY and not tuning.weights.path.endswith(f"/{attempt}"):
            ledger.wrong(f"{name} is READY by attempt {attempt}, and its weights are {tuning.weights.path}")


def check_usage(counted: Mapping[str, int], rows: Sequence[tuple[Any, ...]], ledger: Ledger) -> None:
    """As many tunings are counted for a tenant as it has, with those that it deleted."""
    names = {name for _, _, name, *_ in rows}
    made = Counter(tenant for _, tenant, *_ in rows)
    made.update(known.tenant for known in ledger.tunings.values() if known.name not in names and not known.wanted)
    for tenant in made | counted.keys():
        if made[tenant] != counted.get(tenant, 0):
            ledger.wrong(f"{made[tenant]} tunings of {tenant} were made, and {counted.get(tenant, 0)} are counted")


def check_known(ledger: Ledger, names: Set[str]) -> None:
    """Whatever a client was told of and did not delete is there, ended once and without a gap in what it saw."""
    for known in ledger.tunings.values():
        if known.wanted and known.name not in names:
            ledger.wrong(f"{known.name} is gone")
        if len(known.ends) > 1:
            ledger.wrong(f"{known.name} ended {len(known.ends)} times for its watcher: {known.ends}")
        if len(set(known.sequences)) != len(known.sequences):
            ledger.wrong(f"{known.name}: its watcher saw an event twice: {known.sequences}")


async def check_files(fleet: Fleet, ready: Mapping[str, Set[str]], ledger: Ledger) -> None:
    """The store has the weights of every READY tuning once, and nothing of other attempts, at the latest when a gateway
    has swept it."""

    async def wrongs() -> list[str]:
        objects = await asyncio.to_thread(fleet.objects)
        return [wrong for tenant, names in ready.items() for wrong in misplaced(objects, tenant, names)]

    gives_up_at = time.monotonic() + FILES_S / 4
    while await wrongs() and time.monotonic() < gives_up_at:
        await asyncio.sleep(LOOKS_EVERY_S)
    if await wrongs():
        await asyncio.to_thread(sweep, fleet)
        gives_up_at = time.monotonic() + FILES_S
        while await wrongs() and time.monotonic() < gives_up_at:
            await asyncio.sleep(LOOKS_EVERY_S)
    for wrong in await wrongs():
        ledger.wrong(wrong)


def sweep(fleet: Fleet) -> None:
    """Have a gateway begin that deletes what nobody owns."""
    name = fleet.services.names(GATEWAY)[0]
    fleet.harmed[name] += 1
    process = fleet.services.process(name)
    process.terminate()
    process.wait()
    fleet.services.restart(name, UNITUNE_KEEP_UNUSED_S=UNOWNED_S)
    fleet.harmed[name] -= 1


def check_edits(outcomes: Sequence[Outcome], ledger: Ledger, most_polite_s: float) -> None:
    """No edit of the SDK was lost, and those of a polite tenant ended soon."""
    for outcome in outcomes:
        is_edit = "edit" in outcome.action and outcome.action != OF_DEADLINES
        if is_edit and outcome.ended not in MAY_END:
            ledger.wrong(f"{outcome.client}: {outcome.action} was lost after {outcome.seconds:.1f} s: {outcome.ended}")
    polite = polite_seconds(outcomes)
    if not polite or percentile(polite, 0.95) > most_polite_s:
        ledger.wrong(f"p95 of the polite tenant is more than {most_polite_s:g} s: {sorted(polite)[-5:]}")


def polite_seconds(outcomes: Sequence[Outcome]) -> list[float]:
    """Of its edits that were done."""
    return [outcome.seconds for outcome in outcomes if (outcome.action, outcome.ended) == (POLITE_EDIT, DONE)]
