"""What a call carries along to the services that it reaches: its trace, as W3C traceparent, and its request id.

Clients use it, too. Without OpenTelemetry's API, which the client does not require, no trace is passed on.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

import grpc

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # a client by itself
    TRACE_CONTEXT = None
else:
    TRACE_CONTEXT = TraceContextTextMapPropagator()  # no baggage, which may hold what is nobody's business

REQUEST_ID = "x-request-id"
request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the call that is being answered


def headers() -> tuple[tuple[str, str], ...]:
    """The metadata of a call that is made now."""
    carried: dict[str, str] = {}
    if TRACE_CONTEXT is not None:
        TRACE_CONTEXT.inject(carried)
    if request_id.get():
        carried[REQUEST_ID] = request_id.get()
    return tuple(carried.items())


class CarryingChannel:
    """A channel whose calls carry the trace and the request id along.

    grpc.aio's interceptors would change what a call is: a stream that is read by `read` or cancelled behaves otherwise.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    @classmethod
    def around(cls, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        """The same channel, for all that uses it."""
        return cast(grpc.aio.Channel, cls(channel))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def __aenter__(self) -> "CarryingChannel":
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        return await self._channel.__aexit__(*error)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _carrying(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _carrying(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _carrying(self._channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _carrying(self._channel.stream_stream(*arguments, **options))


def _carrying(method: Any) -> Callable[..., Any]:
    def call(*arguments: Any, metadata: Any = None, **options: Any) -> Any:
        return method(*arguments, metadata=(*(metadata or ()), *headers()), **options)

    return call
