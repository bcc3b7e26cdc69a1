"""Calls that are sent again: after which errors, how often and how long, and what their caller is told of it.

A call is repeated when nobody answered it, its connection broke, or the server says that it cannot do it now
(UNAVAILABLE). That is harmless: uploads are named by their digest, a tuning is found again by its key, and all attempts
at an edit, or a comparison, have one request id: an edit that was done meanwhile is not sampled again. No other error
is repeated, nor anything that makes an API key.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from unitune.errors import ResourceExhausted, Unavailable, UniTuneError
from unitune_client import events
from unitune_client.channel import Untrusted

FIRST_S = 0.1  # of the pauses, each of which is twice as long as the one before
LONGEST_S = 5.0
FIRST_CONTACT_S = 10.0  # patience with an address where nobody ever answered this client: it may be wrong
# Of attempts without any news between them: at which a sampler or tuner had worked, since an edit that ends its sampler
# is not sent for ever; or that the server only took, once they have gone on for as long as a server may be away.
MAX_LOSSES = 5

E = TypeVar("E", bound=events.Event)
OnRetry = Callable[[UniTuneError, float], object]  # why a call is sent again, and after how many seconds


class Backoff:
    """Waits longer after every failure, and gives up when the server has not answered for too long."""

    def __init__(
        self,
        patience_s: Callable[[], float],
        closed: asyncio.Event,
        *,
        on_retry: OnRetry | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """`patience_s` gives the seconds from the last answer. `closed` ends a pause. `timeout_s` is the caller's."""
        self._patience_s, self._closed, self._on_retry = patience_s, closed, on_retry
        self._failures = 0
        self._answered_at = self._now()
        self._ends_at = None if timeout_s is None else self._now() + timeout_s

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def left_s(self) -> float | None:
        """What is left of the caller's time; None if there is no end."""
        return None if self._ends_at is None else max(0.0, self._ends_at - self._now())

    def answered(self) -> None:
        """Begin the patience anew."""
        self._answered_at = self._now()

    def succeeded(self) -> None:
        """Begin the patience and the pauses anew."""
        self.answered()
        self._failures = 0

    def pause_after(self, error: UniTuneError, *, even_if_full: bool = False) -> float:
        """The seconds before the next attempt, not less than the server asks for. Raises `error` if there is none.

        `even_if_full` repeats RESOURCE_EXHAUSTED, too, where the server says when to come again.
        """
        is_full = isinstance(error, ResourceExhausted) and error.retry_after_s is not None
        if not (is_full and even_if_full) and (not isinstance(error, Unavailable) or isinstance(error, Untrusted)):
            raise error
        pause_s = min(LONGEST_S, FIRST_S * 2**self._failures) * random.uniform(0.5, 1.0)
        # A little later than asked, or all who were told the same time would come at once.
        pause_s = max(pause_s, (error.retry_after_s or 0.0) * random.uniform(1.0, 1.25))
        self._failures += 1
        ends_at = self._answered_at + self._patience_s()
        if self._now() + pause_s > (ends_at if self._ends_at is None else min(ends_at, self._ends_at)):
            raise error
        if self._on_retry is not None:
            self._on_retry(error, pause_s)
        return pause_s

    async def pause(self, pause_s: float, *ends: asyncio.Event) -> None:
        """Sleep. It ends at once when the client is closed, or with one of `ends`."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._closed, *ends)]
        try:
            await asyncio.wait(waits, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def wait_after(self, error: UniTuneError, *, even_if_full: bool = False) -> None:
        """Sleep before the next attempt. Raises `error` if there is none."""
        await self.pause(self.pause_after(error, even_if_full=even_if_full))


class Told(Generic[E]):
    """What the caller of a stream has been told, so that a repeat tells only the rest."""

    def __init__(self) -> None:
        self.has_begun = False  # the server took it, once at least
        self.is_over = False  # with an error that no repeat would change
        self.is_repeat = False
        self.began_now = False  # the server took this attempt
        self.cancelled = asyncio.Event()  # by its caller
        self._said_so = False
        self._works_now = False  # a sampler or tuner has told something of this attempt
        self._losses = self._losses_of_work = 0
        self._first_loss_s = 0.0

    def tells(self, event: E) -> bool:
        """Whether the caller is to have this event."""
        self._works_now |= self.is_work(event)
        if self.is_news(event):
            self._losses = self._losses_of_work = 0
            return True
        return not self.is_repeat or self.passes(event)

    def begins(self) -> None:
        """The server took this attempt."""
        self.has_begun = self.began_now = True

    def is_news(self, event: E) -> bool:
        """Whether the event tells more than those before. It is remembered."""
        raise NotImplementedError

    def is_work(self, event: E) -> bool:
        """Whether the event comes of a sampler or a tuner."""
        raise NotImplementedError

    def passes(self, event: E) -> bool:
        """Whether an event of a repeat is told although it is no news."""
        raise NotImplementedError

    def lost(self, error: UniTuneError, patience_s: float) -> events.Retrying | None:
        """Note that the attempt ended early; what the caller is told, once. Raises `error` after too many losses."""
        now_s = time.monotonic()
        if not self._losses:
            self._first_loss_s = now_s
        self._losses += self.began_now
        self._losses_of_work += self._works_now
        is_long = now_s - self._first_loss_s > patience_s
        if self._losses_of_work >= MAX_LOSSES or (self._losses >= MAX_LOSSES and is_long):
            raise error
        self.began_now, self._works_now, self.is_repeat = False, False, True
        if self._said_so or not self.has_begun:
            return None
        self._said_so = True
        return events.Retrying(error=error)


class ToldEdit(Told[events.EditEvent]):
    """What the caller of an edit has been told."""

    def __init__(self) -> None:
        super().__init__()
        self.edit = ""  # the name of the attempt
        self.names = set[str]()  # of all attempts
        self._tuning_sequence, self._step = 0, (0, -1)
        self._others = set[object]()

    def is_news(self, event: events.EditEvent) -> bool:
        """Of steps and of a tuning's events, those beyond the last one; of others, each one once."""
        match event:
            case events.Heartbeat() | events.EditDone():
                return False
            case events.EditAccepted():
                self.edit = event.edit
                self.names.add(event.edit)
                self.begins()
                return False
            case events.EditStep():
                at = (event.attempt, event.index)
                is_news, self._step = at > self._step, max(at, self._step)
                return is_news
            case events.EditLoading():
                return self._first("loading")
            case events.EditWarning():
                return self._first(event.text)
            case events.EditedImage():
                return self._first(event.index)
        self.is_over |= isinstance(event, events.TuningFailed)  # the edit's error is the tuning's own
        is_news = event.sequence > self._tuning_sequence
        self._tuning_sequence = max(event.sequence, self._tuning_sequence)
        return is_news

    def is_work(self, event: events.EditEvent) -> bool:
        """What the server cannot say by itself."""
        work = (events.TuningProgress, events.EditLoading, events.EditStep, events.EditedImage)
        return isinstance(event, work)

    def passes(self, event: events.EditEvent) -> bool:
        """An edit has a new name after a loss."""
        return isinstance(event, (events.EditAccepted, events.EditDone, events.Heartbeat))

    def _first(self, what: object) -> bool:
        is_first = what not in self._others
        self._others.add(what)
        return is_first


class ToldComparison(Told[events.CompareEvent]):
    """What the caller of a comparison has been told."""

    def __init__(self) -> None:
        super().__init__()
        self._asked_s = time.monotonic()
        self._methods: tuple[str, ...] = ()  # of the whole comparison
        self._edits: dict[str, ToldEdit] = {}
        self._results = set[str]()

    @property
    def age_s(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self._asked_s

    @property
    def left(self) -> tuple[str, ...] | None:
        """The methods whose results are not told yet; None before it is known which ones there are."""
        return tuple(method for method in self._methods if method not in self._results) if self._methods else None

    def is_news(self, event: events.CompareEvent) -> bool:
        """As of each method's edit; a method's result once."""
        match event:
            case events.CompareAccepted():
                self.begins()
                self._methods = self._methods or event.methods
                return False
            case events.CompareEdit():
                return self._edits.setdefault(event.method, ToldEdit()).is_news(event.event)
            case events.CompareResult():
                self._results.add(event.method)
                return True
        return False

    def is_work(self, event: events.CompareEvent) -> bool:
        """As of each method's edit."""
        if isinstance(event, events.CompareEdit):
            return self._edits.setdefault(event.method, ToldEdit()).is_work(event.event)
        return False

    def passes(self, event: events.CompareEvent) -> bool:
        """All but what was accepted: a repeat is of the methods that are left."""
        if isinstance(event, events.CompareEdit):
            return self._edits[event.method].passes(event.event)
        return isinstance(event, (events.CompareDone, events.Heartbeat))
