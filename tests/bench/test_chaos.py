"""What chaos looks at: it tells what is not as it must be, and its faults are those of the seed."""

from contextlib import closing
from dataclasses import replace
from random import Random

import numpy as np
import psycopg
import pytest

from bench.chaos import history
from bench.chaos.clients import GREEDY, GREEDY_TUNING, POLITE, POLITE_EDIT
from bench.chaos.end import (
    check_crashes,
    check_edit_usage,
    check_edits,
    check_ends,
    check_known,
    check_made_once,
    check_usage,
    check_weights,
    ends_of,
)
from bench.chaos.faults import planned
from bench.chaos.history import Step, check_history
from bench.soak.ledger import DONE, Ledger, Outcome
from gateway.state import MAX_CRASHES, State
from gateway.tuning_records import Attempt
from tests.gateway.conftest import postgres_server  # noqa: F401, a fixture
from tests.gateway.test_state import TUNER, tuning
from tests.postgres_server import PostgresServer
from unitune.errors import Internal, to_status
from unitune.v1.tuning_pb2 import Tuning, TuningProgress, WeightsRef
from unitune.weights import pack

QUEUED, RUNNING, READY = Tuning.STATE_QUEUED, Tuning.STATE_RUNNING, Tuning.STATE_READY
FAILED, CANCELLED, EXPIRED = Tuning.STATE_FAILED, Tuning.STATE_CANCELLED, Tuning.STATE_EXPIRED


def names(kind: str) -> list[str]:
    """Two services of each kind."""
    return [f"{kind} 1", f"{kind} 2"]


def test_faults_are_those_of_the_seed() -> None:
    """The same seed plans the same; every kind of process, link and database is harmed, nothing outlasts the run."""
    faults = planned(900.0, Random(7), 4.0, names)
    assert faults == planned(900.0, Random(7), 4.0, names) != planned(900.0, Random(8), 4.0, names)
    assert all(fault.at_s + fault.lasts_s <= 900.0 for fault in faults)
    harmed = {fault.what for fault in faults}
    for what in ("gateway 1 killed", "tuner 2 frozen", "sampler 1 killed", "database killed", "leases expired"):
        assert what in harmed
    assert {"link to the store refused", "link to the database held", "link to the clients delayed"} <= harmed


@pytest.mark.parametrize(
    ("state", "attempt", "started", "reason", "is_poison", "wrongs"),
    [
        (READY, 2, 2, "", False, 0),
        (READY, 2, 1, "", False, 1),
        (FAILED, MAX_CRASHES, MAX_CRASHES, "WORKER_CRASHED", False, 0),
        (FAILED, MAX_CRASHES - 1, MAX_CRASHES - 1, "WORKER_CRASHED", False, 1),
        (FAILED, MAX_CRASHES, MAX_CRASHES, "INTERNAL", False, 1),
        (FAILED, MAX_CRASHES, MAX_CRASHES, "WORKER_CRASHED", True, 0),
        (READY, MAX_CRASHES, MAX_CRASHES, "", True, 1),
        (FAILED, 2, 2, "WORKER_CRASHED", True, 1),
    ],
)
def test_an_end_that_is_not_right_is_told(
    state: Tuning.State, attempt: int, started: int, reason: str, is_poison: bool, wrongs: int
) -> None:
    """Attempts that no event tells of, failures of what kills nobody, and what kills and does not end so."""
    ledger, tuning = Ledger(), Tuning(state=state)
    tuning.weights.path = f"tunings/a/t/{attempt}" if state == READY else ""
    if reason:
        tuning.error.CopyFrom(to_status(Internal("lost", reason=reason)))
    rows = [(1, "a", "t", state, attempt, tuning.SerializeToString())]
    check_ends(rows, {1: ["queued", *["started"] * started]}, {"t"} if is_poison else set(), ledger)
    assert len(ledger.wrongs) == wrongs


def test_weights_of_another_attempt_are_told() -> None:
    """A READY tuning has those of its last one."""
    ledger, tuning = Ledger(), Tuning(state=READY)
    tuning.weights.path = "tunings/a/t/1"
    check_ends([(1, "a", "t", READY, 2, tuning.SerializeToString())], {1: ["started", "started"]}, set(), ledger)
    assert len(ledger.wrongs) == 1


def test_counters_that_are_no_counts_are_told() -> None:
    """Those that a client has deleted count, too."""
    ledger = Ledger()
    ledger.tuning("gone", "a").wanted = False
    rows = [(1, "a", "t1", READY, 1, b""), (2, "b", "t2", READY, 1, b"")]
    check_usage({"a": 2, "b": 1}, rows, ledger)
    assert not ledger.wrongs
    check_usage({"a": 1, "b": 1}, rows, ledger)
    check_usage({"a": 2}, rows, ledger)
    assert len(ledger.wrongs) == 2


def test_what_was_lost_is_told() -> None:
    """A tuning that is gone, an edit that had no end, and a polite tenant that waits too long."""
    ledger = Ledger()
    known = ledger.tuning("t", "a")
    check_known(ledger, {})
    known.sequences += [1, 2, 2]
    check_known(ledger, {"t": {"ready"}})
    assert len(ledger.wrongs) == 2
    done = [Outcome(0.0, "a", POLITE_EDIT, DONE, seconds) for seconds in (1.0, 2.0, 9.0)]
    refused = Outcome(0.0, "a", GREEDY_TUNING, "UNAVAILABLE", 1.0)
    check_edits([*done, refused], ledger, 10.0)
    assert len(ledger.wrongs) == 2
    check_edits([*done, Outcome(0.0, "a", "edit own", "UNAVAILABLE", 1.0)], ledger, 5.0)
    assert len(ledger.wrongs) == 4
    check_edits([*done, Outcome(0.0, "a", "compare", "BACKEND_DOWN", 1.0)], ledger, 10.0)
    assert len(ledger.wrongs) == 5


@pytest.mark.parametrize(
    ("sequences", "ends", "state", "wrongs"),
    [
        ([1, 2, 3], ["ready"], READY, 0),
        ([1, 2, 3], ["WORKER_CRASHED"], FAILED, 0),
        ([1, 2], [], READY, 0),
        ([1, 2, 3], ["ready"], FAILED, 1),
        ([1, 2, 3], ["INTERNAL"], FAILED, 1),
        ([1, 3], ["ready"], READY, 1),
        ([1, 3, 2], ["ready"], READY, 1),
        ([2, 3], ["ready"], READY, 1),
    ],
)
def test_a_watcher_that_was_told_wrong_is_told(
    sequences: list[int], ends: list[str], state: Tuning.State, wrongs: int
) -> None:
    """Another end than the tuning has, an event that is missing, and events in another order."""
    ledger, tuning = Ledger(), Tuning(state=state)
    if state == FAILED:
        tuning.error.CopyFrom(to_status(Internal("lost", reason="WORKER_CRASHED")))
    known = ledger.tuning("t", "a")
    known.sequences += sequences
    known.ends += ends
    check_known(ledger, {"t": ends_of(state, tuning.SerializeToString())})
    assert len(ledger.wrongs) == wrongs


def step(name: str, was: Tuning.State | None, becomes: Tuning.State | None, attempts: int | None = None) -> Step:
    """A change of a tuning of one tenant."""
    return Step("a", name, was, becomes, int(becomes == RUNNING) if attempts is None else attempts)


@pytest.mark.parametrize(
    ("steps", "wrongs"),
    [
        ([], 0),
        ([step("t", READY, EXPIRED), step("t", EXPIRED, None)], 0),
        ([step("t", READY, RUNNING)], 1),
        ([step("t", READY, FAILED)], 1),
        ([step("t", READY, None)], 1),
        ([step("u", None, READY)], 1),
        ([step("t", READY, EXPIRED, 1)], 1),
        ([step("u", None, QUEUED), step("u", QUEUED, RUNNING, 2)], 1),
        ([step("u", None, QUEUED), step("u", QUEUED, RUNNING), step("v", None, QUEUED)], 0),
        ([step("u", None, QUEUED), step("v", None, QUEUED), step("w", None, QUEUED), step("w", QUEUED, CANCELLED)], 1),
        (
            [
                *(step("u", None, QUEUED), step("v", None, QUEUED), step("u", QUEUED, RUNNING)),
                *(step("v", QUEUED, RUNNING), step("u", RUNNING, READY), step("v", RUNNING, READY)),
            ],
            1,
        ),
    ],
)
def test_what_was_wrong_for_a_moment_is_told(steps: list[Step], wrongs: int) -> None:
    """A tuning that leaves its end, an attempt that was not taken, and a tenant that had one too many."""
    ledger = Ledger()
    before = [step("t", None, QUEUED), step("t", QUEUED, RUNNING), step("t", RUNNING, QUEUED)]
    before += [step("t", QUEUED, RUNNING), step("t", RUNNING, READY)]
    check_history([*before, *steps], ledger, most_running=1, most_unfinished=2)
    assert len(ledger.wrongs) == wrongs, ledger.wrongs


@pytest.mark.slow  # a real server
async def test_the_database_writes_down_every_change(postgres_server: PostgresServer) -> None:  # noqa: F811
    """Each state that a tuning of a real queue comes into, and what changed it by another way than the queue's."""
    url = postgres_server.new_database()
    state = await State.open(url)
    try:
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            history.note(connection)
            made = await state.create(tuning(), None)
            for _ in range(2):
                taken = await state.take(TUNER)
                attempt = Attempt(made.name, taken.attempt)
                await state.report(attempt, "tuner", progress=TuningProgress(update=taken.attempt))
                if taken.attempt == 1:
                    await state.let_go(attempt)
            await state.finish(attempt, WeightsRef(digest="1" * 64))

            def noted() -> list[Step]:
                return [Step(*row) for row in connection.execute(history.READ).fetchall()]

            states = [(one.was, one.becomes) for one in noted()]
            assert states == [(None, QUEUED), (QUEUED, RUNNING), (RUNNING, QUEUED), (QUEUED, RUNNING), (RUNNING, READY)]
            ledger = Ledger()
            check_history(noted(), ledger, most_running=1, most_unfinished=1)
            assert not ledger.wrongs
            connection.execute("UPDATE tunings SET state = 2, attempt = 7")
            connection.execute("UPDATE tunings SET state = 3")
            check_history(noted(), ledger, most_running=1, most_unfinished=1)
            assert len(ledger.wrongs) == 2 and "was STATE_READY and is STATE_RUNNING" in ledger.wrongs[0]
    finally:
        await state.close()


def test_what_is_counted_or_made_twice_is_told() -> None:
    """An edit that counts twice, a tuning that was made twice, and a tuner that no tuning has killed."""
    ledger = Ledger()
    ledger.outcomes.append(Outcome(0.0, "a", POLITE_EDIT, DONE, 1.0))
    rows = [
        (number, tenant, f"t{number}", FAILED, 3, Tuning(key=key).SerializeToString())
        for number, (tenant, key) in enumerate(((GREEDY, "k"), (GREEDY, "l"), ("busy", "k"), ("busy", "k")))
    ]
    check_edit_usage({POLITE: 1, "busy": 7}, ledger)
    check_made_once(rows, ledger)
    check_crashes(3, rows, ["t1"], ledger)
    assert not ledger.wrongs
    check_edit_usage({POLITE: 2}, ledger)
    check_made_once([*rows, (9, GREEDY, "t9", READY, 1, Tuning(key="k").SerializeToString())], ledger)
    check_crashes(4, rows, ["t1"], ledger)
    assert len(ledger.wrongs) == 3


@pytest.mark.parametrize("wrong", ["", "weights", "manifest", "key"])
def test_weights_that_are_not_whole_are_told(wrong: str) -> None:
    """A file that is another one than its manifest or its tuning tells, and one of another key."""
    data, manifest = pack(
        {"x": np.zeros((2, 2), np.float32)}, probe_tuned=np.zeros(1), probe_base=np.zeros(1), key="k", base_model="b",
        method="unitune", rare_tokens="", updates=1, probe_seed=0,
    )  # fmt: skip
    tuning = Tuning(key="k" if wrong != "key" else "other")
    tuning.weights.digest, tuning.weights.path = manifest.digest, "tunings/a/t/1"
    told = replace(manifest, digest="0" * 64) if wrong == "manifest" else manifest
    files = {"manifest.json": told.to_json(), "weights.safetensors": data[:-1] if wrong == "weights" else data}
    ledger = Ledger()
    check_weights("t", tuning, lambda path: files[path.removeprefix("tunings/a/t/1/")], ledger)
    assert len(ledger.wrongs) == bool(wrong)
