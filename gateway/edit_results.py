"""Edits by name: those that run, and for ten minutes those that ended. Their pictures are in the object store.

The number of ended ones and the bytes of all pictures are bounded. The oldest are forgotten first.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from google.rpc.status_pb2 import Status

from gateway.admission import of_tenant
from gateway.fair_queue import FairQueue
from gateway.names import Name, missing, new_id, parse
from gateway.relay import Relay
from gateway.shared_edits import SharedEdits
from gateway.stored_edits import KEPT_S, EditPictures, StoredEdits, not_kept
from unitune import metrics, telemetry
from unitune.errors import Cancelled, UniTuneError
from unitune.v1.edit_pb2 import Edit, EditEvent, Timings

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_EDITS = 1000  # ended ones
MAX_BYTES = 1 << 30  # of the pictures of ended ones, in the store
ANSWERS, ANSWERS_OF_TENANT = 12, 3  # of GetEdit that are in memory at a time, and
WAITING_ANSWERS = 256  # of a tenant that wait to be
NOT_TAKEN = 8  # of a tenant, whose readers do not read and do not go
RETRY_ANSWER_S = 2.0


def new_edit(tenant: str) -> str:
    """The name of a new edit of a tenant."""
    return str(Name(tenant, "edits", new_id("e")))


class CancelledByOwner(Cancelled):
    """CancelEdit was called."""

    def __init__(self) -> None:
        super().__init__("the edit was cancelled", reason="EDIT_CANCELLED")


class OpenEdit:
    """One edit, from its acceptance on."""

    def __init__(self, name: str, stored: StoredEdits, on_end: "Callable[[OpenEdit], None]") -> None:
        self.edit = Edit(name=name, state=Edit.STATE_RUNNING)
        self.pictures = stored.pictures(self.edit.name)
        self.relay: Relay[EditEvent] | None = None
        self.request_id = ""  # of its caller
        self.is_entered = False  # other gateways know of it
        self.waits = False  # for its tuning, or for its turn at the sampler
        self.end_s: float | None = None  # on the monotonic clock
        self.size_bytes = 0  # as it was counted at its end
        self._events = 0
        self._on_end = on_end

    def numbered(self, event: EditEvent) -> EditEvent:
        """The event with its number and time. A heartbeat has no number."""
        if event.WhichOneof("event") != "heartbeat":
            self._events += 1
            event.sequence = self._events
        event.create_time.GetCurrentTime()
        return event

    def done(self, timings: Timings) -> None:
        """The edit has its pictures."""
        self.edit.timings.CopyFrom(timings)
        self._end(Edit.STATE_DONE)

    def failed(self, error: Status) -> None:
        """The edit ended with an error."""
        self.edit.error.CopyFrom(error)
        self._end(Edit.STATE_FAILED)

    def cancelled(self) -> None:
        """The edit was stopped. After its end this has no effect."""
        if self.end_s is None:
            self._end(Edit.STATE_CANCELLED)

    def _end(self, state: Edit.State) -> None:
        if self.end_s is None:
            metrics.EDIT_ENDS.labels(Edit.State.Name(state).removeprefix("STATE_").lower()).inc()
        self.edit.state = state
        self.relay = None
        self.pictures.close()
        self.end_s = time.monotonic()
        self._on_end(self)


class EditResults:
    """All edits of this process, and by `shared` those of other gateways."""

    def __init__(self, stored: StoredEdits, shared: SharedEdits | None = None) -> None:
        self._stored = stored
        self._shared = shared
        if shared is not None:
            shared.serve(lambda name: self.cancel(name) if name in self._edits else None, self.is_known)
        self._discards: set[asyncio.Task[None]] = set()
        self._edits: dict[str, OpenEdit] = {}
        self._ended: OrderedDict[str, OpenEdit] = OrderedDict()  # the oldest end first
        self._answers = FairQueue(ANSWERS, ANSWERS_OF_TENANT)
        self._not_taken = Counter[str]()  # by tenant
        self._end_reason: UniTuneError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.size_bytes = 0  # of those that ended

    def begin(self, name: str) -> OpenEdit:
        """A new edit, whose name `new_edit` made."""
        opened = OpenEdit(name, self._stored, self._end)
        self._edits[opened.edit.name] = opened
        return opened

    async def enter(self, opened: OpenEdit) -> None:
        """Have other gateways know of an edit that begins."""
        if self._shared is not None and not opened.is_entered:
            await self._shared.begin(opened.edit)

    async def enter_by(self, opened: OpenEdit, entering: Awaitable[T]) -> T:
        """The same by a transaction that does more, whose answer this is."""
        return await (entering if self._shared is None else self._shared.note(opened.edit, entering))

    def drop(self, opened: OpenEdit) -> None:
        """Forget an edit that did not begin."""
        del self._edits[opened.edit.name]
        if self._shared is not None:
            self._shared.drop(opened.edit)

    def is_known(self, name: str) -> bool:
        """Whether an edit runs here, or ended not long ago."""
        return name in self._edits

    def get(self, name: str) -> OpenEdit:
        """An edit of this process by name. Raises NotFound (EDIT_NOT_FOUND)."""
        asked = parse(name, "edits")
        try:
            return self._edits[name]
        except KeyError:
            raise missing(asked) from None

    async def read(self, name: str, *, urls: bool = False) -> Edit:
        """An edit with its pictures, or with URLs of them, also one that an earlier process has done.

        Raises NotFound (EDIT_NOT_FOUND), and as `StoredEdits.read` does.
        """
        asked = parse(name, "edits")
        opened = self._edits.get(name)
        if opened is not None and opened.edit.state != Edit.STATE_DONE:
            return opened.edit
        if opened is not None and opened.pictures.failure is not None:
            raise not_kept(opened.pictures.failure)
        edit = await self._stored.read(name, urls=urls)
        if edit is None and opened is None and self._shared is not None:
            edit = await self._shared.find(name)
            if edit is not None and edit.state == Edit.STATE_DONE:  # and its pictures are gone
                edit = None
        if edit is None:
            raise missing(asked)
        return edit

    @asynccontextmanager
    async def reading(self, name: str, *, urls: bool = False) -> AsyncIterator[Edit]:
        """The same for as long as the block lasts, in which its reader takes it. Few are read at a time: each may have
        as many bytes as a message, however slowly it is taken.

        Raises ResourceExhausted (TOO_MANY_CALLS), too, when too many of the tenant wait, or were not taken.
        """
        tenant = parse(name, "edits").tenant
        opened = self._edits.get(name)
        if opened is not None and opened.edit.state != Edit.STATE_DONE:  # and it has no pictures yet
            yield opened.edit
            return
        if self._answers.num_waiting_of(tenant) >= WAITING_ANSWERS:
            message = f"{WAITING_ANSWERS} results of this tenant wait to be read: read some"
            raise of_tenant(tenant, WAITING_ANSWERS, message, "TOO_MANY_CALLS", RETRY_ANSWER_S)
        if self._not_taken[tenant] >= NOT_TAKEN:
            message = f"{NOT_TAKEN} results that this tenant asked for are not taken: take them, or end the calls"
            raise of_tenant(tenant, NOT_TAKEN, message, "TOO_MANY_CALLS", RETRY_ANSWER_S)
        async with self._answers.place(tenant):
            yield await self.read(name, urls=urls)

    def not_taken(self, name: str, writing: "asyncio.Future[Any]") -> None:
        """Nobody took a result in time. It is in memory until `writing` ends."""
        tenant = parse(name, "edits").tenant
        self._not_taken[tenant] += 1

        def taken(_: object) -> None:
            self._not_taken[tenant] -= 1
            self._not_taken += Counter()  # without the tenants that have none

        writing.add_done_callback(taken)

    async def look(self, name: str) -> Edit | None:
        """An edit of any gateway without its pictures; None if it is not known, or is done and has them no more."""
        opened = self._edits.get(name)
        if opened is not None and opened.edit.state != Edit.STATE_DONE:
            return opened.edit
        if opened is None and self._shared is not None:
            edit = await self._shared.find(name)
            if edit is not None and edit.state != Edit.STATE_DONE:
                return edit
        return await self._stored.find(name)

    def kept(self, name: str) -> EditPictures:
        """What reads pictures of an edit again: of one of this process, or of one that is done and was joined."""
        opened = self._edits.get(name)
        return self._stored.pictures(name, are_kept=True) if opened is None else opened.pictures

    def pictures(self, name: str) -> AsyncGenerator[EditEvent, None]:
        """The events that bring the pictures of an edit that is done, from the store."""
        return self._stored.events(name)

    async def finish(self, opened: OpenEdit, timings: Timings) -> None:
        """Store what is known of an edit that is done, for GetEdit."""
        if opened.pictures.failure is None:
            edit = opened.edit
            await self._stored.finish(Edit(name=edit.name, tuning=edit.tuning, state=Edit.STATE_DONE, timings=timings))

    async def forget(self, tuning: str) -> None:
        """Forget the results of all edits of a tuning that is deleted, in the store, too."""
        await self._stored.discard_of(tuning)

    def cancel(self, name: str) -> Edit:
        """Stop an edit of this process, whatever its reader does. Raises NotFound (EDIT_NOT_FOUND)."""
        opened = self.get(name)
        if opened.relay is not None:
            opened.relay.stop(CancelledByOwner())
            opened.cancelled()
        return opened.edit

    async def cancel_anywhere(self, name: str) -> Edit:
        """The same of an edit of any gateway, which stops it once it hears of that."""
        if self._shared is None or name in self._edits:
            return self.cancel(name)
        asked = parse(name, "edits")
        edit = await self._shared.cancel(name)
        if edit is None:
            raise missing(asked)
        return edit

    @contextmanager
    def waiting(self, opened: OpenEdit) -> Iterator[None]:
        """An edit waits in the block, for its tuning or for its turn. Raises what `end_waiting` was told before."""
        if self._end_reason is not None:
            raise self._end_reason
        opened.waits = True
        try:
            yield
        finally:
            opened.waits = False

    def end_waiting(self, reason: UniTuneError) -> None:
        """End every edit that waits for its tuning or its turn, now or later: that may outlast any drain. Other edits
        go on."""
        self._end_reason = reason
        for opened in self._edits.values():
            if opened.waits and opened.relay is not None:
                opened.relay.stop(reason)

    def _end(self, opened: OpenEdit) -> None:
        name = opened.edit.name
        if self._ended.pop(name, None) is not None:  # an edit that is cancelled while it fails ends twice
            self.size_bytes -= opened.size_bytes
        opened.size_bytes = opened.edit.ByteSize() + opened.pictures.size_bytes
        self.size_bytes += opened.size_bytes
        self._ended[name] = opened
        if self._shared is not None:
            self._shared.end(opened.edit)
        self._forget()

    def _forget(self) -> None:
        """Forget edits that ended too long ago, and the oldest of too many. A timer comes back for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = time.monotonic()
        while self._ended:
            name, oldest = next(iter(self._ended.items()))
            left_s = KEPT_S - (now_s - (oldest.end_s or now_s))
            if left_s > 0 and len(self._ended) <= MAX_EDITS and self.size_bytes <= MAX_BYTES:
                self._timer = asyncio.get_running_loop().call_later(left_s, self._forget)
                return
            del self._ended[name], self._edits[name]
            self.size_bytes -= oldest.size_bytes
            if oldest.pictures.size_bytes:
                discard = asyncio.create_task(self.discard(name))
                self._discards.add(discard)
                discard.add_done_callback(self._discards.discard)

    async def discard(self, name: str) -> None:
        """Delete the results of an edit, now or by the next sweep."""
        try:
            await self._stored.discard(name)
        except UniTuneError as error:  # the next sweep of the store finds it
            telemetry.event(logger, "result not deleted", level=logging.WARNING, edit=name, reason=error.reason)
