"""What the gateway must remember of tunings, as three small interfaces, and of tuner and sampler, as a fourth.

`gateway.state` implements all four in one SQLite file. Another implementation keeps these promises:

- A change of a tuning and the event that tells it happen together or not at all.
- A tuning has at most one terminal event, and it is the last.
- One key has at most one live tuning (QUEUED, RUNNING or READY) in a tenant.
- Nothing that was acknowledged is forgotten when the process is killed.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from unitune.v1.tuning_pb2 import Tuning, TuningEvent

LIVE = (Tuning.STATE_QUEUED, Tuning.STATE_RUNNING, Tuning.STATE_READY)
UNFINISHED = (Tuning.STATE_QUEUED, Tuning.STATE_RUNNING)
TERMINAL_EVENTS = ("ready", "failed", "cancelled")

KEPT_EVENTS = 512  # of one tuning; a later watcher gets a snapshot in place of older ones
# Deaths of the tuner under one tuning, until it is FAILED rather than tried again. A run that got further than any
# before it begins the count anew: what ended the others did not end this one.
MAX_CRASHES = 3

Mutate = Callable[[Tuning], None]
Announce = Callable[[Tuning], TuningEvent]


class CreateRequest(NamedTuple):
    """A caller's id for a creation, and a digest of what was asked, so that the id cannot mean two things."""

    request_id: str
    body: str


class Page(NamedTuple):
    """Tunings, the newest first; `after` continues the list, 0 if this was the end."""

    tunings: list[Tuning]
    after: int


class Taken(NamedTuple):
    """A tuning that is RUNNING from now on; `attempt` counts from 1."""

    tuning: Tuning
    attempt: int


class Kept(NamedTuple):
    """A tuning and its events after a sequence number. `last` is the newest event's number; `gap` means that some
    that were asked for are no longer kept."""

    tuning: Tuning
    events: list[TuningEvent]
    last: int
    gap: bool


class TuningStore(Protocol):
    """The tunings by name."""

    async def recall(self, tenant: str, request: CreateRequest) -> Tuning | None:
        """The tuning that this request made earlier, None if it made none.

        Raises InvalidArgument (REQUEST_ID_REUSED) for another body, NotFound (TUNING_NOT_FOUND) if it was deleted.
        """

    async def create(self, tuning: Tuning, request: CreateRequest | None) -> Tuning:
        """Queue a new tuning, or answer with the live one of the same tenant and key. Raises as `recall` does."""

    async def live(self, tenant: str, key: str) -> Tuning | None:
        """The QUEUED, RUNNING or READY tuning of this key."""

    async def get(self, name: str) -> Tuning | None:
        """A tuning as it is now."""

    async def page(self, tenant: str, state: int, after: int, size: int) -> Page:
        """Tunings of one tenant; state 0 means any, `after` 0 means from the newest."""

    async def change(
        self, name: str, mutate: Mutate, announce: Announce | None = None, *, deletes: bool = False
    ) -> Tuning | None:
        """Let `mutate` change a tuning in place, and append the event that `announce` makes of the result.

        Nothing is written or announced when `mutate` changes nothing. The tuning afterwards; None if there is none.
        `deletes` says that this is part of a deletion, which must succeed on a full disk, too.
        """

    async def remove(self, name: str) -> None:
        """Forget a tuning and its events, on a full disk, too; the ids of the requests that made it stay known.

        Nothing else of it is left in any file.
        """

    async def expired(self, now_s: float) -> list[str]:
        """Names of the READY tunings whose expire_time has come, in Unix seconds."""

    async def uses_image(self, image: str) -> bool:
        """Whether any tuning was made from this image."""

    async def live_user_of(self, image: str) -> str | None:
        """A live tuning of this image, by name."""

    async def add_eviction(self, digest: str) -> None:
        """Remember weights that the sampler must forget; twice is once."""

    async def evictions(self) -> list[str]:
        """Digests of the weights that the sampler must still forget, the oldest first."""

    async def remove_eviction(self, digest: str) -> None:
        """The sampler has forgotten these weights."""


class TuningQueue(Protocol):
    """The QUEUED tunings in the order in which they run: tenants in turn, within a tenant the oldest first."""

    async def wait_queued(self) -> None:
        """Return once a tuning is QUEUED."""

    async def take(self, tuner: str) -> Taken | None:
        """Make the next tuning RUNNING and tell so in its events; None if none is QUEUED.

        `tuner` is the instance that will run it. What was lost with another instance has crashed with it; what crashed
        too often is FAILED (WORKER_CRASHED) first. An empty instance is known to nobody, and blames nothing.
        """

    async def give_back(self, name: str, *, lost: bool) -> None:
        """Queue a RUNNING tuning again, at its old place.

        `lost` means that nothing is known of its run: the next `take` will see whether the tuner died with it.
        """

    async def recover(self, running: str = "") -> None:
        """Give back, as lost, every RUNNING tuning but this one: nobody runs it."""


class EventLog(Protocol):
    """The events of each tuning."""

    async def read(self, name: str, after: int) -> Kept | None:
        """The kept events with a sequence number above `after`; None if there is no such tuning."""

    async def wait(self, name: str, after: int) -> None:
        """Return once the tuning may have an event above `after`, or is gone. Call it after `read`, in a loop."""


class State(TuningStore, TuningQueue, EventLog, Protocol):
    """All three, as one process has them."""


class ServiceMemory(Protocol):
    """What tuner and sampler last said of themselves."""

    async def known(self) -> dict[str, bytes]:
        """The serialized message of each service by the service's name."""

    async def know(self, service: str, info: bytes) -> None:
        """Replace what is known of a service."""
