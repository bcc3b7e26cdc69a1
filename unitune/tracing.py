"""Traces by OpenTelemetry: a span for each call that is answered, and what lies within it.

The API alone is installed with the services, and does nothing. With the SDK (extra `traces`) and a collector's address
`configure` sends spans there. No span has a prompt, a picture, a tenant or a name: only the method, how it ended, and
numbers.

The span of a call is made by our own interceptor (`unitune/error_interceptor.py`). OpenTelemetry's instrumentation of
gRPC iterates over what a handler of grpc.aio returns, where ours writes to the stream itself. Outside of ours it breaks
every stream, and inside it tells refused calls as OK.
"""

import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from unitune import __version__
from unitune.call_context import REQUEST_ID, TRACE_CONTEXT, request_id

EXPORT_S = 2.0  # longest wait for the collector, also at the program's end
TRACER = trace.get_tracer("unitune", __version__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Of the server's own faults; others are the caller's or nobody's.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


def configure(service: str, collector: str | None) -> None:
    """Send the process's spans to an OTLP collector, by its URL; without one there are none. Called in `__main__`.

    Raises OSError when the SDK is not installed.
    """
    if not collector:
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise OSError(f"UNITUNE_TRACES is {collector!r}, which needs: pip install 'unitune[traces]'") from error
    resource = Resource.create({"service.name": f"unitune-{service}", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=collector, insecure=not collector.startswith("https:"), timeout=EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@contextmanager
def answering(method: str, metadata: Iterable[tuple[str, Any]] | None) -> Iterator[Span]:
    """The span of a call, for as long as it is answered, within the trace of its caller; and its request id."""
    told = {key: value for key, value in metadata or () if isinstance(value, str)}
    asked = told.get(REQUEST_ID, "")
    token = request_id.set(asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex)
    service, _, name = method.strip("/").partition("/")
    assert TRACE_CONTEXT is not None  # installed with the services
    try:
        with TRACER.start_as_current_span(
            method.strip("/"),
            context=TRACE_CONTEXT.extract(told),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
            record_exception=False,  # a message may say more than a span should
            set_status_on_exception=False,
        ) as span:
            yield span
    finally:
        request_id.reset(token)


def here() -> str:
    """The current span, as W3C traceparent; empty outside of traces."""
    carried: dict[str, str] = {}
    assert TRACE_CONTEXT is not None
    TRACE_CONTEXT.inject(carried)
    return carried.get("traceparent", "")


@contextmanager
def working(what: str, trace: str, attributes: dict[str, int]) -> Iterator[Span]:
    """A span of work that a call has left to be done later, within its trace; without one it is a trace of its own."""
    assert TRACE_CONTEXT is not None
    with TRACER.start_as_current_span(
        what,
        context=TRACE_CONTEXT.extract({"traceparent": trace}),
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def ended(span: Span, code: str, reason: str) -> None:
    """Tell a call's span how the call ended."""
    if code in grpc.StatusCode.__members__:
        span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
    if reason:
        span.set_attribute("unitune.reason", reason)
    if code in _FAULTS:
        span.set_status(Status(StatusCode.ERROR, code))


def trace_id() -> str:
    """Of the current span, in hexadecimal; empty outside of traces."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""
