"""What a long queue costs: no statement of the queue's operations reads a whole table, and none is run for each tuning
that waits (F6). `python -m bench.long_queue` measures it."""

import re
from pathlib import Path
from typing import Any

import pytest
from google.rpc.status_pb2 import Status

from gateway.database import PREPARED, Transaction
from gateway.state import State
from gateway.tuning_records import Attempt, CreateRequest, Taker
from tests.gateway.test_state import becomes, tuning
from unitune.v1.edit_pb2 import Edit
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress, WeightsRef

LARGE = ("tunings", "events", "requests", "edit_requests")
OF_FEW_ROWS = ("queued", "leased", "to_trim")  # indexes of what waits, runs or has just ended


async def work(state: State) -> None:
    """All that happens to tunings."""
    made = [await state.create(tuning(key=f"k{n}", number=n), CreateRequest(f"id{n}", "body")) for n in range(6)]
    for number in range(4):
        taken = await state.take(Taker(f"tuner {number}", "place"), base_model=made[0].base_model)
        attempt = Attempt(taken.tuning.name, taken.attempt)
        await state.report(attempt, f"tuner {number}", progress=TuningProgress(update=1))
        await state.report(attempt, f"tuner {number}")
        match number:
            case 0:
                await state.finish(attempt, WeightsRef())
            case 1:
                await state.fail(attempt, Status(code=9))
            case 2:
                await state.let_go(attempt)
        await state.standing(attempt)
    await state.change(made[5].name, becomes(Tuning.STATE_CANCELLED), lambda now: TuningEvent(cancelled=now))
    await state.read(made[0].name, 0)
    await state.get(made[4].name)
    await state.page("default", 0, 0, 3)
    await state.page("default", Tuning.STATE_QUEUED, 0, 3)
    await state.recall("default", CreateRequest("id1", "body"))
    await state.wait(made[0].name, 0)
    await state.wait_queued()
    for model in ("", "another"):
        await state.take(Taker("another tuner"), base_model=model, most_running=1)
        await state._is_any_queued(model, most_running=1)
    await state.sweep(30.0)
    await state.queue_now()
    await state.queued_base_models()
    await state.trim_events()
    await state.expired(0.0)
    await state.uses_image("tenants/default/images/" + "b" * 64)
    await state.claim_edit("default", CreateRequest("id", "body"), Edit(name="edit"))
    await state.remove(made[5].name)


async def test_no_statement_reads_a_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered by an index, or by one of the rows that wait or run (F6)."""
    monkeypatch.setitem(PREPARED, "sqlite", {})
    state = await State.open(tmp_path / "state.sqlite")
    await work(state)
    prepared = dict(PREPARED["sqlite"])
    wrong = []

    def explain(tx: Transaction) -> None:
        for statement in prepared.values():
            values = [None] * statement.text.count("?")
            for *_, detail in tx._connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", values):
                found = re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", detail)
                if found and found[1] in LARGE and found[2] not in OF_FEW_ROWS:
                    wrong.append((detail, statement.text))

    await state.database.run(explain)
    await state.close()
    assert len(prepared) > 30 and [] == wrong


async def test_a_long_queue_takes_no_more_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make a tuning, to take one, to tell a place and to list those of a tenant, with 3 that wait and with 300 of 60
    tenants."""
    state, run, counted = await State.open(tmp_path / "state.sqlite"), Transaction.run, [0]

    def counting(self: Transaction, *args: Any, **values: Any) -> Any:
        counted[0] += 1
        return run(self, *args, **values)

    monkeypatch.setattr(Transaction, "run", counting)

    async def statements() -> list[int]:
        found = []
        for number, call in enumerate(
            (
                lambda: state.create(tuning("acme", key=f"k{made}", number=made), None),
                lambda: state.get(tuning("t1", key="k1", number=1).name),
                lambda: state.page("t1", 0, 0, 200),
                lambda: state.take(Taker(f"tuner {made}")),
            )
        ):
            counted[0] = 0
            assert await call() is not None, number
            found.append(counted[0])
        return found

    for made in range(3):
        await state.create(tuning(f"t{made}", key=f"k{made}", number=made), None)
    made = 1000
    few = await statements()
    for made in range(3, 300):
        await state.create(tuning(f"t{made % 60}", key=f"k{made}", number=made), None)
    made = 1001
    assert await statements() == few and max(few) < 16
    await state.close()
