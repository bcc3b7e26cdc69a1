"""The tuner and the sampler as the gateway calls them: channels, deadlines, retries, errors.

Only calls that change nothing are retried. An error that a service sent with details goes on as it
is; a service that did not answer is Unavailable (BACKEND_DOWN), and what gRPC said of it is for the log alone.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc
from grpc_status import rpc_status

from unitune import serving, telemetry
from unitune.errors import FailedPrecondition, ResourceExhausted, Unavailable, UniTuneError, from_status
from unitune.v1.sampler_pb2 import (
    EvictRequest,
    GetSamplerInfoRequest,
    LoadRequest,
    SampleEvent,
    SampleRequest,
    SamplerInfo,
)
from unitune.v1.sampler_pb2_grpc import SamplerServiceStub
from unitune.v1.tuner_pb2 import CheckTuningRequest, GetTunerInfoRequest, RunTuningEvent, RunTuningRequest, TunerInfo
from unitune.v1.tuner_pb2_grpc import TunerServiceStub
from unitune.v1.tuning_pb2 import TuningConfig, WeightsRef

logger = logging.getLogger(__name__)

CALL_S = 3.0  # deadline of every call that is no stream
LOAD_S = 60.0  # but of loading weights, which for a large model is no quick answer, and which nobody waits for
RETRY_AFTER_S = 2.0  # what a caller is told to wait when a service does not answer

_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_IDEMPOTENT = {
    "unitune.v1.TunerService": ("GetTunerInfo", "CheckTuning"),
    "unitune.v1.SamplerService": ("GetSamplerInfo", "CheckSample", "Evict"),
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
    """One tuner and one sampler."""

    def __init__(self, tuner: str, sampler: str) -> None:
        self._channels = [serving.channel(address, service_config=_SERVICE_CONFIG) for address in (tuner, sampler)]
        self._tuner: Any = TunerServiceStub(self._channels[0])
        self._sampler: Any = SamplerServiceStub(self._channels[1])
        self.known_tuner: TunerInfo | None = None  # as it last answered
        self.known_sampler: SamplerInfo | None = None
        self._silent: set[str] = set()  # those that did not answer when last asked

    async def close(self) -> None:
        """Close the channels; calls that run are cancelled."""
        for channel in self._channels:
            await channel.close(None)

    async def tuner_info(self) -> TunerInfo:
        """What the tuner says of itself now. Raises Unavailable (BACKEND_DOWN)."""
        info: TunerInfo = await self._call("tuner", self._tuner.GetTunerInfo, GetTunerInfoRequest())
        self.known_tuner = info
        return info

    async def sampler_info(self) -> SamplerInfo:
        """What the sampler says of itself now. Raises Unavailable (BACKEND_DOWN)."""
        info: SamplerInfo = await self._call("sampler", self._sampler.GetSamplerInfo, GetSamplerInfoRequest())
        self.known_sampler = info
        return info

    async def check_tuning(self, config: TuningConfig) -> list[str]:
        """Ask the tuner whether it can run a config; its warnings. Raises InvalidArgument, Unavailable
        (BACKEND_DOWN)."""
        answer = await self._call("tuner", self._tuner.CheckTuning, CheckTuningRequest(config=config))
        return list(answer.warnings)

    async def check_sample(self, request: SampleRequest) -> list[str]:
        """Ask the sampler what it would make of a run; its warnings. Raises InvalidArgument, Unavailable
        (BACKEND_DOWN)."""
        answer = await self._call("sampler", self._sampler.CheckSample, request)
        return list(answer.warnings)

    async def evict(self, digest: str) -> None:
        """Make the sampler forget weights. Raises Unavailable (BACKEND_DOWN)."""
        await self._call("sampler", self._sampler.Evict, EvictRequest(digest=digest))

    async def load(self, weights: WeightsRef) -> None:
        """Have the sampler put weights into an engine, if one is free. Raises what it fails with, or Unavailable."""
        await self._call("sampler", self._sampler.Load, LoadRequest(weights=weights), timeout_s=LOAD_S)

    def run_tuning(self, request: RunTuningRequest) -> AsyncGenerator[RunTuningEvent, None]:
        """Run a tuning; closing the iterator cancels it."""
        return self._stream("tuner", self._tuner.RunTuning(request))

    def sample(self, request: SampleRequest, timeout_s: float | None) -> AsyncGenerator[SampleEvent, None]:
        """Sample; closing the iterator cancels it before its next step."""
        return self._stream("sampler", self._sampler.Sample(request, timeout=timeout_s))

    async def _call(self, upstream: str, method: Any, request: Any, timeout_s: float = CALL_S) -> Any:
        try:
            answer = await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._translated(upstream, error) from None
        if upstream in self._silent:
            self._silent.discard(upstream)
            telemetry.event(logger, "upstream answers again", upstream=upstream)
        return answer

    async def _stream(self, upstream: str, call: Any) -> AsyncGenerator[Any, None]:
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise self._translated(upstream, error) from None
        finally:
            call.cancel()

    def _translated(self, upstream: str, error: grpc.aio.AioRpcError) -> UniTuneError:
        status = rpc_status.from_call(cast(grpc.Call, error))
        if status is not None:
            return from_status(status)
        if upstream not in self._silent:
            self._silent.add(upstream)
            code, detail = error.code().name, error.details() or ""
            problem = "upstream does not answer"
            telemetry.event(logger, problem, level=logging.WARNING, upstream=upstream, code=code, detail=detail)
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # the only cause without details: a message's size
            return ResourceExhausted(
                f"a message to or from the {upstream} is larger than it may be",
                reason="MESSAGE_TOO_LARGE",
                metadata={"upstream": upstream},
            )
        return unanswered(upstream)


async def look_around(upstreams: Upstreams, every_s: float) -> None:
    """Ask both services again and again, so that what is known of them is never old and needs no waiting for."""
    while True:
        await asyncio.gather(upstreams.tuner_info(), upstreams.sampler_info(), return_exceptions=True)
        await asyncio.sleep(every_s)


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
    """The error for a service that gave no answer, or no whole one."""
    return Unavailable(
        f"the {upstream} does not answer now",
        reason="BACKEND_DOWN",
        metadata={"upstream": upstream},
        retry_after_s=RETRY_AFTER_S,
    )
