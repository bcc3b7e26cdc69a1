"""How a service of ours answers, is probed and stops, on a real server on loopback."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tests.gateway.conftest import eventually
from unitune import serving
from unitune.errors import Aborted, InvalidField, Unavailable, from_rpc_error
from unitune.v1 import edit_pb2, edit_pb2_grpc, image_pb2, image_pb2_grpc

pytestmark = pytest.mark.slow  # real processes, and ages and deadlines that pass

ROOT = Path(__file__).parents[2]


class Service(edit_pb2_grpc.EditServiceServicer, image_pb2_grpc.ImageServiceServicer):
    """Does what the prompt says, and remembers how its last stream ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.peers: list[str] = []

    async def Edit(self, request: edit_pb2.EditRequest, context: Any) -> AsyncIterator[edit_pb2.EditEvent]:
        self.peers.append(context.peer())
        try:
            for number in range(1, 1000):
                if request.prompt == "refuse":
                    raise InvalidField("prompt", "refuse", "ask for something else")
                if request.prompt == "break":
                    raise KeyError("/secret/path")
                yield edit_pb2.EditEvent(sequence=number, step=edit_pb2.EditEvent.Step(preview=bytes(50_000)))
                if request.prompt == f"stop at {number}":
                    return
                await asyncio.sleep(0.005)
        finally:
            self.ended.set()

    async def GetEdit(self, request: edit_pb2.GetEditRequest, context: Any) -> edit_pb2.Edit:
        if request.name == "break":
            raise KeyError("/secret/path")
        if request.name == "late":  # nothing is heard of the client meanwhile
            time.sleep(0.5)
        if request.name in ("busy", "late"):
            raise Unavailable("busy", reason="BUSY", retry_after_s=1.5)
        if len(request.name) > 1000:
            raise Aborted.field_error("name", request.name, "read it again", reason="CHANGED")
        return edit_pb2.Edit(name=request.name)

    async def UploadImage(self, requests: AsyncIterator[image_pb2.UploadImageRequest], context: Any) -> image_pb2.Image:
        return image_pb2.Image(size_bytes=sum([len(request.chunk) async for request in requests]))

    async def CancelEdit(self, request: edit_pb2.CancelEditRequest, context: Any) -> edit_pb2.Edit:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by itself")
        raise AssertionError

    def register(self, server: grpc.aio.Server) -> list[str]:
        """Add it to a server."""
        edit_pb2_grpc.add_EditServiceServicer_to_server(self, server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(self, server)
        return ["unitune.v1.EditService"]


class Client:
    """A server with that service, and a stub for it."""

    def __init__(self, service: Service, server: serving.RunningServer, channel: grpc.aio.Channel) -> None:
        self.service, self.server, self.channel = service, server, channel
        self.stub: Any = edit_pb2_grpc.EditServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """An open server."""
    service = Service()
    server = await serving.start("127.0.0.1:0", service.register)
    async with serving.channel(server.address) as channel:
        yield Client(service, server, channel)
    await server.stop()


async def caught(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return raised.value


async def test_an_error_of_ours_arrives_as_it_was(client: Client) -> None:
    """Class, message, reason, metadata and the invitation to retry survive the wire, unary and streamed."""
    error = from_rpc_error(await caught(client.stub.Edit(edit_pb2.EditRequest(prompt="refuse"))))
    assert isinstance(error, InvalidField) and error.field == "prompt"
    assert error.message == str(InvalidField("prompt", "refuse", "ask for something else"))
    busy = from_rpc_error(await caught(client.stub.GetEdit(edit_pb2.GetEditRequest(name="busy"))))
    assert isinstance(busy, Unavailable) and busy.reason == "BUSY" and busy.retry_after_s == 1.5


async def test_a_mistake_of_ours_says_nothing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Any other exception is INTERNAL with ErrorInfo alone; what it said is in the log, and the server lives on."""
    calls = (
        client.stub.GetEdit(edit_pb2.GetEditRequest(name="break")),
        client.stub.Edit(edit_pb2.EditRequest(prompt="break")),
    )
    for call in calls:
        raised = await caught(call)
        assert raised.code() is grpc.StatusCode.INTERNAL and "secret" not in str(rpc_status.from_call(raised))
        assert from_rpc_error(raised).reason == "INTERNAL"
    assert "/secret/path" in caplog.text
    assert (await client.stub.GetEdit(edit_pb2.GetEditRequest(name="x"))).name == "x"


UNREADABLE = {
    "wrong wire type": b"\xff\xff\xff",
    "cut short": b"\n\x7fabc",
    "a string that is not UTF-8": b"\n\x02\xff\xfe",
    "random": bytes(range(7, 256)),
    "too deep": b"\x1b" * 500,
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_bytes_that_are_no_request_are_refused(
    client: Client, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """INVALID_ARGUMENT with ErrorInfo for every shape of call, one line in the log and no traceback (r1)."""
    caplog.set_level(logging.INFO)
    for call in (
        client.channel.unary_unary("/unitune.v1.EditService/GetEdit")(data),
        client.channel.unary_stream("/unitune.v1.EditService/Edit")(data),
        client.channel.stream_unary("/unitune.v1.ImageService/UploadImage")([b"\x12\x01x", data]),
        client.channel.unary_unary("/grpc.health.v1.Health/Check")(data),
    ):
        raised = await caught(call)
        assert raised.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert from_rpc_error(raised).reason == "REQUEST_UNREADABLE"

    async def told() -> list[logging.LogRecord]:
        lines = [record for record in caplog.records if record.name != "asyncio"]
        return lines if len(lines) >= 3 else []

    # An answer is there before its call's line, and a server that stops at once cancels the call between the two.
    await eventually(told)
    await client.server.stop()  # until then the server may still write another line
    lines = await told()
    assert len(lines) == 3 and not any(record.exc_info for record in caplog.records), caplog.text


async def test_a_call_without_a_request_is_refused(client: Client) -> None:
    """A client that ends its side without a request does not wait for ever (r1)."""
    for call in (
        client.channel.stream_unary("/unitune.v1.EditService/GetEdit")([], timeout=30),
        client.channel.stream_stream("/unitune.v1.EditService/Edit")([], timeout=30),
    ):
        assert from_rpc_error(await caught(call)).reason == "REQUEST_UNREADABLE"


async def test_details_of_the_longest_error_arrive(client: Client) -> None:
    """gRPC drops details above 8 KB; those of a refused value of 100 KB arrive whole (r5)."""
    for name in ("x" * 100_000, "\U000e0001" * 25_000, "\0" * 100_000):
        error = from_rpc_error(await caught(client.stub.GetEdit(edit_pb2.GetEditRequest(name=name))))
        assert isinstance(error, Aborted) and error.field == "name"
        assert error.metadata["remedy"] == "read it again" and error.message.endswith("read it again")


async def test_a_handler_may_answer_by_itself(client: Client) -> None:
    """A servicer that is not ours aborts with a status of its own, which stays."""
    assert (await caught(client.stub.CancelEdit(edit_pb2.CancelEditRequest()))).code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_stream_is_cleaned_up_when_its_client_goes(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """At once, whether the handler waits or is blocked in a write to a reader that sleeps; neither is our mistake."""
    caplog.set_level(logging.INFO)
    for wait_s in (0.0, 0.5):
        client.service.ended.clear()
        call = client.stub.Edit(edit_pb2.EditRequest(prompt="on and on"))
        await call.read()
        await asyncio.sleep(wait_s)
        call.cancel()
        await asyncio.wait_for(client.service.ended.wait(), 10)
    assert "call failed" not in caplog.text


async def test_an_error_that_reaches_nobody_is_no_mistake(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The client goes while its call is about to be refused: no traceback is logged, and the server lives on."""

    def leave() -> None:
        with grpc.insecure_channel(client.server.address) as channel:
            call = edit_pb2_grpc.EditServiceStub(channel).GetEdit.future(edit_pb2.GetEditRequest(name="late"))
            time.sleep(0.2)
            call.cancel()

    for _ in range(3):
        await asyncio.to_thread(leave)
    assert (await client.stub.GetEdit(edit_pb2.GetEditRequest(name="x"))).name == "x"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_slow_reader_holds_the_handler_back(client: Client) -> None:
    """A reader that stops costs the server two windows, not the whole stream."""
    call = client.stub.Edit(edit_pb2.EditRequest(prompt="stop at 900"))
    first = await call.read()
    await asyncio.sleep(0.7)
    assert first.sequence == 1 and not client.service.ended.is_set()
    count = 0
    while await call.read() is not grpc.aio.EOF:
        count += 1
        if count == 20:
            call.cancel()
            break


async def test_services_reach_each_other_past_a_proxy(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose downloads go through a proxy has http_proxy set; calls between services do not go there."""
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving.channel(client.server.address) as channel:
        answer = await edit_pb2_grpc.EditServiceStub(channel).GetEdit(edit_pb2.GetEditRequest(name="x"))
    assert answer.name == "x"


async def test_health_follows_readiness(client: Client) -> None:
    """Not ready means NOT_SERVING for every service and for readiness, while liveness stays."""

    async def status(service: str) -> int:
        return (await client.health.Check(health_pb2.HealthCheckRequest(service=service))).status

    for service in ("", serving.READINESS, serving.LIVENESS, "unitune.v1.EditService"):
        assert await status(service) == health_pb2.HealthCheckResponse.SERVING
    await client.server.set_ready(False)
    for service in ("", serving.READINESS, "unitune.v1.EditService"):
        assert await status(service) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await status(serving.LIVENESS) == health_pb2.HealthCheckResponse.SERVING


async def test_a_health_port_of_its_own_serves_health_alone() -> None:
    """Probes have a port without the API, and it tells the same."""
    service = Service()
    free = await serving.start("127.0.0.1:0", Service().register)
    await free.stop()
    server = await serving.start("127.0.0.1:0", service.register, health_address=free.address)
    async with serving.channel(free.address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = edit_pb2_grpc.EditServiceStub(channel).GetEdit(edit_pb2.GetEditRequest(name="x"))
        assert (await caught(call)).code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop()


async def test_a_stream_outlives_the_age_of_its_connection() -> None:
    """A connection that is too old takes no new call, and cuts none that runs (R1)."""
    service = Service()
    server = await serving.start("127.0.0.1:0", service.register, connection_age_s=1.0)
    async with serving.channel(server.address) as channel:
        stub = edit_pb2_grpc.EditServiceStub(channel)
        call = stub.Edit(edit_pb2.EditRequest(prompt="stop at 900"))
        count = 0
        while await call.read() is not grpc.aio.EOF:
            count += 1
        assert count == 900  # which takes 4.5 seconds at least
        assert len([event async for event in stub.Edit(edit_pb2.EditRequest(prompt="stop at 1"))]) == 1
    await server.stop()
    assert len(set(service.peers)) == 2  # the age was in force: the later call has a connection of its own


def test_connections_between_services_have_no_age() -> None:
    """A server is given an age of connections by those alone who ask for it, and never a grace: it would cut (R1)."""
    for options in (serving.server_options(1), serving.server_options(1, 60.0)):
        names = [name for name, _ in options]
        assert ("grpc.max_connection_age_ms" in names) == (len(options) > len(serving.server_options(1)))
        assert "grpc.max_connection_age_grace_ms" not in names


async def test_an_address_in_use_is_one_clear_error(client: Client) -> None:
    """Two servers never share a port unnoticed."""
    with pytest.raises(OSError, match=f"cannot listen on {client.server.address}: it is in use"):
        await serving.start(client.server.address, Service().register)


async def test_a_request_larger_than_the_limit_is_refused() -> None:
    """The public limit is 4 MiB; the internal one takes a picture of 16 MiB."""
    service = Service()
    request = edit_pb2.EditRequest(prompt="stop at 1", image_data=bytes(16 << 20))
    for limit, code in ((serving.PUBLIC_REQUEST_BYTES, grpc.StatusCode.RESOURCE_EXHAUSTED), (None, None)):
        options = {} if limit is None else {"max_receive_bytes": limit}
        server = await serving.start("127.0.0.1:0", service.register, **options)
        async with serving.channel(server.address) as channel:
            call = edit_pb2_grpc.EditServiceStub(channel).Edit(request)
            if code is None:
                assert len([event async for event in call]) == 1
            else:
                assert (await caught(call)).code() is code
        await server.stop()


async def test_stop_gives_running_calls_their_time(client: Client) -> None:
    """A stream shorter than the drain ends by itself; a longer one is cut when the time is over."""
    short = client.stub.Edit(edit_pb2.EditRequest(prompt="stop at 20"))
    await short.read()
    stopping = asyncio.create_task(client.server.stop(5))
    count = 1
    while await short.read() is not grpc.aio.EOF:
        count += 1
    assert count == 20
    await asyncio.wait_for(stopping, 10)


PROGRAM = """
import asyncio, sys
from tests.unitune.test_serving import Service
from unitune import serving, telemetry

async def main():
    telemetry.configure("probe")
    async def drain():
        print("draining", flush=True)
    return await serving.serve("probe", sys.argv[1], Service().register, drain_s=float(sys.argv[2]), on_drain=drain)

sys.exit(asyncio.run(main()))
"""


async def program(address: str, drain_s: float, *, before: str = "") -> tuple[asyncio.subprocess.Process, str]:
    """A process that serves, and the first line it printed; `before` is code that it runs first."""
    command = [sys.executable, "-c", before + PROGRAM, address, str(drain_s)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environ, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    return process, (await asyncio.wait_for(process.stdout.readline(), 60)).decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_drains_on_a_signal(number: signal.Signals) -> None:
    """`listening HOST:PORT`, then on the signal `on_drain`, the running stream to its end, and exit code 0."""
    process, line = await program("127.0.0.1:0", 20)
    assert line.startswith("listening 127.0.0.1:")
    async with serving.channel(line.split()[1]) as channel:
        call = edit_pb2_grpc.EditServiceStub(channel).Edit(edit_pb2.EditRequest(prompt="stop at 60"))
        count = 0
        while await call.read() is not grpc.aio.EOF:
            count += 1
            if count == 3:
                process.send_signal(number)
        assert count == 60
    out, log = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0 and out == b"draining\n"
    lines = [json.loads(text) for text in log.decode().splitlines() if text.startswith("{")]
    assert [found["event"] for found in lines] == ["listening", "draining", "call", "stopped"]
    assert {found["service"] for found in lines} == {"probe"}
    assert lines[2]["method"] == "/unitune.v1.EditService/Edit" and lines[2]["code"] == "OK"


async def test_a_second_signal_hurries() -> None:
    """Whoever sends it twice does not wait for the drain."""
    process, line = await program("127.0.0.1:0", 60)
    assert process.stdout is not None
    async with serving.channel(line.split()[1]) as channel:
        call = edit_pb2_grpc.EditServiceStub(channel).Edit(edit_pb2.EditRequest(prompt="on and on"))
        await call.read()
        process.send_signal(signal.SIGTERM)
        assert await process.stdout.readline() == b"draining\n"
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


STUCK = """
import threading, time
from unitune import serving
serving.LEAVE_S = 0.5
threading.Thread(target=time.sleep, args=(600,), name="stuck").start()  # Python's end waits for it
"""


async def test_a_thread_that_does_not_end_holds_up_no_end() -> None:
    """Nothing waits longer than the drain and the time to leave; stderr says where each thread was (r19)."""
    process, _ = await program("127.0.0.1:0", 0.5, before=STUCK)
    process.send_signal(signal.SIGTERM)
    try:
        _, log = await asyncio.wait_for(process.communicate(), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 1
    assert b'"stopped"' in log and b"Timeout" in log and b"threading.py" in log


async def test_a_second_signal_waits_for_no_thread() -> None:
    """The time to leave then counts from the second signal, not from the end of the drain (r19)."""
    process, _ = await program("127.0.0.1:0", 600, before=STUCK)
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    assert await process.stdout.readline() == b"draining\n"
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.communicate(), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 1


async def test_serve_says_in_one_line_why_it_cannot(client: Client) -> None:
    """An address in use ends the program with code 1 and one line of ours."""
    process, line = await program(client.server.address, 1)
    _, log = await asyncio.wait_for(process.communicate(), 30)
    ours = [text for text in log.decode().splitlines() if text.startswith("probe:")]
    assert line == "" and process.returncode == 1 and len(ours) == 1 and client.server.address in ours[0]
