"""What chaos looks at: it tells what is not as it must be, and its faults are those of the seed."""

from random import Random

import pytest

from bench.chaos.clients import GREEDY_TUNING, POLITE_EDIT
from bench.chaos.end import check_edits, check_ends, check_known, check_usage
from bench.chaos.faults import planned
from bench.soak.ledger import DONE, Ledger, Outcome
from gateway.state import MAX_CRASHES
from unitune.errors import Internal, to_status
from unitune.v1.tuning_pb2 import Tuning

FAILED, READY = Tuning.STATE_FAILED, Tuning.STATE_READY


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
    check_known(ledger, set())
    known.sequences += [1, 2, 2]
    check_known(ledger, {"t"})
    assert len(ledger.wrongs) == 2
    done = [Outcome(0.0, "a", POLITE_EDIT, DONE, seconds) for seconds in (1.0, 2.0, 9.0)]
    refused = Outcome(0.0, "a", GREEDY_TUNING, "UNAVAILABLE", 1.0)
    check_edits([*done, refused], ledger, 10.0)
    assert len(ledger.wrongs) == 2
    check_edits([*done, Outcome(0.0, "a", "edit own", "UNAVAILABLE", 1.0)], ledger, 5.0)
    assert len(ledger.wrongs) == 4
