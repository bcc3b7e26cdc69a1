"""Edits by name, in memory: those that run, and for ten minutes those that ended, with their pictures.

The bytes of all pictures are bounded. The oldest are forgotten first.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from google.rpc.status_pb2 import Status

from gateway.names import Name, missing, new_id, parse
from gateway.relay import Relay
from unitune.errors import Cancelled, UniTuneError
from unitune.v1.edit_pb2 import Edit, EditEvent, Timings

KEPT_S = 600.0
MAX_EDITS = 1000  # ended ones
MAX_BYTES = 128 << 20  # of the pictures of ended ones


class CancelledByOwner(Cancelled):
    """CancelEdit was called."""

    def __init__(self) -> None:
        super().__init__("the edit was cancelled", reason="EDIT_CANCELLED")


class OpenEdit:
    """One edit, from its acceptance on."""

    def __init__(self, tenant: str, on_end: "Callable[[OpenEdit], None]") -> None:
        self.edit = Edit(name=str(Name(tenant, "edits", new_id("e"))), state=Edit.STATE_RUNNING)
        self.relay: Relay[EditEvent] | None = None
        self.waits = False  # for its tuning, or for its turn at the sampler
        self.end_s: float | None = None  # on the monotonic clock
        self.size_bytes = 0  # as it was counted at its end
        self.too_large_bytes = 0  # of its pictures, when no answer could hold them and they are not kept
        self._events = 0
        self._on_end = on_end

    def numbered(self, event: EditEvent) -> EditEvent:
        """The event with its number and time. A heartbeat has no number."""
        if event.WhichOneof("event") != "heartbeat":
            self._events += 1
            event.sequence = self._events
        event.create_time.GetCurrentTime()
        return event

    def done(self, images: list[EditEvent.EditedImage], timings: Timings) -> None:
        """The edit has its pictures."""
        self.edit.images.extend(images)
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
        self.edit.state = state
        self.relay = None
        self.end_s = time.monotonic()
        self._on_end(self)


class EditResults:
    """All edits of this process."""

    def __init__(self) -> None:
        self._edits: dict[str, OpenEdit] = {}
        self._ended: OrderedDict[str, OpenEdit] = OrderedDict()  # the oldest end first
        self._timer: asyncio.TimerHandle | None = None
        self.size_bytes = 0  # of those that ended

    def begin(self, tenant: str) -> OpenEdit:
        """A new edit of a tenant."""
        opened = OpenEdit(tenant, self._end)
        self._edits[opened.edit.name] = opened
        return opened

    def get(self, name: str) -> OpenEdit:
        """An edit by name. Raises NotFound (EDIT_NOT_FOUND)."""
        asked = parse(name, "edits")
        try:
            return self._edits[name]
        except KeyError:
            raise missing(asked) from None

    def cancel(self, name: str) -> Edit:
        """Stop an edit, whatever its reader does. Raises NotFound (EDIT_NOT_FOUND)."""
        opened = self.get(name)
        if opened.relay is not None:
            opened.relay.stop(CancelledByOwner())
            opened.cancelled()
        return opened.edit

    def end_waiting(self, reason: UniTuneError) -> None:
        """End every edit that waits for its tuning or its turn, which may outlast any drain. Other edits go on."""
        for opened in self._edits.values():
            if opened.waits and opened.relay is not None:
                opened.relay.stop(reason)

    def _end(self, opened: OpenEdit) -> None:
        name = opened.edit.name
        if self._ended.pop(name, None) is not None:  # an edit that is cancelled while it fails ends twice
            self.size_bytes -= opened.size_bytes
        opened.size_bytes = opened.edit.ByteSize()
        self.size_bytes += opened.size_bytes
        self._ended[name] = opened
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
