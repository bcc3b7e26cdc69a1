"""A gateway as its tuner sees it: a real server on a real socket that gives out what a test assigns.

A test asks for moments that a whole gateway does not give on demand: a lease that is lost between weights and report,
an answer that does not come, a gateway that is away.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from unitune import serving
from unitune.v1 import tuner_pb2, tuner_pb2_grpc
from unitune.v1.tuner_pb2 import Assignment, ReportTuningRequest, ReportTuningResponse

TERMINAL = {"done", "failed", "give_back"}


class Run:
    """One assignment and what was reported of it, without `alive`. It is read once."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.order = "noted"  # to every report
        self.lost_after_update = 10**9  # once a checkpoint of so many updates is noted
        self.reports: list[ReportTuningRequest] = []
        self.changed = asyncio.Event()
        self._read = 0

    def say(self, order: str) -> None:
        """From now on this is the answer to every report."""
        self.order = order
        self._ring()

    def add(self, report: ReportTuningRequest) -> None:
        """A report has come."""
        self.reports.append(report)
        self._ring()

    async def __aiter__(self) -> AsyncIterator[ReportTuningRequest]:
        while True:
            while self._read == len(self.reports):
                await self.wait()
            self._read += 1
            yield self.reports[self._read - 1]
            if self.reports[self._read - 1].WhichOneof("report") in TERMINAL:
                return

    async def wait(self) -> None:
        """Until a report comes or the order changes."""
        await self.changed.wait()

    def _ring(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Pool(tuner_pb2_grpc.TunerPoolServiceServicer):
    """Gives out assignments in order, one tuner at a time, and keeps all reports."""

    def __init__(self, lease_s: float = 6.0) -> None:
        self.lease_s = lease_s
        self.info = tuner_pb2.TunerInfo()
        self.processes: list[tuner_pb2.TunerProcess] = []  # as they asked
        self.given: Run | None = None
        self.num_alive = 0  # reports that a run goes on
        self.drops = 0  # so many ends of runs are kept, and their answer is lost
        self._waiting: asyncio.Queue[Run] = asyncio.Queue()

    def assign(self, assignment: Assignment) -> Run:
        """Have it run."""
        run = Run(assignment)
        self._waiting.put_nowait(run)
        return run

    async def Announce(self, request: tuner_pb2.AnnounceRequest, context: Any) -> tuner_pb2.AnnounceResponse:
        self.info = request.info
        answer = tuner_pb2.AnnounceResponse()
        answer.lease.FromMilliseconds(round(1000 * self.lease_s))
        return answer

    async def TakeTuning(self, request: tuner_pb2.TakeTuningRequest, context: Any) -> tuner_pb2.TakeTuningResponse:
        self.processes.append(request.tuner)
        try:
            self.given = await asyncio.wait_for(self._waiting.get(), request.wait.ToMilliseconds() / 1000)
        except TimeoutError:
            return tuner_pb2.TakeTuningResponse()
        return tuner_pb2.TakeTuningResponse(assignment=self.given.assignment)

    async def ReportTuning(self, request: ReportTuningRequest, context: Any) -> ReportTuningResponse:
        run = self.given
        assert run is not None
        assert (request.name, request.attempt) == (run.assignment.name, run.assignment.attempt)
        kind = request.WhichOneof("report")
        if kind != "alive":
            run.add(request)
        elif run.order == "noted":
            self.num_alive += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(request.alive.wait.ToMilliseconds() / 1000):
                    while run.order == "noted":
                        await run.wait()
        if request.checkpoint.update >= run.lost_after_update:
            run.order = "lease_lost"
            return ReportTuningResponse(noted=Empty())
        if kind in TERMINAL and self.drops:
            self.drops -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return ReportTuningResponse(**{run.order: Empty()})


async def serve_pool(pool: Pool, address: str = "127.0.0.1:0") -> serving.RunningServer:
    """Start it; the caller stops it."""

    def register(server: grpc.aio.Server) -> list[str]:
        tuner_pb2_grpc.add_TunerPoolServiceServicer_to_server(pool, server)
        return ["unitune.v1.TunerPoolService"]

    return await serving.start(address, register)
