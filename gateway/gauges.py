"""Tells the metrics how long the queues are, at intervals: Prometheus asks on another thread than the event loop's."""

import asyncio
import logging
import time

from gateway.fair_queue import FairQueue
from gateway.state import State
from unitune import metrics, telemetry

logger = logging.getLogger(__name__)

EVERY_S = 2.0


class Gauges:
    """The queues of one gateway."""

    def __init__(self, state: State, turns: FairQueue) -> None:
        self._state = state
        self._turns = turns

    async def run(self) -> None:
        """Look at intervals."""
        while True:
            try:
                await self.look()
            except Exception:  # such as a state that cannot be read now; the next round tries again
                telemetry.failure(logger, "queues not measured")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Set the gauges to what is so now."""
        metrics.EDITS.labels("waiting").set(self._turns.num_waiting)
        metrics.EDITS.labels("running").set(self._turns.num_taken)
        metrics.OLDEST_WAIT_S.labels("edits").set(self._turns.oldest_wait_s)
        queue = await self._state.queue_now()
        metrics.TUNINGS.labels("queued").set(queue.queued)
        metrics.TUNINGS.labels("running").set(queue.running)
        waits_s = max(0.0, time.time() - queue.since_s) if queue.since_s is not None else 0.0
        metrics.OLDEST_WAIT_S.labels("tunings").set(waits_s)
