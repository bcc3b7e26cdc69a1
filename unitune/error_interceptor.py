"""How a call begins and ends. Who may not call, and bytes that are no request, are refused, errors become a status with
details, each call has one line in the log, and generators are closed."""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol

import grpc
from grpc._cython.cygrpc import _ServerStoppedError  # type: ignore[import-not-found]  # it has no public name
from grpc.aio import EOF  # type: ignore[attr-defined]  # the stubs lack it
from grpc_status import rpc_status
from opentelemetry import trace

from unitune import deadlines, metrics, telemetry, tracing
from unitune.deadlines import Messages, ReaderTooSlow
from unitune.errors import Internal, InvalidArgument, ResourceExhausted, UniTuneError, to_status

logger = logging.getLogger(__name__)

# These come every few seconds, as probes call health. Their lines would hide all others in the log.
_ROUTINE = (
    *(f"/unitune.v1.TunerPoolService/{method}" for method in ("Announce", "TakeTuning", "ReportTuning")),
    "/unitune.v1.SamplerService/GetSamplerInfo",
)

# They need no credential, and last for as long as their callers want.
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
HEALTH_WATCHES = 2000  # of one server
RETRY_WATCH_S = 5.0

# Stands for a request that its deserializer refused. If the exception left the deserializer, grpc itself would answer:
# with UNKNOWN, without details, and with a traceback in the log.
_UNREADABLE = object()
# grpc could not write: the client is gone, or the server has stopped, and so is the stream.
_GONE = (grpc.aio.InternalError, _ServerStoppedError)


class Door(Protocol):
    """Who may call. What it raises is the call's answer."""

    async def admit(self, method: str, context: Any) -> None:
        """Called first, before the request is read, in the task that runs the call."""

    def holding(self, method: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Entered next, for as long as the call lasts. What it raises ends the call."""

    def check(self, request: Any) -> None:
        """Called with each message of the request, before anybody else sees it."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers a UniTuneError with its status and details, and every other exception with INTERNAL and no details.

    A request that cannot be read, and a call without a request, is InvalidArgument (REQUEST_UNREADABLE).
    """

    def __init__(self, door: Door | None = None) -> None:
        self._door = door
        self._health_watches = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler. grpc itself answers a method without a handler with UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        # To grpc, every call here streams its requests and its answers. In a call with one request or one answer, grpc
        # would wait for ever for a request that does not come, and for a reader that does not read.
        receive = _request_stream if handler.request_streaming else _single_request
        return grpc.stream_stream_rpc_method_handler(
            self._answer(handler_call_details.method, inner, receive, handler.response_serializer),
            request_deserializer=_lenient(handler.request_deserializer),
            # `deadlines.write` sends encoded messages. A handler that calls context.write itself, as health does, sends
            # messages that are not encoded.
            response_serializer=lambda answer: (
                answer if isinstance(answer, bytes) else handler.response_serializer(answer)
            ),
        )

    def _answer(self, method: str, inner: Any, receive: Any, encode: Callable[[Any], bytes]) -> Any:
        """A handler that writes the events itself and does not yield them. A write that fails then closes the generator
        at once: the clean-up in its `finally` runs when the client goes, not when memory is next collected."""
        door = self._door

        async def call(_: Any, context: Any) -> None:
            with _span(method, context) as span:
                messages = Messages(context)
                async with _recorded(method, context, messages, span):
                    if door is not None:
                        await door.admit(method, context)
                    holding = door.holding(method) if door is not None else contextlib.nullcontext()
                    with self._watching(method):
                        async with holding, receive(messages, door) as request:
                            await _deliver(inner(request, context), context, encode)

        return call

    @contextlib.contextmanager
    def _watching(self, method: str) -> Iterator[None]:
        """Count a watch of health for the block. Raises ResourceExhausted (TOO_MANY_CALLS)."""
        if method != HEALTH_WATCH:
            yield
            return
        if self._health_watches >= HEALTH_WATCHES:
            raise ResourceExhausted(
                f"the health of this server is watched {HEALTH_WATCHES} times, as often as may be: ask for it by Check",
                reason="TOO_MANY_CALLS",
                metadata={"limit": str(HEALTH_WATCHES)},
                retry_after_s=RETRY_WATCH_S,
            )
        self._health_watches += 1
        try:
            yield
        finally:
            self._health_watches -= 1


def _lenient(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A deserializer that gives _UNREADABLE for bytes that this one refuses."""

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:  # whatever was raised, the caller's bytes are the reason
            return _UNREADABLE

    return read


@contextlib.asynccontextmanager
async def _single_request(messages: Messages, door: Door | None) -> AsyncIterator[Any]:
    """The request of a call that has one."""
    yield _readable(await messages.read(), door)


@contextlib.asynccontextmanager
async def _request_stream(messages: Messages, door: Door | None) -> AsyncIterator[AsyncIterator[Any]]:
    """The requests of a call that streams them."""

    async def requests() -> AsyncGenerator[Any, None]:
        while (request := await messages.read()) is not EOF:
            yield _readable(request, door)

    async with contextlib.aclosing(requests()) as stream:
        yield stream


def _readable(request: Any, door: Door | None) -> Any:
    if request is _UNREADABLE or request is EOF:
        problem = "there is no request" if request is EOF else "the request is no message of this call's type"
        remedy = "send one, made from the protos of this server's version"
        raise InvalidArgument(f"{problem}: {remedy}", reason="REQUEST_UNREADABLE")
    if door is not None:
        door.check(request)
    return request


async def _deliver(answers: Any, context: Any, encode: Callable[[Any], bytes]) -> None:
    if inspect.isawaitable(answers):
        answer = await answers
        if answer is not None:  # None is of a handler that has called context.write
            await deadlines.write(context, encode(answer))
        return
    async with contextlib.aclosing(answers):
        async for answer in answers:
            await deadlines.write(context, encode(answer))


def _span(method: str, context: Any) -> contextlib.AbstractContextManager[trace.Span]:
    """The call's span. What is asked every few seconds has none."""
    if method.startswith("/grpc.") or method in _ROUTINE:
        return contextlib.nullcontext(trace.INVALID_SPAN)
    return tracing.answering(method, context.invocation_metadata())


@contextlib.asynccontextmanager
async def _recorded(method: str, context: Any, messages: Messages, span: trace.Span) -> AsyncIterator[None]:
    """Turn an exception of the block into the call's status; log, count and trace how the call ended."""
    began = time.monotonic()
    code, reason = "CANCELLED", ""  # what is left when neither an answer nor an error was sent
    try:
        yield
        code = "OK"
    except grpc.aio.AbortError:  # a servicer of another package, such as health, has ended the call
        code = "ABORTED_BY_HANDLER"
        raise
    except _GONE:
        pass
    except UniTuneError as error:
        code, reason = error.code.name, error.reason
        if isinstance(error, ReaderTooSlow):
            telemetry.event(logger, "reader too slow", level=logging.WARNING, method=method)
            await asyncio.wait({error.writing})  # until it reads on, or the connection ends
        await _refuse(context, messages, error)
    except Exception:
        code, reason = "INTERNAL", "INTERNAL"
        telemetry.failure(logger, "call failed", method=method)
        ours = Internal("the server made a mistake; its log has the details", reason="INTERNAL")
        await _refuse(context, messages, ours)
    finally:
        is_routine = method.startswith("/grpc.") or (code == "OK" and method in _ROUTINE)
        if not is_routine:
            seconds = round(time.monotonic() - began, 4)
            telemetry.event(logger, "call", method=method, code=code, reason=reason, seconds=seconds)
        tracing.ended(span, code, reason)
        metrics.CALLS.labels(method, code).observe(time.monotonic() - began)
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED.name:
            metrics.REFUSALS.labels(reason).inc()


async def _refuse(context: Any, messages: Messages, error: UniTuneError) -> None:
    """End the call with an error, which reaches nobody if the client is gone."""
    await messages.drop_rest()
    with contextlib.suppress(*_GONE):  # grpc would log a traceback
        await context.abort_with_status(_status_of(error))


def _status_of(error: UniTuneError) -> Any:
    """The status with its details. A shed call also says when to come back in the way that gRPC's own retries obey."""
    status: Any = rpc_status.to_status(to_status(error))
    if isinstance(error, ResourceExhausted) and error.retry_after_s is not None:
        pushback = ("grpc-retry-pushback-ms", str(round(1000 * error.retry_after_s)))
        status = status._replace(trailing_metadata=(*status.trailing_metadata, pushback))
    return status
