"""What the state takes and gives, beside the messages of the contract."""

import hashlib
from enum import Enum, auto
from typing import NamedTuple

from unitune.errors import InvalidArgument, UniTuneError
from unitune.v1.tuner_pb2 import Checkpoint
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress

LIVE = (Tuning.STATE_QUEUED, Tuning.STATE_RUNNING, Tuning.STATE_READY)
UNFINISHED = (Tuning.STATE_QUEUED, Tuning.STATE_RUNNING)


class CreateRequest(NamedTuple):
    """A caller's id for a tuning or an edit, and a digest of what was asked: the same id with another request is
    refused."""

    request_id: str
    body: str

    def refuse_another(self, body: str) -> None:
        """Raise InvalidArgument (REQUEST_ID_REUSED) if the id was used with this other body."""
        if body != self.body:
            raise InvalidArgument(
                f"request_id is {self.request_id!r}: it was used for another request; make a new one",
                reason="REQUEST_ID_REUSED",
                metadata={"field": "request_id", "value": self.request_id, "remedy": "make a new one"},
            )


class QueueLimits(NamedTuple):
    """How many unfinished tunings a tenant, and all of them, may have, and how many a tenant may have kept, ended ones
    too; 0 means any number. `refusal` is what a new one is refused with for another reason."""

    of_tenant: int = 0
    of_all: int = 0
    kept: int = 0
    refusal: UniTuneError | None = None


class QueueNow(NamedTuple):
    """The unfinished tunings. `since_s` is when the oldest QUEUED one was created, in Unix seconds."""

    queued: int
    running: int
    since_s: float | None


class Page(NamedTuple):
    """Tunings, the newest first; `after` continues the list, 0 if this was the end."""

    tunings: list[Tuning]
    after: int


class Taker(NamedTuple):
    """A tuner that takes tunings: its process, and the place of which there is one process at a time."""

    instance: str
    place: str = ""


class Attempt(NamedTuple):
    """One attempt at a tuning, counted from 1. The number fences it: only the latest one changes the tuning."""

    name: str
    number: int


class Report(NamedTuple):
    """The progress of an attempt, as an instance reports it, whose lease it renews for so many seconds."""

    attempt: Attempt
    instance: str
    progress: TuningProgress
    lease_s: float


class TakenTuning(NamedTuple):
    """A tuning that is RUNNING from now on, where the attempt goes on, if not at the beginning, and the trace of the
    call that made it, as W3C traceparent."""

    tuning: Tuning
    attempt: int
    checkpoint: Checkpoint | None = None
    trace: str = ""


class Standing(Enum):
    """What became of an attempt, as a report finds it. What was reported of one that is kept is kept."""

    KEPT = auto()
    CANCELLED = auto()  # the tuning was cancelled or deleted
    LOST = auto()  # the tuning has ended otherwise, or is another attempt's


class KeptEvents(NamedTuple):
    """A tuning and its events after a sequence number. `last` is the newest event's number; `gap` means that some
    that were asked for are no longer kept."""

    tuning: Tuning
    events: list[TuningEvent]
    last: int
    gap: bool


def etag_of(tuning: Tuning) -> str:
    """A digest of a tuning without its place in the queue, which other tunings change."""
    plain = Tuning()
    plain.CopyFrom(tuning)
    plain.ClearField("etag")
    plain.ClearField("queue_position")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()[:16]
