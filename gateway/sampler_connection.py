"""One sampler as the gateway calls it: channels, deadlines, retries, errors, and what it says of itself.

Only calls that change nothing are repeated, and a stream of samples only before its first event. An error that a
service sent with details is passed on unchanged. A service that did not answer is Unavailable (BACKEND_DOWN), and the
log alone has gRPC's own words. A service that stands still is Unavailable, too: its connection may live on for minutes,
but no heartbeat comes in its streams.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import grpc
from grpc_status import rpc_status

from gateway.sampler_choice import Replica
from gateway.upstreams import CALL_S, unanswered
from unitune import peers, serving, telemetry
from unitune.certificates import CertificateReader
from unitune.errors import Internal, ResourceExhausted, UniTuneError, from_status
from unitune.v1.sampler_pb2 import (
    CheckTuningRequest,
    EvictRequest,
    GetSamplerInfoRequest,
    LoadRequest,
    ReplicaState,
    SampleEvent,
    SampleRequest,
    SamplerInfo,
    WatchReplicaRequest,
)
from unitune.v1.sampler_pb2_grpc import SamplerServiceStub
from unitune.v1.tuning_pb2 import TuningConfig, WeightsRef

logger = logging.getLogger(__name__)

LOAD_S = 60.0  # deadline of Load, which is slow for a large model and for which nobody waits
SILENCE_CHECKS = 15  # within the longest silence of a stream
END_S = 1.0  # for a stream to end after its last event
WATCH_S = 60.0  # of one watch; the next one begins with all that the sampler holds
WATCH_AGAIN_S = 0.5  # after a watch that broke off
STALE_S = 3.0  # of a state, which comes once a second at least
FAULTS = 2  # edits that fail one after the other by a fault of the sampler, before it is the last choice
FAULTY_S = 10.0  # for which it is then, until another edit tries it
STATE_LAG_S = 0.2  # from an edit's dispatch to a state that has it, at most ten times a second

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # its stubs lack it
_LAST_EVENTS = ("done", "failed", "cancelled")

_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_IDEMPOTENT = {
    # A stream is repeated only before its first event: one that was refused, or ended with its connection.
    "unitune.v1.SamplerService": ("GetSamplerInfo", "CheckSample", "CheckTuning", "Evict", "Sample"),
}
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {"name": [{"service": service, "method": method} for method in methods], "retryPolicy": _RETRY}
            for service, methods in _IDEMPOTENT.items()
        ]
    }
)


Forget = Callable[["SamplerConnection", Sequence[WeightsRef]], Awaitable[None]]


class SamplerConnection:
    """One sampler, at one address. `is_named` is for its owner: whether the address is still one of a sampler."""

    def __init__(
        self,
        address: str,
        *,
        silence_s: float = serving.SILENCE_S,
        certificates: CertificateReader | None = None,
    ) -> None:
        """`silence_s` is the longest time without an event in a stream. `certificates` are those by which the services
        know each other.
        """
        self._silence_s = silence_s
        self.address, self._certificates = address, certificates
        self._connections = Connections(address, certificates)
        self._old: set[asyncio.Task[None]] = set()  # of connections whose certificate was replaced
        self.is_named = True
        self.known: SamplerInfo | None = None  # as it last answered
        self._is_silent = False  # it did not answer when last asked
        self._has_answered = False
        self._state = ReplicaState()
        self._resident, self._loading, self._kept = frozenset[str](), frozenset[str](), frozenset[str]()  # of it
        self._state_s = -math.inf  # when it came
        self._ends_watch = False
        self._forgetting: asyncio.Future[None] | None = None
        self._faults, self._faulty_until_s = 0, -math.inf
        self.in_flight = 0  # edits
        self._unacknowledged: list[tuple[float, str]] = []  # when they were sent, and with which weights

    @property
    def is_answering(self) -> bool:
        """Whether it answered when it was last asked, or told its state."""
        return self._has_answered and not self._is_silent

    @property
    def is_unheard(self) -> bool:
        """Whether it is new: it has not answered yet, and has not failed to."""
        return self.known is None and not self._is_silent

    @property
    def is_watched(self) -> bool:
        """Whether its state is known now."""
        return time.monotonic() - self._state_s < STALE_S

    @property
    def is_draining(self) -> bool:
        """Whether it said that it takes no more edits."""
        return self.is_watched and self._state.draining

    @property
    def is_faulty(self) -> bool:
        """Whether its last edits all failed by a fault of its own. Its queue is short, and draws more of them."""
        return time.monotonic() < self._faulty_until_s

    @property
    def epoch(self) -> str:
        """The name of its process, if that is known now; else the address."""
        return (self._state.epoch if self.is_watched else "") or self.address

    def replica(self) -> Replica:
        """What is known of it for a choice."""
        if not self.is_watched:
            return Replica(self.address, in_flight=self.in_flight, unacknowledged=len(self._unacknowledged))
        state = self._state
        self._unacknowledged = [one for one in self._unacknowledged if one[0] > self._state_s - STATE_LAG_S]
        return Replica(
            address=self.address,
            resident=self._resident,
            loading=self._loading.union(weights for _, weights in self._unacknowledged if weights),
            kept=self._kept,
            engines=max(1, state.engines),
            runs=state.running + state.waiting,
            queued_s=state.queued_s,
            edit_s=state.edit_s,
            refit_s=state.refit_s,
            kept_refit_s=state.kept_refit_s,
            in_flight=self.in_flight,
            unacknowledged=len(self._unacknowledged),
        )

    async def close(self) -> None:
        """Close the channels; calls that run are cancelled."""
        self._stop_forgetting()
        for task in self._old:
            task.cancel()
        await asyncio.gather(*self._old, return_exceptions=True)
        await self._connections.close()

    def renew(self) -> None:
        """Connect anew if the certificate has changed. What runs goes on over its old connection."""
        if self._certificates is not None and self._certificates.newest() is not self._connections.certificate:
            task = asyncio.create_task(self._connections.close_after_streams())
            self._old.add(task)
            task.add_done_callback(self._old.discard)
            self._connections = Connections(self.address, self._certificates)

    # Each of these raises Unavailable (BACKEND_DOWN). With `waits` a call waits for a sampler that cannot be reached.

    async def sampler_info(self, *, waits: bool = True) -> SamplerInfo:
        """What the sampler says of itself now."""
        info: SamplerInfo = await self._call(
            self._connections.sampler.GetSamplerInfo, GetSamplerInfoRequest(), waits=waits
        )
        self.known = info
        return info

    async def check_tuning(self, config: TuningConfig, *, waits: bool = True) -> list[str]:
        """Whether a config can be tuned; its warnings. Raises InvalidArgument."""
        request = CheckTuningRequest(config=config)
        return list((await self._call(self._connections.sampler.CheckTuning, request, waits=waits)).warnings)

    async def check_sample(self, request: SampleRequest, *, waits: bool = True) -> list[str]:
        """Check the request of a run; its warnings. Raises InvalidArgument."""
        return list((await self._call(self._connections.sampler.CheckSample, request, waits=waits)).warnings)

    async def evict(self, digest: str) -> None:
        """Make the sampler forget weights."""
        await self._call(self._connections.sampler.Evict, EvictRequest(digest=digest), may_be_slow=True)

    async def load(self, weights: WeightsRef) -> None:
        """Have the sampler put weights into an engine, if one is free. Raises the sampler's error."""
        request = LoadRequest(weights=weights)
        await self._call(self._connections.sampler.Load, request, timeout_s=LOAD_S, may_be_slow=True)

    async def sample(self, request: SampleRequest, timeout_s: float | None) -> AsyncGenerator[SampleEvent, None]:
        """Sample; closing the iterator cancels it before its next step."""
        connections, sent = self._connections, (time.monotonic(), request.weights.digest)
        with _closed_is_unanswered():
            call = connections.sampling.Sample(request, timeout=timeout_s)
        self.in_flight += 1
        self._unacknowledged.append(sent)
        try:
            async with aclosing(self._stream(connections, call)) as events:
                async for event in events:
                    self._note_end(event)
                    yield event
        except Internal:
            self._note_fault()
            raise
        finally:
            self.in_flight -= 1
            if sent in self._unacknowledged:
                self._unacknowledged.remove(sent)

    def _note_end(self, event: SampleEvent) -> None:
        if event.HasField("done"):
            self._faults, self._faulty_until_s = 0, -math.inf
        elif event.HasField("failed") and isinstance(from_status(event.failed), Internal):
            self._note_fault()

    def _note_fault(self) -> None:
        self._faults += 1
        if self._faults >= FAULTS:
            self._faulty_until_s = time.monotonic() + FAULTY_S
            fields: telemetry.Fields = {"upstream": "sampler", "address": self.address}
            telemetry.event(logger, "edits of a sampler fail", level=logging.WARNING, **fields)

    async def watch(self, on_change: Callable[[], None], forget: Forget) -> None:
        """Follow the sampler's state until the address is no sampler's any more, and nothing is left there.

        `on_change` is called when it begins or ceases to take edits. `forget` gets what the sampler holds at the begin
        of each watch.
        """
        while True:
            is_lost = True
            with contextlib.suppress(UniTuneError, grpc.aio.AioRpcError):
                await self.sampler_info()
                await self._watch_once(on_change, forget)
                is_lost = False
            if is_lost:
                self._state_s = -math.inf
                on_change()
            if not self.is_named and not self.in_flight:  # one that drains ends the watch before its last edits
                return
            if is_lost:
                await asyncio.sleep(WATCH_AGAIN_S)

    def _stop_forgetting(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()

    def watch_anew(self) -> None:
        """End the watch with the next state that comes. The one after it begins with all that the sampler holds."""
        self._ends_watch = True

    async def _watch_once(self, on_change: Callable[[], None], forget: Forget) -> None:
        """Until the watch's own end, or that of `watch_anew`. Raises AioRpcError for any other end."""
        self._ends_watch = False
        with _closed_is_unanswered():
            call = self._connections.sampling.WatchReplica(WatchReplicaRequest(), timeout=WATCH_S)
        try:
            while (state := await _read(call)) is not _EOF:
                before = self.is_watched and self.is_answering, self._state.draining
                self._state, self._state_s = state, time.monotonic()
                self._resident, self._loading = frozenset(state.resident), frozenset(state.loading)
                self._kept = frozenset(state.kept)
                self._answers()
                if before != (True, state.draining):
                    on_change()
                if state.held:  # beside the states, which go on
                    self._stop_forgetting()
                    self._forgetting = asyncio.ensure_future(forget(self, state.held))
                if self._ends_watch:
                    return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or not self.is_watched:
                raise
        else:
            raise unanswered("sampler")  # it drains
        finally:
            call.cancel()

    async def _call(
        self, method: Any, request: Any, *, timeout_s: float = CALL_S, waits: bool = True, may_be_slow: bool = False
    ) -> Any:
        """With `may_be_slow` a sampler that does not answer in time may be at work: other calls tell whether it is
        away."""
        try:
            with _closed_is_unanswered():
                answer = await method(request, timeout=timeout_s, wait_for_ready=waits)
        except grpc.aio.AioRpcError as error:
            if may_be_slow and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise unanswered("sampler") from None
            raise self._translated(error) from None
        self._answers()
        return answer

    def _answers(self) -> None:
        self._has_answered = True
        if self._is_silent:
            self._is_silent = False
            telemetry.event(logger, "upstream answers again", upstream="sampler", address=self.address)

    async def _stream(self, connections: "Connections", call: Any) -> AsyncGenerator[Any, None]:
        """The events, except empty heartbeats. Raises Unavailable (BACKEND_DOWN), also after too long a silence."""
        kind = None
        connections.streams += 1
        try:
            while (event := await self._next_event(call)) is not _EOF:
                kind = event.WhichOneof("event")
                if kind != "heartbeat" or event.heartbeat.ByteSize():
                    yield event
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:  # of the caller, which says nothing of the sampler
                raise unanswered("sampler") from None
            raise self._translated(error) from None
        finally:
            if kind in _LAST_EVENTS and not call.done():  # the service would log a stream that is cut here as cancelled
                await _read_to_end(call)
            call.cancel()
            connections.streams -= 1

    async def _next_event(self, call: Any) -> Any:
        reading = asyncio.ensure_future(_read(call))
        try:
            # In several waits: if this process itself stood still, at most one of them passed.
            for _ in range(SILENCE_CHECKS):
                await asyncio.wait({reading}, timeout=self._silence_s / SILENCE_CHECKS)
                if reading.done():
                    return reading.result()
        finally:
            if not reading.cancel() and not reading.cancelled():
                reading.exception()  # retrieved, in case the reader is cancelled at this moment
        self._log_silence(f"no event for {self._silence_s:g} seconds")
        raise unanswered("sampler")

    def _translated(self, error: grpc.aio.AioRpcError) -> UniTuneError:
        status = rpc_status.from_call(cast(grpc.Call, error))
        if status is not None:
            return from_status(status)
        self._log_silence(error.details() or "", error.code().name)
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # the only cause without details: a message's size
            return ResourceExhausted(
                "a message to or from the sampler is larger than it may be",
                reason="MESSAGE_TOO_LARGE",
                metadata={"upstream": "sampler"},
            )
        return unanswered("sampler")

    def _log_silence(self, detail: str, code: str = "") -> None:
        """Log that the sampler does not answer, once until it answers again."""
        if not self._is_silent:
            self._is_silent = True
            fields: telemetry.Fields = {
                "upstream": "sampler",
                "address": self.address,
                "code": code,
                "detail": detail,
            }
            telemetry.event(logger, "upstream does not answer", level=logging.WARNING, **fields)


class Connections:
    """Channels to a sampler, with one certificate. Its streams have their own channel, so that they cannot delay a
    unary call.
    """

    def __init__(self, sampler: str, certificates: CertificateReader | None) -> None:
        credentials = certificates.channel_credentials() if certificates is not None else None
        self.certificate = certificates.current if certificates is not None else None
        self._channels = [
            serving.channel(sampler, service_config=_SERVICE_CONFIG, credentials=credentials, name=peers.SAMPLER)
            for _ in range(2)
        ]
        self.sampler: Any = SamplerServiceStub(self._channels[0])
        self.sampling: Any = SamplerServiceStub(self._channels[1])
        self.streams = 0  # that run

    async def close(self) -> None:
        """Close the channels; calls that run are cancelled."""
        for channel in self._channels:
            await channel.close(None)

    async def close_after_streams(self) -> None:
        """Close the channels when no call is left on them."""
        try:
            await asyncio.sleep(LOAD_S)  # longer than any unary call
            while self.streams:
                await asyncio.sleep(CALL_S)
        finally:
            await self.close()


async def _read(call: Any) -> Any:
    with _closed_is_unanswered():
        return await call.read()


@contextlib.contextmanager
def _closed_is_unanswered() -> Iterator[None]:
    """A call whose channel is closed ends as if its task were cancelled, and a later one with UsageError. Both raise
    Unavailable (BACKEND_DOWN) instead; a task that is really cancelled is.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise unanswered("sampler") from None
    except grpc.aio.UsageError:
        raise unanswered("sampler") from None


async def _read_to_end(call: Any) -> None:
    """Read the rest of a stream after its last event."""
    with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
        async with asyncio.timeout(END_S):
            while await call.read() is not _EOF:
                pass
