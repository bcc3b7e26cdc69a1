"""Spans of calls within one process: they last as long as their stream, whatever ends it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from io import StringIO
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from unitune import call_context, serving, telemetry, tracing
from unitune.errors import NotFound
from unitune.v1 import edit_pb2, edit_pb2_grpc


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans that ended."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "TRACER", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


class Service(edit_pb2_grpc.EditServiceServicer):
    """Streams until it is told to stop; may pass a call on to another server."""

    def __init__(self, further: grpc.aio.Channel | None = None) -> None:
        self.further = further
        self.metadata: list[dict[str, str]] = []
        self.closed = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> list[str]:
        edit_pb2_grpc.add_EditServiceServicer_to_server(self, server)
        return ["unitune.v1.EditService"]

    async def Edit(self, request: edit_pb2.EditRequest, context: Any) -> AsyncIterator[edit_pb2.EditEvent]:
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            yield edit_pb2.EditEvent(sequence=1)
            with tracing.TRACER.start_as_current_span("within"):
                await asyncio.sleep(0)
            if self.further is not None:
                async for event in edit_pb2_grpc.EditServiceStub(self.further).Edit(request):
                    yield event
            if request.prompt == "fail":
                raise NotFound("no", reason="TUNING_NOT_FOUND")
            while request.prompt == "on and on":
                yield edit_pb2.EditEvent(sequence=2)
                await asyncio.sleep(0.01)
        finally:
            self.closed.set()


def by_name(spans: InMemorySpanExporter) -> dict[str, Any]:
    """The span of each name."""
    return {span.name: span for span in spans.get_finished_spans()}


CALL = "unitune.v1.EditService/Edit"


async def test_a_trace_goes_on_from_server_to_server(spans: InMemorySpanExporter) -> None:
    """The second server's span is a child of the first one's, which is a child of the caller's; both have one request
    id, and what is done within a stream is a child of its call."""
    last = Service()
    behind = await serving.start("127.0.0.1:0", last.register)
    async with serving.channel(behind.address) as further:
        first = Service(further)
        front = await serving.start("127.0.0.1:0", first.register)
        async with serving.channel(front.address) as channel:
            with tracing.TRACER.start_as_current_span("caller") as caller:
                metadata = ((call_context.REQUEST_ID, "my-own-id"),)
                stub = edit_pb2_grpc.EditServiceStub(channel)
                assert len([event async for event in stub.Edit(edit_pb2.EditRequest(), metadata=metadata)]) == 2
        await front.stop()
    await behind.stop()
    ended = spans.get_finished_spans()
    assert {span.context.trace_id for span in ended} == {caller.get_span_context().trace_id}
    outer = next(s for s in ended if s.name == CALL and s.parent.span_id == caller.get_span_context().span_id)
    inner = next(s for s in ended if s.name == CALL and s.parent.span_id == outer.context.span_id)
    assert outer.start_time <= inner.start_time and inner.end_time <= outer.end_time
    assert {s.parent.span_id for s in ended if s.name == "within"} == {outer.context.span_id, inner.context.span_id}
    assert [told[0][call_context.REQUEST_ID] for told in (first.metadata, last.metadata)] == ["my-own-id"] * 2


@pytest.mark.parametrize("reads", [True, False], ids=["read", "iterated"])
async def test_a_span_ends_with_its_stream(spans: InMemorySpanExporter, reads: bool) -> None:
    """Also of one that its caller cancels, however that reads it; its status is told and is no fault of the server."""
    service = Service()
    running = await serving.start("127.0.0.1:0", service.register)
    async with serving.channel(running.address) as channel:
        call = edit_pb2_grpc.EditServiceStub(channel).Edit(edit_pb2.EditRequest(prompt="on and on"))
        if reads:
            await call.read()
        else:
            await anext(aiter(call))
        await asyncio.sleep(0.05)
        assert CALL not in by_name(spans)
        call.cancel()
        await asyncio.wait_for(service.closed.wait(), 10)
        await asyncio.sleep(0.05)
        span = by_name(spans)[CALL]
        assert span.attributes["rpc.grpc.status_code"] == 1 and span.status.is_ok is not False
    await running.stop()


async def test_a_refusal_is_no_fault(spans: InMemorySpanExporter) -> None:
    """NOT_FOUND is told with its reason; neither message nor exception is."""
    running = await serving.start("127.0.0.1:0", Service().register)
    async with serving.channel(running.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in edit_pb2_grpc.EditServiceStub(channel).Edit(edit_pb2.EditRequest(prompt="fail")):
                pass
    await running.stop()
    span = by_name(spans)[CALL]
    assert span.attributes["unitune.reason"] == "TUNING_NOT_FOUND" and not span.events
    assert span.status.status_code is trace.StatusCode.UNSET


async def test_logs_tell_trace_and_request(spans: InMemorySpanExporter) -> None:
    """A line within a call has both ids; an id of the caller's that is none of ours is replaced, and a line outside of
    calls has none."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(telemetry._JsonLine("probe"))
    logger = logging.getLogger("unitune.error_interceptor")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        running = await serving.start("127.0.0.1:0", Service().register)
        async with serving.channel(running.address) as channel:
            stub = edit_pb2_grpc.EditServiceStub(channel)
            metadata = ((call_context.REQUEST_ID, 'forged", "level": "' + "x" * 100),)
            assert [event async for event in stub.Edit(edit_pb2.EditRequest(), metadata=metadata)]
        await running.stop()
        logger.info("outside")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    inside, outside = (json.loads(line) for line in stream.getvalue().splitlines())
    assert inside["trace"] == trace.format_trace_id(by_name(spans)[CALL].context.trace_id)
    assert len(inside["request"]) == 32 and not {"trace", "request"} & outside.keys()


async def test_a_server_that_has_stopped_made_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that still writes when its server has stopped is told so by grpc, and that is no failure of ours."""

    class Late(Service):
        async def Edit(self, request: edit_pb2.EditRequest, context: Any) -> AsyncIterator[edit_pb2.EditEvent]:
            try:
                yield edit_pb2.EditEvent(sequence=1)
                await asyncio.Event().wait()
            finally:
                self.closed.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.5)
                await context.write(b"late")

    late = Late()
    running = await serving.start("127.0.0.1:0", late.register)
    async with serving.channel(running.address) as channel:
        call = edit_pb2_grpc.EditServiceStub(channel).Edit(edit_pb2.EditRequest())
        assert (await call.read()).sequence == 1
        with caplog.at_level(logging.WARNING):
            await running._server.stop(0)
            await late.closed.wait()
            await asyncio.sleep(0.7)
    assert "call failed" not in caplog.text


def test_without_the_sdk_a_collector_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence says what to install; without a collector nothing is needed."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    tracing.configure("probe", "")
    with pytest.raises(OSError, match=r"pip install 'unitune\[traces\]'"):
        tracing.configure("probe", "http://127.0.0.1:4317")
