"""Every field of every public request with extreme values: what is refused says so, and nothing is our mistake."""

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.fuzz.answers import fault_of
from bench.fuzz.extremes import extremes
from bench.fuzz.valid import SDEDIT, public_calls
from tests.gateway.conftest import World, picture, refused
from unitune.v1.edit_pb2 import (
    EditRequest,
)
from unitune.v1.image_pb2 import UploadImageRequest
from unitune.v1.tuning_pb2 import (
    ListTuningsRequest,
    Tuning,
    UpdateTuningRequest,
    WatchTuningRequest,
)

AT_ONCE = 16  # calls


async def requests_of(world: World) -> list[tuple[str, Any, Message]]:
    """Each public call with a request that it takes: its name, the call, the request."""
    tuning = await world.tuned()
    image = (await world.upload(picture("navy"))).name
    edits = [event async for event in world.edits.Edit(EditRequest(image=image, prompt="a dog", config=SDEDIT))]
    stubs = {stub.__class__.__name__: stub for stub in world.stubs.values()}
    chunk = UploadImageRequest(chunk=picture("red"))

    def upload(request: UploadImageRequest) -> Any:
        return world.images.UploadImage([request, chunk])

    def call_of(method: MethodDescriptor) -> Any:
        stub = stubs[f"{method.containing_service.name}Stub"]
        return upload if method.name == "UploadImage" else getattr(stub, method.name)

    valid = public_calls(picture(), image, tuning.name, edits[0].accepted.edit)
    return [
        (method.name, call_of(method), request)
        for method, request in valid
        if method.containing_service.name != "KeyService"  # the gateway here has no keys
    ]


async def faults(calls: Iterator[tuple[str, Any, Message]]) -> list[str]:
    """What is wrong with the answers, each with the request that showed it."""
    found: list[str] = []

    async def work() -> None:
        for name, call, request in calls:
            answer = call(request) if name.startswith("UploadImage") else call(request, timeout=120)
            if fault := await fault_of(answer):
                found.append(f"{name}: {fault}")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return found


async def test_no_extreme_value_of_any_field_is_our_mistake(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers, times, texts and bytes at their ends, one field at a time, in every public call (r2, r3, r4, r5)."""
    caplog.set_level(logging.ERROR)
    calls = await requests_of(world)

    def each() -> Iterator[tuple[str, Any, Message]]:
        for name, call, base in calls:
            for done, request in (("as it is", base), *extremes(base)):  # some have no fields
                yield f"{name} {done}", call, request

    assert await faults(each()) == []
    assert not [record for record in caplog.records if record.exc_info], caplog.text


async def test_extreme_values_together_are_no_mistake_either(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The same, with the extreme values of two to four fields in one request, drawn by Hypothesis (r2, r3, r4, r5)."""
    caplog.set_level(logging.ERROR)
    calls = await requests_of(world)
    drawn: list[tuple[str, Any, Message]] = []
    changes = [(name, call, base, list(extremes(base))) for name, call, base in calls if base.DESCRIPTOR.fields]

    @given(st.data())
    @settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def draw(data: st.DataObject) -> None:
        name, call, base, changed = data.draw(st.sampled_from(changes))
        request, done = type(base)(), []
        for what, message in data.draw(st.lists(st.sampled_from(changed), min_size=2, max_size=4)):
            request.MergeFrom(message)
            done.append(what)
        drawn.append((f"{name} {' '.join(done)}", call, request))

    draw()
    assert len(drawn) >= 150 and await faults(iter(drawn)) == []
    assert not [record for record in caplog.records if record.exc_info], caplog.text


@pytest.mark.parametrize("token", [["default", 0, 10**23], ["default", 0, 0], ["default", 0, True], 7], ids=str)
async def test_a_page_token_of_no_answer_is_refused(world: World, token: object) -> None:
    """Numbers beyond a row's, and what is no list of three, are INVALID_FIELD of page_token (r3)."""
    text = base64.urlsafe_b64encode(json.dumps(token).encode()).decode()
    call = world.tunings.ListTunings(ListTuningsRequest(page_token=text))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "page_token")


async def test_a_page_token_of_brackets_is_refused(world: World) -> None:
    """100,000 brackets within each other are INVALID_FIELD (r3)."""
    call = world.tunings.ListTunings(ListTuningsRequest(page_token=base64.urlsafe_b64encode(b"[" * 100_000).decode()))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "page_token")


@pytest.mark.parametrize("after", [1000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
async def test_a_sequence_that_no_event_has_is_refused(world: World, after: int) -> None:
    """However large it is, with the number of the last event as the remedy (r2)."""
    tuning = await world.tuned()
    call = world.tunings.WatchTuning(WatchTuningRequest(name=tuning.name, after_sequence=after))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "after_sequence")
    assert error.metadata["value"] == str(after) and "the last event so far is" in error.metadata["remedy"]


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(253402300800, 0), (-62135596801, 0), ((1 << 63) - 1, 0), (4e9, -1), (4e9, 1_000_000_000)]
)
async def test_a_time_that_is_none_is_refused(world: World, seconds: float, nanos: int) -> None:
    """Years before 1 and after 9999, and nanoseconds that are none, are INVALID_FIELD (r4)."""
    tuning = await world.tuned()
    wanted = Tuning(name=tuning.name, expire_time=Timestamp(seconds=int(seconds), nanos=nanos))
    call = world.tunings.UpdateTuning(UpdateTuningRequest(tuning=wanted))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "tuning.expire_time")


async def test_the_last_second_of_the_year_9999_is_a_time(world: World) -> None:
    """The far end of what is allowed is kept and told as it came (r4)."""
    tuning, last = await world.tuned(), Timestamp(seconds=253402300799)
    wanted = Tuning(name=tuning.name, expire_time=last)
    assert (await world.tunings.UpdateTuning(UpdateTuningRequest(tuning=wanted))).expire_time == last


@pytest.mark.parametrize("size", [2_000, 100_000])
async def test_a_long_etag_is_refused_with_details(world: World, size: int) -> None:
    """The etag is cut, and reason, field and remedy arrive however long it was (r5)."""
    tuning = await world.tuned()
    call = world.tunings.UpdateTuning(UpdateTuningRequest(tuning=Tuning(name=tuning.name, etag="x" * size)))
    error = await refused(call, grpc.StatusCode.ABORTED, "ETAG_MISMATCH", "tuning.etag")
    assert len(error.metadata["value"]) <= 80
