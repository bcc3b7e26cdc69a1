"""Tells callers and metrics how long the queues are, at intervals: Prometheus asks on a thread of its own."""

import asyncio
import logging
import time

from gateway.fair_queue import FairQueue
from gateway.state import State
from unitune import metrics, telemetry
from unitune.v1.server_pb2 import Queue

logger = logging.getLogger(__name__)

EVERY_S = 2.0


class Gauges:
    """The queues of one gateway."""

    def __init__(self, state: State, turns: FairQueue) -> None:
        self._state = state
        self._turns = turns
        self.queue = Queue()  # as it was at the last look

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
        tunings = await self._state.queue_now()
        self.queue = Queue(
            tunings_queued=tunings.queued,
            tunings_running=tunings.running,
            edits_waiting=self._turns.num_waiting,
            edits_running=self._turns.num_taken,
            oldest_tuning_s=max(0.0, time.time() - tunings.since_s) if tunings.since_s is not None else 0.0,
            oldest_edit_s=self._turns.oldest_wait_s,
        )
        metrics.EDITS.labels("waiting").set(self.queue.edits_waiting)
        metrics.EDITS.labels("running").set(self.queue.edits_running)
        metrics.TUNINGS.labels("queued").set(self.queue.tunings_queued)
        metrics.TUNINGS.labels("running").set(self.queue.tunings_running)
        metrics.OLDEST_WAIT_S.labels("tunings").set(self.queue.oldest_tuning_s)
        metrics.OLDEST_WAIT_S.labels("edits").set(self.queue.oldest_edit_s)
