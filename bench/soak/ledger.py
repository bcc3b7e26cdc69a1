"""What happened in a soak: how every action of a client ended, every fault, every tuning, and what must not be."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from unitune.errors import DeadlineExceeded, ResourceExhausted, Unavailable, UniTuneError

DONE = "done"


@dataclass(frozen=True)
class Outcome:
    """How an action of a client ended. `seconds` is how long it took."""

    at_s: float
    client: str
    action: str
    ended: str
    seconds: float


@dataclass
class Injected:
    """One fault, and when its harm was over; while it lasts, when it began."""

    at_s: float
    until_s: float
    what: str


@dataclass
class KnownTuning:
    """A tuning that a client was told of. `wanted` is whether it should still be there."""

    name: str
    tenant: str
    created_s: float
    wanted: bool = True
    is_cancelled: bool = False
    sequences: list[int] = field(default_factory=list)  # that its watcher saw
    ends: list[str] = field(default_factory=list)  # the last events that its watcher saw


class Ledger:
    """All of it. Times are seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.outcomes: list[Outcome] = []
        self.faults: list[Injected] = []
        self.left_out = 0  # faults for which there was no time
        self.tunings: dict[str, KnownTuning] = {}
        self.images: dict[str, str] = {}  # name to tenant
        self.pictures: dict[tuple[str, ...], str] = {}  # digests of results, by all that makes them
        self.wrongs: list[str] = []

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """A fault that lasts as long as the `with` block, and counts from its beginning."""
        injected = Injected(self.now_s, self.now_s, what)
        self.faults.append(injected)
        try:
            yield
        finally:
            injected.until_s = self.now_s

    async def note(self, client: str, action: str, work: Callable[[], Awaitable[str]], longest_s: float) -> None:
        """Let a client do something, and note how it ended. No end in time is wrong, and so is an error that cannot be
        tried again."""
        began = self.now_s
        try:
            async with asyncio.timeout(longest_s):
                ended = await work()
        except TimeoutError:
            ended = f"no end within {longest_s:.0f} s"
            self.wrong(f"{client}: {action}: {ended}")
        except UniTuneError as error:
            ended = error.reason
            if not may_be_tried_again(error):
                self.wrong(f"{client}: {action}: {error.code.name} {error.reason}: {error}")
        self.outcomes.append(Outcome(began, client, action, ended, self.now_s - began))

    def wrong(self, what: str) -> None:
        """Something that must not be."""
        self.wrongs.append(f"at {self.now_s:.1f} s: {what}")

    def tuning(self, name: str, tenant: str) -> KnownTuning:
        """What is known of a tuning; one that is new is there from now on."""
        return self.tunings.setdefault(name, KnownTuning(name, tenant, self.now_s))

    def same_picture(self, made_of: tuple[str, ...], digest: str) -> None:
        """A result: whatever was made of the same must be the same."""
        if self.pictures.setdefault(made_of, digest) != digest:
            self.wrong(f"the same request gave another picture: {made_of}")

    def count(self, kind: str) -> int:
        """How many faults there were of a kind."""
        return sum(fault.what.startswith(kind) for fault in self.faults)

    def had(self, *kinds: str) -> bool:
        """Whether there was a fault of any of these kinds."""
        return any(self.count(kind) for kind in kinds)

    def by_action(self) -> dict[str, Counter[str]]:
        """How often each action ended how."""
        found: dict[str, Counter[str]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.action, Counter())[outcome.ended] += 1
        return found


def may_be_tried_again(error: UniTuneError) -> bool:
    """Whether an error says that the same request may work later."""
    if isinstance(error, ResourceExhausted):
        return error.retry_after_s is not None
    return isinstance(error, (Unavailable, DeadlineExceeded))
