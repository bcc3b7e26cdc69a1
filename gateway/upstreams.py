"""The sampler as the gateway calls it: channels, deadlines, retries, errors. Tuners call the gateway.

Only calls that change nothing are repeated, and a stream of samples only before its first event. An error that a
service sent with details is passed on unchanged. A service that did not answer is Unavailable (BACKEND_DOWN), and the
log alone has gRPC's own words. A service that stands still is Unavailable, too: its connection may live on for minutes,
but no heartbeat comes in its streams.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc
from grpc_status import rpc_status

from unitune import peers, serving, telemetry
from unitune.certificates import CertificateReader
from unitune.errors import FailedPrecondition, ResourceExhausted, Unavailable, UniTuneError, from_status
from unitune.v1.sampler_pb2 import (
    CheckTuningRequest,
    EvictRequest,
    GetSamplerInfoRequest,
    LoadRequest,
    SampleEvent,
    SampleRequest,
    SamplerInfo,
)
from unitune.v1.sampler_pb2_grpc import SamplerServiceStub
from unitune.v1.server_pb2 import Upstream
from unitune.v1.tuning_pb2 import TuningConfig, WeightsRef

logger = logging.getLogger(__name__)

CALL_S = 3.0  # deadline of each unary call, in which a service that restarts may come back
LOAD_S = 60.0  # deadline of Load, which is slow for a large model and for which nobody waits
RETRY_AFTER_S = 2.0  # that a caller is told to wait when a service does not answer
SILENCE_CHECKS = 15  # within the longest silence of a stream
END_S = 1.0  # for a stream to end after its last event

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


class Upstreams:
    """One sampler."""

    def __init__(
        self,
        sampler: str,
        *,
        silence_s: float = serving.SILENCE_S,
        certificates: CertificateReader | None = None,
    ) -> None:
        """`silence_s` is the longest time without an event in a stream. `certificates` are those by which the services
        know each other.
        """
        self._silence_s = silence_s
        self._address, self._certificates = sampler, certificates
        self._connections = Connections(sampler, certificates)
        self._old: set[asyncio.Task[None]] = set()  # of connections whose certificate was replaced
        self.known_sampler: SamplerInfo | None = None  # as it last answered
        self._silent: set[str] = set()  # those that did not answer when last asked
        self._answered: set[str] = set()  # those that have answered this process once

    def described(self) -> Upstream:
        """The sampler, as it last answered."""
        sampler = self.known_sampler
        return Upstream(
            name="sampler",
            version=sampler.version if sampler else "",
            is_answering=self._is_answering("sampler"),
            engine=sampler.engine if sampler else "",
        )

    def _is_answering(self, upstream: str) -> bool:
        return upstream in self._answered and upstream not in self._silent

    async def close(self) -> None:
        """Close the channels; calls that run are cancelled."""
        for task in self._old:
            task.cancel()
        await asyncio.gather(*self._old, return_exceptions=True)
        await self._connections.close()

    def renew(self) -> None:
        """Connect anew if the certificate has changed. What runs goes on over its old connection."""
        if self._certificates is not None and self._certificates.changed():
            task = asyncio.create_task(self._connections.close_after_streams())
            self._old.add(task)
            task.add_done_callback(self._old.discard)
            self._connections = Connections(self._address, self._certificates)

    async def sampler_info(self) -> SamplerInfo:
        """What the sampler says of itself now. Raises Unavailable (BACKEND_DOWN)."""
        info: SamplerInfo = await self._call(
            "sampler", self._connections.sampler.GetSamplerInfo, GetSamplerInfoRequest()
        )
        self.known_sampler = info
        return info

    async def check_tuning(self, config: TuningConfig) -> list[str]:
        """Ask the sampler, whose base model is the tuner's, whether a config can be tuned; its warnings.

        Raises InvalidArgument, Unavailable (BACKEND_DOWN).
        """
        answer = await self._call("sampler", self._connections.sampler.CheckTuning, CheckTuningRequest(config=config))
        return list(answer.warnings)

    async def check_sample(self, request: SampleRequest) -> list[str]:
        """Have the sampler check the request of a run; its warnings. Raises InvalidArgument, Unavailable
        (BACKEND_DOWN)."""
        answer = await self._call("sampler", self._connections.sampler.CheckSample, request)
        return list(answer.warnings)

    async def evict(self, digest: str) -> None:
        """Make the sampler forget weights. Raises Unavailable (BACKEND_DOWN)."""
        await self._call("sampler", self._connections.sampler.Evict, EvictRequest(digest=digest))

    async def load(self, weights: WeightsRef) -> None:
        """Have the sampler put weights into an engine, if one is free. Raises the sampler's error, or Unavailable."""
        await self._call("sampler", self._connections.sampler.Load, LoadRequest(weights=weights), timeout_s=LOAD_S)

    def sample(self, request: SampleRequest, timeout_s: float | None) -> AsyncGenerator[SampleEvent, None]:
        """Sample; closing the iterator cancels it before its next step."""
        connections = self._connections
        return self._stream("sampler", connections, connections.sampling.Sample(request, timeout=timeout_s))

    async def _call(self, upstream: str, method: Any, request: Any, timeout_s: float = CALL_S) -> Any:
        try:
            answer = await method(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise self._translated(upstream, error) from None
        self._answered.add(upstream)
        if upstream in self._silent:
            self._silent.discard(upstream)
            telemetry.event(logger, "upstream answers again", upstream=upstream)
        return answer

    async def _stream(self, upstream: str, connections: "Connections", call: Any) -> AsyncGenerator[Any, None]:
        """The events, except empty heartbeats. Raises Unavailable (BACKEND_DOWN), also after too long a silence."""
        kind = None
        connections.streams += 1
        try:
            while (event := await self._next_event(upstream, call)) is not _EOF:
                kind = event.WhichOneof("event")
                if kind != "heartbeat" or event.heartbeat.ByteSize():
                    yield event
        except grpc.aio.AioRpcError as error:
            raise self._translated(upstream, error) from None
        finally:
            if kind in _LAST_EVENTS and not call.done():  # the service would log a stream that is cut here as cancelled
                await _read_to_end(call)
            call.cancel()
            connections.streams -= 1

    async def _next_event(self, upstream: str, call: Any) -> Any:
        reading = asyncio.ensure_future(call.read())
        try:
            # In several waits: if this process itself stood still, at most one of them passed.
            for _ in range(SILENCE_CHECKS):
                await asyncio.wait({reading}, timeout=self._silence_s / SILENCE_CHECKS)
                if reading.done():
                    return reading.result()
        finally:
            if not reading.cancel() and not reading.cancelled():
                reading.exception()  # retrieved, in case the reader is cancelled at this moment
        self._log_silence(upstream, f"no event for {self._silence_s:g} seconds")
        raise unanswered(upstream)

    def _translated(self, upstream: str, error: grpc.aio.AioRpcError) -> UniTuneError:
        status = rpc_status.from_call(cast(grpc.Call, error))
        if status is not None:
            return from_status(status)
        self._log_silence(upstream, error.details() or "", error.code().name)
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # the only cause without details: a message's size
            return ResourceExhausted(
                f"a message to or from the {upstream} is larger than it may be",
                reason="MESSAGE_TOO_LARGE",
                metadata={"upstream": upstream},
            )
        return unanswered(upstream)

    def _log_silence(self, upstream: str, detail: str, code: str = "") -> None:
        """Log that a service does not answer, once until it answers again."""
        if upstream not in self._silent:
            self._silent.add(upstream)
            problem = "upstream does not answer"
            telemetry.event(logger, problem, level=logging.WARNING, upstream=upstream, code=code, detail=detail)


class Connections:
    """Channels to the sampler, with one certificate. Its streams have their own channel, so that they cannot delay a
    unary call.
    """

    def __init__(self, sampler: str, certificates: CertificateReader | None) -> None:
        credentials = certificates.channel_credentials() if certificates is not None else None

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


async def _read_to_end(call: Any) -> None:
    """Read the rest of a stream after its last event."""
    with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
        async with asyncio.timeout(END_S):
            while await call.read() is not _EOF:
                pass


def refuse_mismatch(tuned: str, sampled: str) -> None:
    """Raise FailedPrecondition (BASE_MODEL_MISMATCH) unless tuner and sampler work on the same base model."""
    if tuned != sampled:
        raise FailedPrecondition(
            f"the tuning is of base model {tuned[:12]}, but the sampler's engine was built from {sampled[:12]}: "
            "build the engine from the tuner's base model, or make a new tuning",
            reason="BASE_MODEL_MISMATCH",
            metadata={"tuned": tuned, "sampled": sampled},
        )


def unanswered(upstream: str) -> Unavailable:
    """The error for a service that gave no answer, or a part of one."""
    return Unavailable(
        f"the {upstream} does not answer now",
        reason="BACKEND_DOWN",
        metadata={"upstream": upstream},
        retry_after_s=RETRY_AFTER_S,
    )
