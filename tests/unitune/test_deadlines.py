"""Clients that send half of a request, and readers that do not read: each is cut, and its cost is bounded."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.gateway.conftest import eventually, refused
from unitune import deadlines, error_interceptor, serving
from unitune.errors import Unauthenticated
from unitune.v1 import image_pb2, image_pb2_grpc, server_pb2, server_pb2_grpc, tuning_pb2, tuning_pb2_grpc

PIECE = 300 << 10  # more than a stream's window of 64 KiB


class Tunings(tuning_pb2_grpc.TuningServiceServicer):
    """Watches that send large events as fast as they are taken."""

    def __init__(self) -> None:
        self.told, self.closed = 0, 0

    async def WatchTuning(self, request: Any, context: Any) -> AsyncGenerator[tuning_pb2.TuningEvent, None]:
        try:
            while True:
                tuning = tuning_pb2.Tuning(name="x" * PIECE)
                self.told += 1
                yield tuning_pb2.TuningEvent(snapshot=tuning)
        finally:
            self.closed += 1


class Images(image_pb2_grpc.ImageServiceServicer):
    """Uploads that are counted."""

    async def UploadImage(self, requests: AsyncIterator[Any], context: Any) -> image_pb2.Image:
        return image_pb2.Image(size_bytes=len([request async for request in requests]))


class Server(server_pb2_grpc.ServerServiceServicer):
    """Answers at once."""

    async def GetServerInfo(self, request: Any, context: Any) -> server_pb2.ServerInfo:
        return server_pb2.ServerInfo(version="1")


@contextlib.asynccontextmanager
async def served(tunings: Tunings, door: Any = None) -> AsyncIterator[grpc.aio.Channel]:
    """A server with all of them, and a connection."""

    def register(server: grpc.aio.Server) -> list[str]:
        tuning_pb2_grpc.add_TuningServiceServicer_to_server(tunings, server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(Images(), server)
        server_pb2_grpc.add_ServerServiceServicer_to_server(Server(), server)
        return []

    running = await serving.start("127.0.0.1:0", register, door=door)
    channel = serving.channel(running.address)
    yield channel
    await channel.close(None)
    await running.stop()


@pytest.mark.parametrize("method", ["ServerService/GetServerInfo", "TuningService/WatchTuning"])
async def test_a_call_that_sends_no_request_is_cut(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is opened and left so ends with a deadline of the server's, and says why (R8)."""
    monkeypatch.setattr(deadlines, "READ_S", 0.3)
    async with served(Tunings()) as channel:
        call = channel.stream_stream(f"/unitune.v1.{method}")(timeout=20)
        error = await refused(call, grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_SLOW")
        assert "0.3 seconds" in error.message
        info = await server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(server_pb2.GetServerInfoRequest())
        assert info.version == "1"


async def test_a_request_that_stops_half_way_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence between two messages is measured anew after each: a slow stream is fine, one that stops is cut (R8)."""
    monkeypatch.setattr(deadlines, "READ_S", 1.0)
    async with served(Tunings()) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        slow = stub.UploadImage(timeout=30)
        for _ in range(5):
            await slow.write(image_pb2.UploadImageRequest(chunk=b"x"))
            await asyncio.sleep(0.3)
        await slow.done_writing()
        assert (await slow).size_bytes == 5
        stopped = stub.UploadImage(timeout=30)
        await stopped.write(image_pb2.UploadImageRequest(chunk=b"x"))
        await refused(stopped, grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_SLOW")


async def test_a_reader_that_never_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generator is closed while it still does not read; who comes back gets what was sent, and the reason (R9)."""
    monkeypatch.setattr(deadlines, "WRITE_S", 0.5)
    monkeypatch.setattr(deadlines, "SLOWEST_BYTES_PER_S", 1 << 40)
    tunings = Tunings()
    async with served(tunings) as channel:
        stub = tuning_pb2_grpc.TuningServiceStub(channel)
        call = stub.WatchTuning(tuning_pb2.WatchTuningRequest(name="x"), timeout=60)

        async def is_closed() -> bool:
            return tunings.closed == 1

        await eventually(is_closed)
        assert tunings.told <= 4
        await refused(call, grpc.StatusCode.DEADLINE_EXCEEDED, "READER_TOO_SLOW")

        events = 0
        async for _ in stub.WatchTuning(tuning_pb2.WatchTuningRequest(name="x"), timeout=60):
            await asyncio.sleep(0.05)
            events += 1
            if events == 30:  # slower than the server, for longer than the deadline
                break
        assert events == 30


async def test_watches_of_health_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no credential and have no end. Beyond so many a further one is refused, health is answered all the
    same, and one that ends makes room."""
    monkeypatch.setattr(error_interceptor, "HEALTH_WATCHES", 3)
    request = health_pb2.HealthCheckRequest()
    async with served(Tunings()) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(request) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(3):
            error = await refused(health.Watch(request), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
            assert error.retry_after_s
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watches[0].cancel()

        async def has_room() -> bool:
            watch = health.Watch(request)
            try:
                return (await watch.read()) is not grpc.aio.EOF
            except grpc.aio.AioRpcError:
                return False
            finally:
                watch.cancel()

        await eventually(has_room)


class ShutDoor:
    """Refuses every call."""

    async def admit(self, method: str, context: Any) -> None:
        raise Unauthenticated("show a key", reason="CREDENTIAL_MISSING")

    def holding(self, method: str) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def check(self, request: Any) -> None:
        pass


async def test_who_is_refused_while_sending_sees_the_refusal() -> None:
    """Uploads that go on while the server refuses them, and calls that half-close then: each of them is told why."""

    async def upload() -> AsyncGenerator[image_pb2.UploadImageRequest, None]:
        for _ in range(40):
            yield image_pb2.UploadImageRequest(chunk=bytes(200_000))

    async with served(Tunings(), ShutDoor()) as channel:
        for number in range(50):
            if number % 2:
                call = image_pb2_grpc.ImageServiceStub(channel).UploadImage(upload(), timeout=20)
            else:
                call = channel.stream_stream("/unitune.v1.TuningService/WatchTuning")(timeout=20)
                await call.write(b"")
                await call.done_writing()
            await refused(call, grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")


async def test_who_goes_on_sending_is_refused_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of a refused call is bounded by time and by bytes, and one that sends nothing waits no longer."""
    for limit in ("REST_S", "REST_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(deadlines, limit, 0.2)
            taken = 0

            async def upload() -> AsyncGenerator[image_pb2.UploadImageRequest, None]:
                nonlocal taken
                while True:
                    taken += 1
                    yield image_pb2.UploadImageRequest(chunk=bytes(1000))
                    await asyncio.sleep(0.01)

            async with served(Tunings(), ShutDoor()) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await image_pb2_grpc.ImageServiceStub(channel).UploadImage(upload(), timeout=20)
            assert 0 < taken < 200


class Answer:
    """An answer that counts how often it is encoded."""

    encoded = 0

    def SerializeToString(self) -> bytes:
        self.encoded += 1
        return bytes(PIECE)

    def ByteSize(self) -> int:  # which encodes the whole message, too
        return len(self.SerializeToString())


async def test_an_answer_is_encoded_once() -> None:
    """Each message of a stream is turned into bytes one time, for its size and for the wire."""
    answers = [Answer() for _ in range(3)]

    async def stream(request: Any, context: Any) -> AsyncGenerator[Answer, None]:
        for answer in answers:
            yield answer

    def register(server: grpc.aio.Server) -> list[str]:
        handler = grpc.unary_stream_rpc_method_handler(stream, bytes, Answer.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Stream": handler}),))
        return []

    running = await serving.start("127.0.0.1:0", register, reflection_on=False)
    try:
        async with serving.channel(running.address) as channel:
            got = [len(data) async for data in channel.unary_stream("/test.Service/Stream")(b"x", timeout=30)]
    finally:
        await running.stop()
    assert got == [PIECE] * 3 and [answer.encoded for answer in answers] == [1] * 3


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
async def test_a_connection_that_does_not_begin_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends nothing, or half of how HTTP/2 begins, does not keep its socket (R8)."""
    monkeypatch.setattr(serving, "HANDSHAKE_S", 0.5)
    running = await serving.start("127.0.0.1:0", lambda server: [])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.address.rpartition(":")[2]))
    writer.write(sent)
    async with asyncio.timeout(30):  # grpc's own default is two minutes
        while await reader.read(1000):
            pass
    writer.close()
    await running.stop()
