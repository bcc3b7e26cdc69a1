"""How a call ends: errors become a status with details, every call leaves one log line, generators are closed."""

import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from unitune import telemetry
from unitune.errors import Internal, UniTuneError, to_status

logger = logging.getLogger(__name__)

# Asked every few seconds by the gateway, as health is by probes; in the log they would drown everything else.
_ROUTINE = ("/unitune.v1.TunerService/GetTunerInfo", "/unitune.v1.SamplerService/GetSamplerInfo")

# grpc wraps a handler by four functions of one shape, by whether it streams in and out.
_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Answering(grpc.aio.ServerInterceptor):
    """Answers a UniTuneError with its status and details, and every other exception with INTERNAL alone."""

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
        answer = _stream if handler.response_streaming else _unary
        return _MAKE[handler.request_streaming, handler.response_streaming](
            answer(handler_call_details.method, inner),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _unary(method: str, inner: Any) -> Any:
    async def call(request: Any, context: Any) -> Any:
        async with _ended(method, context):
            return await inner(request, context)

    return call


def _stream(method: str, inner: Any) -> Any:
    """Writes the events itself rather than yielding them on: a write that fails then closes the generator at once,
    so that clean-up in its `finally` runs when the client goes and not when memory is next collected."""

    async def call(request: Any, context: Any) -> None:
        async with _ended(method, context):
            events = inner(request, context)
            if inspect.isawaitable(events):  # a handler that writes by itself
                await events
                return
            async with contextlib.aclosing(events):
                async for event in events:
                    await context.write(event)

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
