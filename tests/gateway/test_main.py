"""The gateway as a program: started, killed, stopped by a signal."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.gateway.conftest import World, picture
from tests.gateway.upstream_servers import serve_tuner
from unitune import serving
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.edit_pb2_grpc import EditServiceStub
from unitune.v1.tuning_pb2 import Tuning, WatchTuningRequest
from unitune.v1.tuning_pb2_grpc import TuningServiceStub

pytestmark = pytest.mark.slow  # real processes

ROOT = Path(__file__).parents[2]


async def start(world: World, *, program: Sequence[str] = ("-m", "gateway"), **settings: str) -> tuple[Process, str]:
    """A gateway process on the world's state and store, and its address. `program` is what Python runs."""
    if not world.port:
        with socket.create_server(("127.0.0.1", 0)) as free:
            world.port = free.getsockname()[1]
    internal = f"127.0.0.1:{world.port}"
    if not world.tuners:
        world.tuners.append(await serve_tuner(world.tuner, internal))
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")},
        "UNITUNE_GATEWAY_ADDRESS": "127.0.0.1:0",
        "UNITUNE_INTERNAL_ADDRESS": internal,
        "UNITUNE_SAMPLER": world.sampler_server.address,
        "UNITUNE_STORE": str(world.folder / "store"),
        "UNITUNE_STATE": str(world.folder / "process.sqlite"),
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, cwd=ROOT, env=environ, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    return process, line.removeprefix("listening ").strip()


def begin(address: str) -> tuple[grpc.aio.Channel, Any]:
    """A channel and an edit that makes its tuning first."""
    channel = serving.channel(address)
    return channel, EditServiceStub(channel).Edit(EditRequest(image_data=picture(), prompt="a dog"))


async def test_a_killed_gateway_goes_on_where_it_was(world: World) -> None:
    """SIGKILL in the middle of a tuning: its tuner goes on with it and reports to the next process, and a watcher
    resumes without a gap (R5)."""
    world.tuner.go_on.clear()
    process, address = await start(world)
    channel, call = begin(address)
    seen = []
    while not seen or not seen[-1].HasField("progress"):
        event = await call.read()
        if event.tuning.sequence:
            seen.append(event.tuning)
    process.kill()
    await process.wait()
    await channel.close(None)
    world.tuner.go_on.set()
    process, address = await start(world)
    async with serving.channel(address) as channel:
        request = WatchTuningRequest(name=world.tuner.requests[0].name, after_sequence=seen[-1].sequence)
        call = TuningServiceStub(channel).WatchTuning(request, timeout=20)
        seen += [event async for event in call if event.sequence]
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert [event.started.attempt for event in seen if event.HasField("started")] == [1]
    assert seen[-1].ready.state == Tuning.STATE_READY
    process.terminate()
    assert await process.wait() == 0


async def test_sigterm_lets_an_edit_finish(world: World) -> None:
    """On SIGTERM health says NOT_SERVING, new calls are refused, the edit that runs is finished, and the code is 0."""
    world.sampler.step_s = 0.05
    process, address = await start(world, UNITUNE_HEALTH_ADDRESS="127.0.0.1:0")
    channel, call = begin(address)
    while not (await call.read()).HasField("step"):
        pass
    process.send_signal(signal.SIGTERM)
    last = None
    while (event := await call.read()) is not grpc.aio.EOF:
        last = event
    assert last is not None and last.HasField("done")
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert process.stdout is not None and await process.stdout.read() == b""
    await channel.close(None)


async def test_a_wrong_setting_stops_the_start(world: World) -> None:
    """One line on stderr names the setting and what would be right; nothing is printed to stdout."""
    text = world.folder / "text"
    text.write_text("not a database, and long enough to tell " * 20)
    for settings, words in (
        ({"UNITUNE_STROE": "x"}, ["UNITUNE_STROE", "UNITUNE_STORE"]),
        ({"UNITUNE_STORE": "nonsense://x"}, ["UNITUNE_STORE", "nonsense://x"]),
        ({"UNITUNE_STATE": str(text)}, ["text", "not a database"]),
        ({"UNITUNE_STATE": "postgresql://me:word@127.0.0.1:1/none"}, ["127.0.0.1:1/none", "check UNITUNE_STATE"]),
        ({"UNITUNE_STATE": "postgresql+psycopg://me:word@db/none"}, ["UNITUNE_STATE", "another kind"]),
        ({"UNITUNE_STATE_LISTEN": "postgresql://elsewhere"}, ["UNITUNE_STATE_LISTEN", "leave it out"]),
        ({"UNITUNE_STATE_LISTEN": "postgrs://me:word@db"}, ["UNITUNE_STATE_LISTEN", "is no URL"]),
        ({"UNITUNE_STORE_SIGNED_ENDPOINT": "bucket:9000"}, ["UNITUNE_STORE_SIGNED_ENDPOINT", "http(s)://HOST"]),
        ({"UNITUNE_STORE_SIGNED_ENDPOINT": "https://bucket"}, ["UNITUNE_STORE_SIGNED_ENDPOINT", "leave it out"]),
        ({"UNITUNE_GATEWAY_ADDRESS": world.sampler_server.address}, [world.sampler_server.address, "in use"]),
        ({"UNITUNE_INTERNAL_ADDRESS": world.sampler_server.address}, [world.sampler_server.address, "in use"]),
        ({"UNITUNE_LEASE_S": "0.5"}, ["UNITUNE_LEASE_S", "0.5", "1 or more"]),
    ):
        process, line = await start(world, **settings)
        assert line == "" and await process.wait() == 1
        assert process.stderr is not None
        told = (await process.stderr.read()).decode().splitlines()
        lines = [text for text in told if "add_port.cc" not in text and not text.startswith("{")]  # without the log
        assert len(lines) == 1 and all(word in lines[0] for word in words), lines


async def test_health_and_reflection_answer(world: World) -> None:
    """A probe and a tool that knows nothing of us find all services."""
    assert world.channel is not None
    health = health_pb2_grpc.HealthStub(world.channel)
    names = ["", "liveness", "readiness", "unitune.v1.TuningService", "unitune.v1.EditService", "unitune.v1.KeyService"]
    for name in [*names, "unitune.v1.ImageService", "unitune.v1.ServerService"]:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert world.gateway is not None
    server = await serving.start("127.0.0.1:0", world.gateway.register, reflection_on=True)
    async with serving.channel(server.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        found = {service.name for service in answer.list_services_response.service}
        assert {"unitune.v1.TuningService", "unitune.v1.EditService", "grpc.health.v1.Health"} <= found
        call.cancel()
    await server.stop()
