"""One trace from the caller through the gateway to the sampler's steps, in real processes."""

import contextlib
import json
import time
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from tests.gateway.conftest import picture
from tests.traces import Collector
from unitune.errors import NotFound
from unitune_client import Client
from unitune_client.local.services import LocalServices

SECRET = "a secretive dog"


def traced(number: int, work: Any) -> str:
    """Do work within a trace of the caller's; the trace's id."""
    span = NonRecordingSpan(SpanContext(number, 7, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    token = context.attach(trace.set_span_in_context(span))
    try:
        work()
    finally:
        context.detach(token)
    return trace.format_trace_id(number)


def test_one_trace_reaches_from_the_caller_to_the_steps(
    services: LocalServices, client: Client, collector: Collector
) -> None:
    """The gateway's call is a child of the caller's span, the sampler's of the gateway's; each step of the denoiser has
    a span, all lie within their call's, the logs tell the same trace, and no span tells a text or a name (F44)."""
    file = picture("salmon", (57, 43))
    client.edit_to_end(file, SECRET, updates=1, num_inference_steps=4)  # tunes

    steps: list[Any] = []
    began_ns = time.time_ns()
    trace_id = traced(
        0xABCDEF0123456789ABCDEF0123456789,
        lambda: client.edit_to_end(file, SECRET, updates=1, num_inference_steps=4, strength=1.0, on_event=steps.append),
    )
    ended_ns = time.time_ns()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        spans = {(service, span.name): span for service, span in collector.of(trace_id)}
        if ("unitune-gateway", "unitune.v1.EditService/Edit") in spans and ("unitune-sampler", "decoding") in spans:
            break
        time.sleep(0.1)
    edit = spans["unitune-gateway", "unitune.v1.EditService/Edit"]
    sample = spans["unitune-sampler", "unitune.v1.SamplerService/Sample"]
    assert edit.parent_span_id == (7).to_bytes(8, "big") and sample.parent_span_id == edit.span_id
    own = [span for service, span in collector.of(trace_id) if service == "unitune-sampler" and span.name == "step"]
    assert [
        next(one.value.int_value for one in span.attributes if one.key == "unitune.step")
        for span in sorted(own, key=lambda span: span.start_time_unix_nano)
    ] == [0, 1, 2, 3]
    for span in (*own, spans["unitune-sampler", "sampling"], spans["unitune-sampler", "decoding"]):
        assert span.parent_span_id == sample.span_id
        assert sample.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert began_ns <= edit.start_time_unix_nano <= sample.start_time_unix_nano
    assert sample.end_time_unix_nano <= ended_ns and edit.end_time_unix_nano <= ended_ns + 5 * 10**9
    for service, span in collector.spans:
        told = str(span)
        assert "secretive" not in told and "tenants/" not in told, (service, told)

    requests = set()
    for service, method in (
        ("gateway", "/unitune.v1.EditService/Edit"),
        ("sampler", "/unitune.v1.SamplerService/Sample"),
    ):
        lines = [
            json.loads(line)
            for line in (services.logs / f"{service}.log").read_text().splitlines()
            if line.startswith("{")
        ]
        (call,) = [line for line in lines if line.get("trace") == trace_id and line.get("method") == method]
        requests.add(call["request"])
    assert len(requests) == 1  # the same in both services


def test_the_trace_of_an_edit_reaches_its_tuning(client: Client, collector: Collector) -> None:
    """The attempt at the tuning that it makes is a child of the edit's call, with the tuner's stages in it; an edit
    that finds the tuning has none in its trace."""
    file = picture("orchid", (57, 43))

    def edit() -> None:
        client.edit_to_end(file, SECRET, updates=1, num_inference_steps=2)

    number = 0xABCDEF0123456789ABCDEF0123456700
    made, found = (traced(number + index, edit) for index in range(2))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        spans = {(service, span.name): span for service, span in collector.of(made)}
        if ("unitune-tuner", "tuning") in spans and ("unitune-gateway", "unitune.v1.EditService/Edit") in spans:
            break
        time.sleep(0.1)
    tuning = spans["unitune-tuner", "tuning"]
    assert tuning.parent_span_id == spans["unitune-gateway", "unitune.v1.EditService/Edit"].span_id
    assert [(one.key, one.value.int_value) for one in tuning.attributes] == [("unitune.attempt", 1)]
    for stage in ("preparing", "updating", "packing", "storing"):
        span = spans["unitune-tuner", stage]
        assert span.parent_span_id == tuning.span_id
        assert tuning.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= tuning.end_time_unix_nano
    assert "unitune-tuner" not in {service for service, _ in collector.of(found)}


def test_a_call_that_fails_is_told_by_its_reason(client: Client, collector: Collector) -> None:
    """The span of a refused call has its status and reason, and is no error of the server."""

    def ask() -> None:
        with contextlib.suppress(NotFound):
            client.get_tuning(f"tenants/default/tunings/t-{'0' * 32}")

    trace_id = traced(0xABCDEF0123456789ABCDEF0123456780, ask)
    deadline = time.monotonic() + 20
    while not (spans := collector.of(trace_id)) and time.monotonic() < deadline:
        time.sleep(0.1)
    ((_, span),) = spans
    told = {one.key: one.value for one in span.attributes}
    assert told["rpc.grpc.status_code"].int_value == 5 and told["unitune.reason"].string_value == "TUNING_NOT_FOUND"
    assert span.status.code == 0 and not span.events
