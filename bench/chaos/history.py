"""Every state that a tuning was in, as the database itself writes it down: what lasts for a moment is seen, too."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from bench.soak.ledger import Ledger
from unitune.v1.tuning_pb2 import Tuning

# Whoever takes or makes a tuning has locked its tenant, so that the order of these of one tenant is the true one. What
# ends one may stand here a moment before it is committed, and so never makes a tenant seem to have more than it had.
NOTES = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.history (
    id bigserial PRIMARY KEY, tenant text, name text, was int, becomes int, attempts int NOT NULL
);
CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos.history (tenant, name, becomes, attempts)
            VALUES (NEW.tenant, NEW.name, NEW.state, NEW.attempt);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO chaos.history (tenant, name, was, attempts) VALUES (OLD.tenant, OLD.name, OLD.state, 0);
    ELSIF (OLD.state, OLD.attempt) <> (NEW.state, NEW.attempt) THEN
        INSERT INTO chaos.history (tenant, name, was, becomes, attempts)
            VALUES (NEW.tenant, NEW.name, OLD.state, NEW.state, NEW.attempt - OLD.attempt);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON tunings FOR EACH ROW EXECUTE FUNCTION chaos.note();
"""
READ = "SELECT tenant, name, was, becomes, attempts FROM chaos.history ORDER BY id"

QUEUED, RUNNING, READY = Tuning.STATE_QUEUED, Tuning.STATE_RUNNING, Tuning.STATE_READY
FAILED, CANCELLED, EXPIRED = Tuning.STATE_FAILED, Tuning.STATE_CANCELLED, Tuning.STATE_EXPIRED
# From which state to which; None is where there is no tuning.
MAY_BECOME: dict[int | None, set[int | None]] = {
    None: {QUEUED},
    QUEUED: {RUNNING, FAILED, CANCELLED},
    RUNNING: {QUEUED, READY, FAILED, CANCELLED},
    READY: {EXPIRED},
    FAILED: {None},
    CANCELLED: {None},
    EXPIRED: {None},
}
UNFINISHED = (QUEUED, RUNNING)


class Step(NamedTuple):
    """A change of one tuning, and how many attempts began with it."""

    tenant: str
    name: str
    was: int | None
    becomes: int | None
    attempts: int


def note(connection: Any) -> None:
    """Have a database of PostgreSQL write down all that happens to tunings from now on."""
    connection.execute(NOTES)


def check_history(steps: Iterable[Step], ledger: Ledger, *, most_running: int, most_unfinished: int) -> None:
    """No tuning has left an end, each attempt began by being taken, and no tenant ever had more than it may."""
    running, unfinished = Counter[str](), Counter[str]()
    for number, step in enumerate(steps):
        if step.becomes not in MAY_BECOME[step.was]:
            ledger.wrong(f"{step.name} was {_word(step.was)} and is {_word(step.becomes)}")
        if step.attempts != (step.becomes == RUNNING):
            ledger.wrong(f"{step.name} is {_word(step.becomes)} by {step.attempts} attempts")
        for counts, states, most, what in (
            (running, (RUNNING,), most_running, "running"),
            (unfinished, UNFINISHED, most_unfinished, "unfinished"),
        ):
            rise = (step.becomes in states) - (step.was in states)
            counts[step.tenant] += rise
            if rise > 0 and counts[step.tenant] > most:
                ledger.wrong(f"{step.tenant} has {counts[step.tenant]} {what} tunings, and may have {most}: {number}")


def _word(state: int | None) -> str:
    return "gone" if state is None else Tuning.State.Name(state)
