"""How a call begins and ends: bytes that are no request are refused, errors become a status with details, every call
leaves one log line, generators are closed."""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]  # the stubs lack it
from grpc_status import rpc_status

from unitune import deadlines, telemetry
from unitune.deadlines import ReaderTooSlow
from unitune.errors import Internal, InvalidArgument, UniTuneError, to_status

logger = logging.getLogger(__name__)

# Asked every few seconds by the gateway, as health is by probes; in the log they would drown everything else.
_ROUTINE = ("/unitune.v1.TunerService/GetTunerInfo", "/unitune.v1.SamplerService/GetSamplerInfo")

# Stands for a request that its deserializer refused. Were the exception to leave the deserializer, grpc would answer by
# itself: UNKNOWN without details, and a traceback in the log.
_UNREADABLE = object()


class Answering(grpc.aio.ServerInterceptor):
    """Answers a UniTuneError with its status and details, and every other exception with INTERNAL alone.

    A request that cannot be read is InvalidArgument (REQUEST_UNREADABLE), as is a call without any.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler; grpc answers a method that nobody serves with UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        # To grpc every call streams its requests and answers: it would let one wait for ever that has no request, and
        # one whose answer nobody reads.
        take = _each if handler.request_streaming else _only
        return grpc.stream_stream_rpc_method_handler(
            _answer(handler_call_details.method, inner, take, handler.response_serializer),
            request_deserializer=_lenient(handler.request_deserializer),
            # What `deadlines.write` sends is encoded already; a handler that writes by itself, such as health, sends
            # messages.
            response_serializer=lambda answer: (
                answer if isinstance(answer, bytes) else handler.response_serializer(answer)
            ),
        )


def _lenient(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Gives _UNREADABLE for bytes that the deserializer refuses."""

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:  # whatever it is, the caller's bytes are the reason
            return _UNREADABLE

    return read


@contextlib.asynccontextmanager
async def _only(context: Any) -> AsyncIterator[Any]:
    """The request of a call that has one."""
    yield _readable(await deadlines.read(context))


@contextlib.asynccontextmanager
async def _each(context: Any) -> AsyncIterator[AsyncIterator[Any]]:
    """The requests of a call that streams them."""

    async def requests() -> AsyncGenerator[Any, None]:
        while (request := await deadlines.read(context)) is not EOF:
            yield _readable(request)

    async with contextlib.aclosing(requests()) as stream:
        yield stream


def _readable(request: Any) -> Any:
    if request is _UNREADABLE or request is EOF:
        problem = "there is no request" if request is EOF else "the request is no message of this call's type"
        remedy = "send one, made from the protos of this server's version"
        raise InvalidArgument(f"{problem}: {remedy}", reason="REQUEST_UNREADABLE")
    return request


def _answer(method: str, inner: Any, take: Any, encode: Callable[[Any], bytes]) -> Any:
    """Writes the events itself rather than yielding them on: a write that fails then closes the generator at once,
    so that clean-up in its `finally` runs when the client goes and not when memory is next collected."""

    async def call(_: Any, context: Any) -> None:
        async with _ended(method, context), take(context) as request:
            answers = inner(request, context)
            if inspect.isawaitable(answers):
                answer = await answers
                if answer is not None:  # else a handler of a stream that writes by itself
                    await deadlines.write(context, encode(answer))
                return
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    await deadlines.write(context, encode(answer))

    return call


@contextlib.asynccontextmanager
async def _ended(method: str, context: Any) -> AsyncIterator[None]:
    began = time.monotonic()
    code, reason = "CANCELLED", ""  # what is left when neither an answer nor an error was sent
    try:
        yield
        code = "OK"
    except grpc.aio.AbortError:  # a servicer that is not ours, such as health, has answered by itself
        code = "ABORTED_BY_HANDLER"
        raise
    except grpc.aio.InternalError:  # grpc could not write: the client is gone, and so is its stream
        pass
    except UniTuneError as error:
        code, reason = error.code.name, error.reason
        if isinstance(error, ReaderTooSlow):
            telemetry.event(logger, "reader too slow", level=logging.WARNING, method=method)
            await asyncio.wait({error.writing})  # until it reads on, or the connection ends
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except Exception:
        code, reason = "INTERNAL", "INTERNAL"
        telemetry.failure(logger, "call failed", method=method)
        ours = Internal("the server made a mistake; its log has the details", reason="INTERNAL")
        await context.abort_with_status(rpc_status.to_status(to_status(ours)))
    finally:
        is_routine = method.startswith("/grpc.") or (code == "OK" and method in _ROUTINE)
        if not is_routine:
            seconds = round(time.monotonic() - began, 4)
            telemetry.event(logger, "call", method=method, code=code, reason=reason, seconds=seconds)
