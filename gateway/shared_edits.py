"""The edits that gateways with one state tell each other of: who runs them, how they ended, and that one is cancelled.

An edit runs at one gateway. Its row is the truth: what is CANCELLED there stays so. A gateway that has shown no sign of
life for a while has died with its edits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from google.rpc.status_pb2 import Status

from gateway.database import EVERY_TOPIC, until_answered
from gateway.state import State
from unitune.errors import Unavailable, UniTuneError, to_status
from unitune.v1.edit_pb2 import Edit

T = TypeVar("T")

END_S = 3.0  # at the end, for what others have not been told yet
ALIVE_S = 5.0  # between two signs of life of a gateway, and between two sweeps


class SharedEdits:
    """The edits of one gateway among those of all. It belongs to one event loop."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._cancel: Callable[[str], object] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: dict[str, asyncio.Future[Any]] = {}
        self._ending = set[str]()  # names of edits whose end is being told
        self._is_known: Callable[[str], bool] = lambda name: True
        state.database.listen(self._notified)

    def serve(self, cancel: Callable[[str], object], is_known: Callable[[str], bool]) -> None:
        """Have `cancel` called for an edit that another gateway cancels; it knows which ones run here. `is_known` says
        whether one runs here, or ended not long ago."""
        self._cancel, self._is_known = cancel, is_known

    async def begin(self, edit: Edit) -> None:
        """An edit runs here from now on."""
        await self.note(edit, self._state.begin_edit(edit))

    async def note(self, edit: Edit, entering: Awaitable[T]) -> T:
        """Have an edit entered by a transaction. If its caller leaves meanwhile, its end is told all the same."""
        begun: asyncio.Future[T] = asyncio.ensure_future(entering)
        self._begun[edit.name] = begun
        return await asyncio.shield(begun)

    def drop(self, edit: Edit) -> None:
        """It was not entered, and has no end."""
        self._begun.pop(edit.name, None)

    def end(self, edit: Edit) -> None:
        """It has ended. The others hear of it in a moment."""
        ended = Edit()
        ended.CopyFrom(edit)
        self._ending.add(edit.name)
        self._do(self._tell_end(ended))

    async def _tell_end(self, edit: Edit) -> None:
        try:
            if (begun := self._begun.pop(edit.name, None)) is not None:
                await asyncio.wait({begun})
            # Else its row would be RUNNING for as long as this gateway lives.
            await until_answered(lambda: self._state.end_edit(edit), ALIVE_S)
        finally:
            self._ending.discard(edit.name)

    async def _end_unknown(self) -> None:
        """End what the state has as RUNNING here and is not: a commit whose answer was lost has entered it, and its
        caller was told that the state is away."""
        for name in await self._state.running_edits():
            if name not in self._ending and not self._is_known(name):
                self.end(Edit(name=name, state=Edit.STATE_CANCELLED))

    async def find(self, name: str) -> Edit | None:
        """An edit of any gateway, without its pictures."""
        found = await self._state.find_edit(name)
        if found is None:
            return None
        edit, is_lost = found
        if is_lost:
            edit.state = Edit.STATE_FAILED
            edit.error.CopyFrom(_lost())
        return edit

    async def cancel(self, name: str) -> Edit | None:
        """Cancel an edit of another gateway, which stops it once it hears of that."""
        return await self._state.cancel_edit(name)

    async def run(self) -> None:
        """Show signs of life, and forget what ended long ago, until cancelled."""
        try:
            while True:
                with suppress(UniTuneError):  # which is in the log
                    await self._state.sweep_edits()
                    await self._end_unknown()
                await asyncio.sleep(ALIVE_S)
        finally:
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=END_S)
                for task in late:  # the database is away; other gateways see that this one is gone
                    task.cancel()

    def _notified(self, topic: str) -> None:
        if topic == EVERY_TOPIC:
            self._do(self._look())
        elif self._cancel is not None:
            self._cancel(topic)

    async def _look(self) -> None:
        """Cancel what was cancelled while nothing was heard."""
        for name in await until_answered(self._state.cancelled_edits, ALIVE_S):  # no notification need follow
            if self._cancel is not None:
                self._cancel(name)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _lost() -> Status:
    return to_status(
        Unavailable("the gateway that ran this edit is gone: edit again", reason="GATEWAY_LOST", retry_after_s=1.0)
    )
