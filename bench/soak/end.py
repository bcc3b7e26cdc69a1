"""What must hold when all faults are over: of the state, of the store, and after everything is deleted."""

import asyncio
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bench.soak.clients import PROMPTS
from bench.soak.ledger import Ledger
from bench.soak.services import Services
from bench.started import Started
from unitune.v1.tuning_pb2 import Tuning, TuningEvent
from unitune_client import AsyncClient
from unitune_client.events import TuningState

SETTLED_S = 300.0
SWEPT_S = 60.0
LOOKS_EVERY_S = 0.5
UNFINISHED = (TuningState.QUEUED, TuningState.RUNNING)
ENDS = ("ready", "failed", "cancelled")
EDITS = 6  # that READY tunings are asked for
A_DAY_S = 25 * 3600.0
OWNER = "owner"  # names the state whose store it is

Say = Callable[[str], object]


async def check_end(services: Services, tenants: Iterable[str], ledger: Ledger, say: Say) -> dict[str, int]:
    """Look at everything; what is wrong is in the ledger. The number of tunings by their last state."""
    clients = {tenant: AsyncClient(services.address, tenant=tenant) for tenant in tenants}
    try:
        await settle(clients, ledger)
        ended: dict[str, int] = {}
        for tenant, client in clients.items():
            tunings = [tuning async for tuning in client.list_tunings()]
            for tuning in tunings:
                ended[tuning.state] = ended.get(tuning.state, 0) + 1
            listed = {tuning.name for tuning in tunings}
            for known in ledger.tunings.values():
                if known.tenant == tenant and known.wanted and known.name not in listed:
                    ledger.wrong(f"{known.name} is gone")
                if len(known.ends) > 1:
                    ledger.wrong(f"{known.name} ended {len(known.ends)} times for its watcher: {known.ends}")
            ready = [tuning for tuning in tunings if tuning.state == TuningState.READY]
            for wrong in misplaced(files(services.store), tenant, {tuning.name for tuning in ready}):
                ledger.wrong(wrong)
            for tuning in ready[:EDITS]:
                await client.edit_to_end(tuning, PROMPTS[0], num_inference_steps=2)
        say(f"tunings: {ended}")
        with copied(services.state) as database:
            check_tunings(database, ledger)
        for client in clients.values():
            async for tuning in client.list_tunings():
                await client.delete_tuning(tuning.name)
        for name, tenant in ledger.images.items():
            await clients[tenant].delete_image(name, allow_missing=True)
        say("everything is deleted")
    finally:
        for client in clients.values():
            await client.close()
    await asyncio.to_thread(_check_nothing_is_left, services, ledger)
    return ended


async def settle(clients: Mapping[str, AsyncClient], ledger: Ledger) -> None:
    """Wait until no tuning is open."""
    gives_up_at = time.monotonic() + SETTLED_S
    while True:
        unfinished = [
            tuning.name
            for client in clients.values()
            for state in UNFINISHED
            async for tuning in client.list_tunings(state=state)
        ]
        if not unfinished:
            return
        if time.monotonic() > gives_up_at:
            ledger.wrong(f"tunings that did not end within {SETTLED_S:.0f} s: {unfinished}")
            return
        await asyncio.sleep(LOOKS_EVERY_S)


def misplaced(objects: Iterable[str], tenant: str, ready: Set[str]) -> list[str]:
    """What is not as it must be: of every READY tuning of a tenant the store has one attempt's weights, and of others
    nothing."""
    root, wrongs = f"tunings/{tenant}/", list[str]()
    found: dict[str, list[str]] = {}
    for path in sorted(path.removeprefix(root) for path in objects if path.startswith(root)):
        name, _, rest = path.partition("/")
        found.setdefault(f"tenants/{tenant}/tunings/{name}", []).append(rest)
    for name in sorted(ready | found.keys()):
        files = found.get(name, [])
        attempts = {file.partition("/")[0] for file in files}
        names = [file.partition("/")[2] for file in files]
        right = ["manifest.json", "weights.safetensors"] if name in ready else []
        if names != right or len(attempts) > 1:
            wrongs.append(f"of {name}, {'READY' if name in ready else 'not READY'}, the store has {files}")
    return wrongs


def check_tunings(database: Any, ledger: Ledger) -> None:
    """Every tuning of the state has ended, with one last event, and its events have no gap. `database` is a connection
    to SQLite or PostgreSQL."""
    kinds: dict[int, dict[int, str | None]] = {}
    for number, sequence, blob in database.execute("SELECT tuning, sequence, blob FROM events").fetchall():
        kinds.setdefault(number, {})[sequence] = TuningEvent.FromString(blob).WhichOneof("event")
    rows = database.execute("SELECT number, name, state, last_event FROM tunings").fetchall()
    for number, name, last_state, last_event in rows:
        if last_state in (Tuning.STATE_QUEUED, Tuning.STATE_RUNNING):
            ledger.wrong(f"{name} is {Tuning.State.Name(last_state)} in the state")
        events = kinds.get(number, {})
        ends = [(sequence, kind) for sequence, kind in sorted(events.items()) if kind in ENDS]
        if len(ends) != 1 or ends[0][0] != last_event:
            ledger.wrong(f"{name} has the last events {ends} of {last_event}")
        sequences = sorted(events)
        if sequences != list(range(last_event + 1 - len(sequences), last_event + 1)) or not sequences:
            ledger.wrong(f"{name} has gaps in its events: {sequences}")


@contextmanager
def copied(state: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the state as it is now: nobody but the gateway opens the file itself."""
    with tempfile.TemporaryDirectory() as folder:
        for path in state.parent.glob(f"{state.name}*"):
            shutil.copy(path, folder)
        with closing(sqlite3.connect(Path(folder) / state.name)) as database:
            yield database


def _check_nothing_is_left(services: Services, ledger: Ledger) -> None:
    """Whatever is left after all was deleted goes within a day, and its sweep is at the gateway's start."""
    store = services.store
    for name in files(store):
        if not name.startswith("edits/") and not name.startswith("images/") and name != OWNER:
            ledger.wrong(f"after its deletion the store has {name}")
    gateway = services.process("gateway")
    gateway.terminate()
    gateway.wait()
    yesterday = time.time() - A_DAY_S
    for path in store.rglob("*"):
        os.utime(path, (yesterday, yesterday))
    services.restart("gateway")
    gives_up_at = time.monotonic() + SWEPT_S
    while (left := [name for name in files(store) if name != OWNER]) and time.monotonic() < gives_up_at:
        time.sleep(LOOKS_EVERY_S)
    if left:
        ledger.wrong(f"a day after everything was deleted the store has {left[:10]}, {len(left)} objects")
    with copied(services.state) as database:
        for table in ("tunings", "events"):
            (number,) = database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            if number:
                ledger.wrong(f"after everything was deleted the state has {number} rows of {table}")


def files(store: Path) -> list[str]:
    """All objects of the store, whose folders may go meanwhile."""
    return sorted(
        str(Path(folder, name).relative_to(store))
        for folder, _, names in os.walk(store)  # unlike rglob it passes over what is gone
        for name in names
    )


def check_logs(services: Started, ledger: Ledger) -> dict[str, int]:
    """How many lines of each log tell of an error; a mistake of ours must not be among them."""
    for mistake in services.mistakes():
        ledger.wrong(mistake)
    return services.error_lines()
