"""The gateways as a tuner calls them. One at a time; when it does not answer, the next."""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any, cast

import grpc
from grpc_status import rpc_status

from unitune import peers, serving, telemetry
from unitune.certificates import CertificateReader
from unitune.errors import Unavailable, UniTuneError, from_status
from unitune.v1.tuner_pb2 import (
    AnnounceRequest,
    AnnounceResponse,
    ReportTuningRequest,
    ReportTuningResponse,
    TakeTuningRequest,
    TakeTuningResponse,
)
from unitune.v1.tuner_pb2_grpc import TunerPoolServiceStub

logger = logging.getLogger(__name__)

CALL_S = 5.0  # deadline of a call, beyond the time that it asks the gateway to wait
LOOKS_S = 5.0  # between two looks for changed certificates
OLD_S = 40.0  # for which a connection with a replaced certificate is kept; longer than any call
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 2.0  # before a call is repeated


class Gateways:
    """All gateways of one tuner. It belongs to one event loop."""

    def __init__(self, addresses: Sequence[str], certificates: CertificateReader | None = None) -> None:
        """Each address is HOST:PORT of a gateway, or of a name that stands for several. `certificates` are those by
        which the services know each other."""
        self._addresses, self._certificates = addresses, certificates
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._connect()
        self._old: set[asyncio.Task[None]] = set()  # connections whose certificate was replaced
        self._looks_again_s = 0.0
        self._current = 0
        self.is_away = False  # the last call got no answer

    async def close(self) -> None:
        """Close all connections."""
        for task in self._old:
            task.cancel()
        await asyncio.gather(*self._old, return_exceptions=True)
        await _close(self._channels)

    def _connect(self) -> None:
        credentials = self._certificates.channel_credentials() if self._certificates is not None else None
        self._certificate = self._certificates.current if self._certificates is not None else None
        self._channels = [
            serving.channel(address, credentials=credentials, name=peers.GATEWAY) for address in self._addresses
        ]
        self._stubs = [TunerPoolServiceStub(channel) for channel in self._channels]

    def _renew(self) -> None:
        """Connect anew if the certificates have changed. Calls that run end over their old connections."""
        if self._certificates is None or time.monotonic() < self._looks_again_s:
            return
        self._looks_again_s = time.monotonic() + LOOKS_S
        if self._certificates.newest() is not self._certificate:
            task = asyncio.create_task(_close(self._channels, after_s=OLD_S))
            self._old.add(task)
            task.add_done_callback(self._old.discard)
            self._connect()

    async def announce(self, request: AnnounceRequest) -> AnnounceResponse:
        """Say what the tuner is, until a gateway answers."""
        answer: AnnounceResponse = await self._repeated("Announce", request)
        return answer

    async def take(self, request: TakeTuningRequest, wait_s: float) -> TakeTuningResponse:
        """Ask once for a tuning; `wait_s` is how long the gateway may wait for one. Raises UniTuneError."""
        request.wait.FromMilliseconds(round(1000 * wait_s))
        answer: TakeTuningResponse = await self._call("TakeTuning", request, wait_s)
        return answer

    async def report_once(self, request: ReportTuningRequest, wait_s: float = 0.0) -> ReportTuningResponse:
        """Report, without repeating it. `wait_s` is how long the gateway may wait. Raises UniTuneError."""
        answer: ReportTuningResponse = await self._call("ReportTuning", request, wait_s)
        return answer

    async def report(self, request: ReportTuningRequest, wait_s: float = 0.0) -> ReportTuningResponse:
        """Report until a gateway has kept it. `wait_s` is how long the gateway may wait with its answer."""
        answer: ReportTuningResponse = await self._repeated("ReportTuning", request, wait_s)
        return answer

    async def _repeated(self, method: str, request: Any, wait_s: float = 0.0) -> Any:
        pause_s = FIRST_WAIT_S
        while True:
            try:
                return await self._call(method, request, wait_s)
            except UniTuneError:  # whatever it is: the lease bounds how long it matters
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))
                pause_s = min(2 * pause_s, LONGEST_WAIT_S)

    async def _call(self, method: str, request: Any, wait_s: float = 0.0) -> Any:
        self._renew()
        try:
            answer = await getattr(self._stubs[self._current], method)(request, timeout=wait_s + CALL_S)
        except grpc.aio.AioRpcError as error:
            raise self._translated(method, error) from None
        if self.is_away:
            self.is_away = False
            telemetry.event(logger, "gateway answers again")
        return answer

    def _translated(self, method: str, error: grpc.aio.AioRpcError) -> UniTuneError:
        status = rpc_status.from_call(cast(grpc.Call, error))
        failed = from_status(status) if status is not None else None
        if not self.is_away:
            problem = "gateway does not answer" if failed is None else "gateway keeps no report"
            code, detail = error.code().name, error.details() or ""
            telemetry.event(logger, problem, level=logging.WARNING, method=method, code=code, detail=detail)
        self.is_away = True
        self._current = (self._current + 1) % len(self._stubs)
        return failed or Unavailable("no gateway answers now", reason="BACKEND_DOWN", metadata={"upstream": "gateway"})


async def _close(channels: Sequence[grpc.aio.Channel], after_s: float = 0.0) -> None:
    """Close them after a while, or at once when it is cancelled."""
    try:
        await asyncio.sleep(after_s)
    finally:
        for channel in channels:
            await channel.close(None)
