"""Edits by name: those that run, and for ten minutes those that ended, with their pictures, in memory."""

import time
from collections import OrderedDict

from google.rpc.status_pb2 import Status

from gateway.names import Name, new_id, parse
from gateway.relay import Relay
from unitune.errors import Cancelled, NotFound, UniTuneError
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

    def __init__(self, tenant: str) -> None:
        self.edit = Edit(name=str(Name(tenant, "edits", new_id("e"))), state=Edit.STATE_RUNNING)
        self.relay: Relay[EditEvent] | None = None
        self.awaits_tuning = False
        self.end_s: float | None = None  # on the monotonic clock
        self.size_bytes = 0
        self.too_large_bytes = 0  # of its pictures, when no answer could hold them and they are not kept
        self._events = 0

    def numbered(self, event: EditEvent) -> EditEvent:
        """The event with its number and time; a heartbeat has no number."""
        if event.WhichOneof("event") != "heartbeat":
            self._events += 1
            event.sequence = self._events
        event.create_time.GetCurrentTime()
        return event

    def done(self, images: list[EditEvent.EditedImage], timings: Timings) -> None:
        """It has its pictures."""
        self.edit.images.extend(images)
        self.edit.timings.CopyFrom(timings)
        self._end(Edit.STATE_DONE)

    def failed(self, error: Status) -> None:
        """It ended with an error."""
        self.edit.error.CopyFrom(error)
        self._end(Edit.STATE_FAILED)

    def cancelled(self) -> None:
        """It was stopped; after its end this changes nothing."""
        if self.end_s is None:
            self._end(Edit.STATE_CANCELLED)

    def _end(self, state: Edit.State) -> None:
        self.edit.state = state
        self.relay = None
        self.end_s = time.monotonic()
        self.size_bytes = self.edit.ByteSize()


class EditResults:
    """All edits of this process."""

    def __init__(self) -> None:
        self._edits: OrderedDict[str, OpenEdit] = OrderedDict()

    def begin(self, tenant: str) -> OpenEdit:
        """A new edit of a tenant."""
        self._forget()
        opened = OpenEdit(tenant)
        self._edits[opened.edit.name] = opened
        return opened

    def get(self, name: str) -> OpenEdit:
        """An edit by name. Raises NotFound (EDIT_NOT_FOUND)."""
        parse(name, "edits")
        self._forget()
        try:
            return self._edits[name]
        except KeyError:
            raise NotFound(f"there is no edit {name}", reason="EDIT_NOT_FOUND", metadata={"name": name}) from None

    def cancel(self, name: str) -> Edit:
        """Stop an edit, whatever its reader does. Raises NotFound (EDIT_NOT_FOUND)."""
        opened = self.get(name)
        if opened.relay is not None:
            opened.relay.stop(CancelledByOwner())
            opened.cancelled()
        return opened.edit

    def end_waiting(self, why: UniTuneError) -> None:
        """End every edit that waits for its tuning, which may outlast any drain; those that sample go on."""
        for opened in self._edits.values():
            if opened.awaits_tuning and opened.relay is not None:
                opened.relay.stop(why)

    def _forget(self) -> None:
        """Drop what ended too long ago, and the oldest of what would be too much."""
        ended = [(name, opened) for name, opened in self._edits.items() if opened.end_s is not None]
        count, size = len(ended), sum(opened.size_bytes for _, opened in ended)
        for name, opened in ended:
            is_old = opened.end_s is not None and time.monotonic() - opened.end_s > KEPT_S
            if is_old or count > MAX_EDITS or size > MAX_BYTES:
                del self._edits[name]
                count, size = count - 1, size - opened.size_bytes
