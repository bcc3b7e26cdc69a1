"""What a soak looks at: it tells what is not as it must be."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from bench.soak.end import check_tunings, files, misplaced
from bench.soak.faults import CALM_SHARE, FULL, KILLED, STOPPED, planned
from bench.soak.ledger import Ledger, may_be_tried_again
from bench.soak.long_tuning import ATTEMPTS, Watched, sized
from bench.soak.resources import KINDS, Life, trends
from unitune.errors import Internal, ResourceExhausted, Unavailable
from unitune.v1.tuning_pb2 import Tuning, TuningEvent
from unitune_client.events import Progress, TuningProgress, TuningStarted

# What a soak reads of a state.
TABLES = """
CREATE TABLE tunings (number INTEGER PRIMARY KEY, name TEXT, state INTEGER, last_event INTEGER);
CREATE TABLE events (tuning INTEGER, sequence INTEGER, blob BLOB);
"""


@pytest.mark.parametrize(("kind", "step"), [("memory in MB", 1.0), ("files", 0.5), ("threads", 0.5), ("tasks", 1.0)])
def test_a_process_that_grows_is_told(kind: str, step: float) -> None:
    """A figure that rises for minutes is not flat, and the others are."""
    life = Life("gateway", 1)
    for number in range(100):
        life.times_s.append(2.0 * number)
        for each in KINDS:
            life.values[each].append(50.0 + (step * number if each == kind else number % 3))
    assert {trend.kind for trend in trends([life]) if not trend.is_flat} == {kind}


def test_a_process_that_lived_shortly_says_nothing() -> None:
    """Whatever grows while it starts."""
    values = {kind: [float(number) for number in range(20)] for kind in KINDS}
    assert trends([Life("tuner", 1, [2.0 * number for number in range(20)], values)]) == []


@pytest.mark.parametrize(
    ("state", "kinds", "wrong"),
    [
        (Tuning.STATE_READY, ["queued", "started", "ready"], ""),
        (Tuning.STATE_RUNNING, ["queued", "started"], "is STATE_RUNNING"),
        (Tuning.STATE_READY, ["queued", "ready", "ready"], "has the last events"),
        (Tuning.STATE_READY, ["ready", "queued"], "has the last events"),
        (Tuning.STATE_READY, ["queued", "", "ready"], "has gaps"),
    ],
)
def test_a_state_that_is_not_right_is_told(tmp_path: Path, state: int, kinds: list[str], wrong: str) -> None:
    """A tuning that did not end, or ended twice, or before its last event, and an event that is missing."""
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(TABLES)
        database.execute("INSERT INTO tunings VALUES (1, 't', ?, ?)", (state, len(kinds)))
        for sequence, kind in enumerate(kinds, 1):
            event = TuningEvent(sequence=sequence)
            if kind:
                getattr(event, kind).SetInParent()
                database.execute("INSERT INTO events VALUES (1, ?, ?)", (sequence, event.SerializeToString()))
    ledger = Ledger()
    check_tunings(database, ledger)
    database.close()
    assert bool(ledger.wrongs) == bool(wrong) and (not wrong or any(wrong in told for told in ledger.wrongs))


def test_weights_in_a_wrong_place_are_told(tmp_path: Path) -> None:
    """Files of a second attempt, of a tuning that is not READY, and weights that are missing."""
    for path in (
        "a/1/manifest.json",
        "a/1/weights.safetensors",
        "b/1/manifest.json",
        "b/2/weights.safetensors",
        "c/1/x",
    ):
        file = tmp_path / "tunings" / "default" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    wrongs = misplaced(files(tmp_path), "default", {f"tenants/default/tunings/{name}" for name in "abd"})
    assert sorted(told.partition("tunings/")[2][0] for told in wrongs) == ["b", "c", "d"]


def test_faults_are_those_of_the_seed() -> None:
    """The same seed plans the same; in the last part nobody ends, and without a disk none is filled."""
    faults = planned(900.0, Random(7), 10.0, has_disk=True)
    assert faults == planned(900.0, Random(7), 10.0, has_disk=True) != planned(900.0, Random(8), 10.0, has_disk=True)
    calm = [fault.kind for fault in faults if fault.at_s > (1 - CALM_SHARE) * 900.0]
    assert len(faults) > 60 and calm and {KILLED, STOPPED, FULL}.isdisjoint(calm)
    assert FULL not in {fault.kind for fault in planned(900.0, Random(7), 10.0, has_disk=False)}


def test_only_what_says_so_may_be_tried_again() -> None:
    """An error of ours, and a limit that time does not change, may not."""
    full = ResourceExhausted("full", reason="STORE_FULL", retry_after_s=5)
    never = ResourceExhausted("too much", reason="COST")
    errors = [Unavailable("away", reason="BACKEND_DOWN"), full, never, Internal("ours", reason="INTERNAL")]
    assert [may_be_tried_again(error) for error in errors] == [True, True, False, False]


def test_one_request_has_one_picture() -> None:
    """Another picture of the same request is told."""
    ledger = Ledger()
    ledger.same_picture(("a cat", "1"), "x")
    ledger.same_picture(("a cat", "2"), "y")
    assert not ledger.wrongs
    ledger.same_picture(("a cat", "1"), "y")
    assert len(ledger.wrongs) == 1


@pytest.mark.parametrize("units", [0.2, 1.0, 4999.0, 5001.0, 123_456.0])
def test_a_long_tuning_costs_what_it_should(units: float) -> None:
    """Updates and batch are within their ranges, and together what was asked for."""
    updates, batch = sized(units)
    assert 1 <= updates <= 5000 and 1 <= batch <= 64
    assert updates * batch == pytest.approx(max(1.0, units), rel=0.02)


@pytest.mark.parametrize(("resumed", "sequences", "number"), [(40, 5, 1), (0, 5, 1 + (ATTEMPTS - 1)), (40, 1, 2)])
def test_a_long_tuning_that_is_not_right_is_told(resumed: int, sequences: int, number: int) -> None:
    """An end that is not READY, attempts that began anew, and events that came twice."""
    watched = Watched(lambda line: None)
    sequence = 0
    for attempt in range(1, ATTEMPTS + 1):
        progress = Progress(update=50, total=99, loss=1.0, left_s=None, attempt=attempt)
        told = [TuningStarted(attempt=attempt), TuningProgress(progress=progress)]
        told.append(TuningProgress(progress=replace(progress, resumed_update=resumed if attempt > 1 else 0)))
        for event in told:
            sequence = min(sequence + 1, sequences) if sequences == 1 else sequence + 1
            watched.see(replace(event, sequence=sequence))
    assert len(watched.wrongs()) == number
