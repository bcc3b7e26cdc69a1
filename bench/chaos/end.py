"""What must hold of a fleet when all faults are over: of the database, the store, and what clients were told."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import closing
from hashlib import sha256
from typing import Any, NamedTuple

from bench.chaos import history
from bench.chaos.clients import GREEDY, LIMITED, POISONER, POLITE, POLITE_EDIT
from bench.chaos.fleet import Fleet
from bench.chaos.history import Step, check_history
from bench.measure import percentile
from bench.soak.clients import CANCELLED, EXPECTED, PROMPTS
from bench.soak.end import LOOKS_EVERY_S, check_tunings, misplaced, settle
from bench.soak.ledger import DONE, Ledger, Outcome
from bench.started import GATEWAY
from gateway.state import MAX_CRASHES
from gateway.state_of_edits import SILENT_S
from unitune.errors import from_status
from unitune.v1.edit_pb2 import Edit
from unitune.v1.tuning_pb2 import Tuning, TuningEvent
from unitune.weights import MANIFEST_FILE, WEIGHTS_FILE, Manifest
from unitune_client import AsyncClient

CRASHED = "WORKER_CRASHED"
EDITS = 2  # that READY tunings of each tenant are asked for
FILES_S = 60.0  # until the files of attempts that were lost are gone
EDITS_S = 60.0  # until edits of clients that have gone have ended
# A gateway that begins deletes at once what nobody owns for so long: the files of a tuner that was killed.
UNOWNED_S = "1"
# How an edit may end beside DONE: its caller wanted it so, or it was refused for a limit.
MAY_END = {DONE, CANCELLED, EXPECTED, LIMITED, "left", "ended without an event", "DEADLINE_UNREACHABLE"}
COMPARISON, OF_DEADLINES = "compare", "edit with a deadline"
NEW_PICTURES = (GREEDY, POISONER)  # tenants each of whose tunings is of a picture of its own
OPEN_EDITS = f"""
SELECT edits.name FROM edits JOIN gateways ON gateways.id = edits.gateway
    WHERE state = {Edit.STATE_RUNNING} AND seen_s > extract(epoch FROM now()) - {SILENT_S}
"""


class Limits(NamedTuple):
    """What must not be exceeded: a tenant's tunings that run, and that are unfinished, and the polite tenant's p95."""

    running: int
    unfinished: int
    polite_s: float


async def check_end(
    fleet: Fleet,
    tenants: Iterable[str],
    poisons: Collection[str],
    ledger: Ledger,
    limits: Limits,
    crashes: Callable[[], int],
) -> dict[str, int]:
    """Look at everything; what is wrong is in the ledger. The number of tunings by their last state. `crashes` tells
    how many tuners have ended as if a tuning had killed them."""
    clients = {tenant: AsyncClient(fleet.target, tenant=tenant) for tenant in tenants}
    ended = Counter[str]()
    try:
        await settle(clients, ledger)
        with closing(fleet.connect()) as database:
            check_tunings(database, ledger)
        rows = fleet.rows("SELECT number, tenant, name, state, attempt, blob FROM tunings")
        check_ends(rows, events_of(fleet), set(poisons), ledger)
        check_crashes(crashes(), rows, poisons, ledger)
        check_made_once(rows, ledger)
        steps = [Step(*row) for row in fleet.rows(history.READ)]
        check_history(steps, ledger, most_running=limits.running, most_unfinished=limits.unfinished)
        if sum(step.attempts for step in steps) < sum(attempt for *_, attempt, _ in rows):
            ledger.wrong("the database has not written down every attempt")
        check_usage(dict(fleet.rows("SELECT tenant, sum(tunings) FROM usage GROUP BY tenant")), rows, ledger)
        check_edit_usage(dict(fleet.rows("SELECT tenant, sum(edits) FROM usage GROUP BY tenant")), ledger)
        ready: dict[str, set[str]] = {tenant: set() for tenant in clients}
        for _, tenant, name, state, *_ in rows:
            ended[Tuning.State.Name(state).removeprefix("STATE_")] += 1
            if state == Tuning.STATE_READY:
                ready[tenant].add(name)
        check_known(ledger, {name: ends_of(state, blob) for _, _, name, state, _, blob in rows})
        await check_files(fleet, ready, ledger)
        for _, _, name, state, _, blob in rows:
            if state == Tuning.STATE_READY:
                await asyncio.to_thread(check_weights, name, Tuning.FromString(blob), fleet.read, ledger)
        await check_open_edits(fleet, ledger)
        for tenant, names in ready.items():
            for name in sorted(names)[:EDITS]:
                tuning = await clients[tenant].get_tuning(name)
                await clients[tenant].edit_to_end(tuning, PROMPTS[0], num_inference_steps=2)
    finally:
        for client in clients.values():
            await client.close()
    check_edits(ledger.outcomes, ledger, limits.polite_s)
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


def check_edit_usage(counted: Mapping[str, int], ledger: Ledger) -> None:
    """An edit that was sent again counts once. What a killed gateway had not written yet is missing."""
    asked = sum(outcome.action == POLITE_EDIT for outcome in ledger.outcomes)
    if counted.get(POLITE, 0) > asked:
        ledger.wrong(f"{asked} edits of {POLITE} were asked for, and {counted[POLITE]} are counted")


def check_crashes(crashes: int, rows: Sequence[tuple[Any, ...]], poisons: Collection[str], ledger: Ledger) -> None:
    """A tuner that ended by SIGKILL, and that nobody harmed, was killed by a tuning that does so."""
    attempts = sum(attempt for _, _, name, _, attempt, _ in rows if name in poisons)
    if crashes > attempts:
        ledger.wrong(f"{crashes} tuners were killed by the {attempts} attempts at tunings that kill them")


def check_made_once(rows: Sequence[tuple[Any, ...]], ledger: Ledger) -> None:
    """A tuning that was asked for once, of a picture of its own, is there once, however often that was sent."""
    keys = Counter(Tuning.FromString(blob).key for _, tenant, *_, blob in rows if tenant in NEW_PICTURES)
    for key, number in keys.items():
        if number > 1:
            ledger.wrong(f"the tuning with the key {key} was made {number} times")


def ends_of(state: Tuning.State, blob: bytes) -> set[str]:
    """What watchers may have noted as the end of a tuning that has ended so."""
    if state == Tuning.STATE_FAILED:
        return {"failed", from_status(Tuning.FromString(blob).error).reason}
    return {Tuning.State.Name(state).removeprefix("STATE_").lower()}


def check_known(ledger: Ledger, ends: Mapping[str, Set[str]]) -> None:
    """Whatever a client was told of and did not delete is there, and has ended once, as it was told, without a gap in
    what it saw. `ends` are the right ones, by name."""
    for known in ledger.tunings.values():
        if known.wanted and known.name not in ends:
            ledger.wrong(f"{known.name} is gone")
        if len(known.ends) > 1:
            ledger.wrong(f"{known.name} ended {len(known.ends)} times for its watcher: {known.ends}")
        if known.name in ends and not set(known.ends) <= ends[known.name]:
            ledger.wrong(f"{known.name}: its watcher was told of {known.ends}, and it is {sorted(ends[known.name])}")
        if known.sequences != list(range(1, len(known.sequences) + 1)):
            ledger.wrong(f"{known.name}: its watcher saw the events {known.sequences}")


def check_weights(name: str, tuning: Tuning, read: Callable[[str], bytes], ledger: Ledger) -> None:
    """The weights of a READY tuning are whole, and those that it tells of."""
    weights = tuning.weights
    manifest = Manifest.from_json(read(f"{weights.path}/{MANIFEST_FILE}"))
    digest = sha256(read(f"{weights.path}/{WEIGHTS_FILE}")).hexdigest()
    if (digest, manifest.digest, manifest.key) != (weights.digest, weights.digest, tuning.key):
        ledger.wrong(f"the weights of {name} are {digest}, their manifest has {manifest.digest}: {weights.digest}")


async def check_open_edits(fleet: Fleet, ledger: Ledger) -> None:
    """When all clients have gone, no gateway that lives has an edit that runs."""
    gives_up_at = time.monotonic() + EDITS_S
    while (left := await asyncio.to_thread(fleet.rows, OPEN_EDITS)) and time.monotonic() < gives_up_at:
        await asyncio.sleep(LOOKS_EVERY_S)
    for (name,) in left:
        ledger.wrong(f"{name} still runs, and its client has gone")


async def check_files(fleet: Fleet, ready: Mapping[str, Set[str]], ledger: Ledger) -> None:
    """The store has the weights of every READY tuning once, and nothing of other attempts, at the latest when a gateway
    has swept it."""

    async def wrongs() -> list[str]:
        objects = await asyncio.to_thread(fleet.objects)
        roots = tuple(f"tunings/{tenant}/" for tenant in ready)
        others = [path for path in objects if path.startswith("tunings/") and not path.startswith(roots)]
        strange = [f"the store has {path}, of no tenant here" for path in others]
        return [*strange, *(wrong for tenant, names in ready.items() for wrong in misplaced(objects, tenant, names))]

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
    """No edit or comparison of the SDK was lost, and those of a polite tenant ended soon."""
    for outcome in outcomes:
        is_edit = outcome.action != OF_DEADLINES and ("edit" in outcome.action or outcome.action == COMPARISON)
        if is_edit and outcome.ended not in MAY_END:
            ledger.wrong(f"{outcome.client}: {outcome.action} was lost after {outcome.seconds:.1f} s: {outcome.ended}")
    polite = polite_seconds(outcomes)
    if not polite or percentile(polite, 0.95) > most_polite_s:
        ledger.wrong(f"p95 of the polite tenant is more than {most_polite_s:g} s: {sorted(polite)[-5:]}")


def polite_seconds(outcomes: Sequence[Outcome]) -> list[float]:
    """Of its edits that were done."""
    return [outcome.seconds for outcome in outcomes if (outcome.action, outcome.ended) == (POLITE_EDIT, DONE)]
