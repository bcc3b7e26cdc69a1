"""What the state's operations take with a long queue: 10,000 tunings of 2,000 tenants that wait.

    python -m bench.long_queue

Milliseconds of making a tuning, of telling a place, and of taking a tuning, in a state file and, where a PostgreSQL
server can be started, in a database. Goal: a median of at most 20 ms each, on an idle machine.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from bench.program import run
from gateway import state_statements as statements
from gateway.database import Transaction
from gateway.state import State
from gateway.tuning_records import Taker
from tests.postgres_server import PostgresServer
from unitune.v1.tuning_pb2 import Tuning, TuningEvent

LONG, TENANTS = 10_000, 2_000
LONG_QUICK, TENANTS_QUICK = 200, 40
MEASURED = 50


def long_queue(rounds: int, *, quick: bool) -> dict[str, object]:
    """Milliseconds of each operation, in each kind of state."""
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        report["long_queue.sqlite.ms"] = asyncio.run(measured(str(Path(folder) / "state.sqlite"), quick=quick))
    server = PostgresServer()
    try:
        server.start()
        report["long_queue.postgresql.ms"] = asyncio.run(measured(server.new_database(), quick=quick))
    finally:
        server.stop()
    return report


async def measured(place: str, *, quick: bool) -> dict[str, dict[str, float]]:
    """The median and the longest of each operation, once that many wait."""
    length, tenants = (LONG_QUICK, TENANTS_QUICK) if quick else (LONG, TENANTS)
    state = await State.open(place)
    try:
        await state.database.run(lambda tx: fill(tx, length, tenants))
        middle = waiting(length // 2, tenants).name
        return {
            "create": await timed(lambda number: state.create(waiting(length + number, tenants), None)),
            "position": await timed(lambda number: state.get(middle)),
            "take": await timed(lambda number: state.take(Taker(f"tuner {number}"))),
        }
    finally:
        await state.close()


def fill(tx: Transaction, length: int, tenants: int) -> None:
    """Write so many tunings as `State.create` does, without telling each its place."""
    for number in range(length):
        made = waiting(number, tenants)
        tenant = made.name.split("/")[1]
        tx.run(statements.NEW_TENANT, the_tenant=tenant)
        row = tx.value(
            statements.INSERT_TUNING,
            **{name: getattr(made, name) for name in ("name", "key", "image", "base_model", "state")},
            tenant=tenant,
            last_event=1,
            trace="",
            blob=made.SerializeToString(),
        )
        event = TuningEvent(sequence=1, queued=TuningEvent.Queued())
        tx.run(statements.INSERT_EVENT, tuning=row, sequence=1, blob=event.SerializeToString())


async def timed(call: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    """Milliseconds of a call, made many times."""
    found = []
    for number in range(MEASURED):
        began = time.perf_counter()
        await call(number)
        found.append(1000 * (time.perf_counter() - began))
    return {"median": round(median(found), 2), "longest": round(max(found), 2)}


def waiting(number: int, tenants: int) -> Tuning:
    """A tuning as it is made."""
    tenant = f"tenant-{number % tenants}"
    return Tuning(
        name=f"tenants/{tenant}/tunings/t-{number:032x}",
        image=f"tenants/{tenant}/images/{number:064x}",
        key=f"{number:064x}",
        base_model="e" * 64,
        state=Tuning.STATE_QUEUED,
    )


if __name__ == "__main__":
    run(long_queue, __doc__, rounds=1)
