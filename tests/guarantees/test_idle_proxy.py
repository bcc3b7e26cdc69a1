"""A watch through a proxy that cuts idle connections, with all times scaled down."""

import asyncio
from dataclasses import replace

import grpc

from bench.soak.proxy import Proxy
from tests.gateway.conftest import World, eventually, world
from unitune import serving
from unitune.v1.tuning_pb2 import WatchTuningRequest
from unitune.v1.tuning_pb2_grpc import TuningServiceStub
from unitune_client import channel

__all__ = ["world"]  # a fixture

IDLE_S = 1.5  # as 60 s is to a heartbeat of 15 s
HEARTBEAT_S = IDLE_S / 4


async def test_a_watch_without_news_outlives_an_idle_proxy(world: World) -> None:
    """A tuning that waits has no news. Its watch lives on through four of the proxy's times by heartbeats alone, and a
    connection without calls is cut meanwhile (check 22)."""
    world.config = replace(world.config, heartbeat_s=HEARTBEAT_S, position_s=600.0)
    await world.close()
    await world.open()
    world.tuner.go_on.clear()
    await world.tune(seed=1)
    waiting = await world.tune(seed=2)
    assert world.server is not None
    proxy = Proxy(world.server.address, idle_s=IDLE_S)
    await proxy.start()
    async with serving.channel(proxy.address) as watching, serving.channel(proxy.address) as silent:
        await silent.channel_ready()
        call = TuningServiceStub(watching).WatchTuning(WatchTuningRequest(name=waiting.name))
        assert (await call.read()).HasField("queued")
        ends_at, heartbeats = asyncio.get_running_loop().time() + 4 * IDLE_S, 0
        while asyncio.get_running_loop().time() < ends_at:
            event = await call.read()
            assert event is not grpc.aio.EOF
            heartbeats += event.HasField("heartbeat")
        assert heartbeats >= 4

        async def is_cut() -> bool:
            return proxy.idle_cuts == 1

        await eventually(is_cut)
        world.tuner.go_on.set()
        while not event.HasField("ready"):
            event = await call.read()
    await proxy.stop()


async def test_a_client_pings_no_more_often_than_a_server_allows() -> None:
    """A server ends the connections of clients that ping more often than it says; ours, and services', ping less often
    (check 22)."""
    allowed = dict(serving.server_options(1 << 20))["grpc.http2.min_ping_interval_without_data_ms"]
    for options in (channel.CHANNEL_OPTIONS, serving.CHANNEL_OPTIONS):
        assert int(dict(options)["grpc.keepalive_time_ms"]) > int(allowed)
