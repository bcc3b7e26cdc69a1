"""Progress that waits a moment to be written, in one transaction for all tuners of a gateway.

A commit that notifies others waits for every other such commit of the database.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from gateway.tuning_records import Report, Standing

Write = Callable[[Sequence[Report]], Awaitable[list[Standing]]]


class ReportBatch:
    """The reports of a moment. It belongs to one event loop."""

    def __init__(self, write: Write, wait_s: float) -> None:
        """`write` keeps reports, and tells of each what became of its attempt."""
        self._write_all = write
        self._wait_s = wait_s
        self._waiting: list[tuple[Report, asyncio.Future[Standing]]] = []
        self._writing: set[asyncio.Task[None]] = set()

    async def add(self, report: Report) -> Standing:
        """Keep a report, together with those that come within the wait."""
        kept = asyncio.get_running_loop().create_future()
        self._waiting.append((report, kept))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._write())
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        return await kept

    async def close(self) -> None:
        """Return once everything is kept."""
        await asyncio.gather(*self._writing)

    async def _write(self) -> None:
        await asyncio.sleep(self._wait_s)
        waiting, self._waiting = self._waiting, []
        try:
            standings = await self._write_all([report for report, _ in waiting])
        except Exception as error:
            for _, kept in waiting:
                if not kept.done():  # as one is whose caller has gone
                    kept.set_exception(error)
            return
        for (_, kept), standing in zip(waiting, standings, strict=True):
            if not kept.done():
                kept.set_result(standing)
