"""What edits and watches of the SDK survive: killed and drained gateways, lost samplers, cut connections."""

import asyncio
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bench.soak.proxy import Proxy
from tests.gateway.conftest import World, eventually, picture
from tests.gateway.test_lives import service
from tests.gateway.test_main import start
from tests.postgres_server import PostgresServer
from unitune_client import (
    AsyncClient,
    Client,
    EditAccepted,
    EditDone,
    EditedImage,
    EditEvent,
    EditState,
    EditStep,
    Retrying,
    TuningEvent,
    TuningProgress,
    TuningQueued,
    TuningReady,
    TuningStarted,
)

pytestmark = pytest.mark.slow  # real services, killed and started again

OPTIONS: dict[str, Any] = {"seeds": [3, 5], "preview_every": 2}


class RestartedGateway:
    """A gateway process, and others after it at the same address."""

    def __init__(self, world: World, **settings: str) -> None:
        self._world, self._settings = world, settings
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.process: Process | None = None

    async def start(self) -> None:
        """The next one."""
        settings = {**self._settings, "UNITUNE_GATEWAY_ADDRESS": self.address}
        self.process, address = await start(self._world, **settings)
        assert address == self.address

    async def kill(self) -> None:
        """By SIGKILL."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def restarted(world: World, **settings: str) -> AsyncIterator[RestartedGateway]:
    """One that runs, with these settings, too."""
    gateway = RestartedGateway(world, **settings)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.kill()


async def followed(
    client: AsyncClient,
    target: Any,
    on_event: Callable[[EditEvent], Coroutine[Any, Any, object]] | None = None,
) -> list[EditEvent]:
    """All events of an edit."""
    seen: list[EditEvent] = []
    async with asyncio.timeout(120):
        async for event in client.edit(target, "a dog", **OPTIONS):
            seen.append(event)
            if on_event is not None:
                await on_event(event)
    return seen


def pngs(seen: list[EditEvent]) -> list[bytes]:
    """The pictures' files, by seed."""
    images = [event for event in seen if isinstance(event, EditedImage)]
    assert [image.seed for image in images] == OPTIONS["seeds"]
    return [image.png for image in images]


def assert_hardly_noticed(seen: list[EditEvent], losses: int) -> None:
    """One end, one word of the loss, a name for each attempt, and every other event once and in order."""
    kinds = [type(event) for event in seen]
    assert kinds[-1] is EditDone and [kinds.count(kind) for kind in (EditDone, Retrying)] == [1, 1], kinds
    assert len({event.edit for event in seen if isinstance(event, EditAccepted)}) == losses + 1
    steps = [event.index for event in seen if isinstance(event, EditStep)]
    of_tuning = TuningQueued | TuningStarted | TuningProgress | TuningReady
    sequences = [event.sequence for event in seen if isinstance(event, of_tuning)]
    assert steps == sorted(set(steps)) and sequences == sorted(set(sequences))


async def test_killed_gateways_fail_no_edit_and_no_watch(world: World) -> None:
    """SIGKILL while an edit waits for its tuning, and again between its steps: each time the next gateway has the
    tuning, the pictures are those of an edit that nothing disturbed, and a watch has every event once."""
    world.tuner.go_on.clear()
    world.sampler.step_s = 0.1
    killed = set[type]()

    async with restarted(world) as gateway, AsyncClient(gateway.address) as client:

        async def kill(event: EditEvent) -> None:
            if type(event) in (TuningProgress, EditStep) and type(event) not in killed:
                killed.add(type(event))
                await gateway.kill()
                world.tuner.go_on.set()
                await gateway.start()

        watched: list[TuningEvent] = []
        tuning = await client.create_tuning(picture())

        def watch() -> None:
            with Client(gateway.address) as other:
                watched.extend(other.watch_tuning(tuning.name))

        watching = asyncio.create_task(asyncio.to_thread(watch))
        await eventually(lambda: _begun(watched))
        seen = await followed(client, picture(), kill)
        await asyncio.wait_for(watching, 60)
        calm = await followed(client, picture())

    assert killed == {TuningProgress, EditStep} and len(world.tuner.requests) == 1
    assert_hardly_noticed(seen, losses=2)
    assert pngs(seen) == pngs(calm)
    numbers = [event.sequence for event in watched if event.sequence]
    assert numbers == list(range(1, len(numbers) + 1)) and isinstance(watched[-1], TuningReady)


async def _begun(watched: list[TuningEvent]) -> bool:
    return any(isinstance(event, TuningProgress) for event in watched)


async def test_a_drained_gateway_fails_no_edit(world: World) -> None:
    """SIGTERM ends an edit that waits for its tuning, which another gateway then goes on with."""
    world.tuner.go_on.clear()

    async with restarted(world) as gateway, AsyncClient(gateway.address) as client:

        async def drain(event: EditEvent) -> None:
            if isinstance(event, Retrying):
                assert event.error.reason == "DRAINING"
                assert gateway.process is not None and await asyncio.wait_for(gateway.process.wait(), 60) == 0
                world.tuner.go_on.set()
                await gateway.start()
            elif isinstance(event, TuningProgress) and not world.tuner.go_on.is_set():
                assert gateway.process is not None
                gateway.process.terminate()

        seen = await followed(client, picture(), drain)
        calm = await followed(client, picture())

    assert_hardly_noticed(seen, losses=1)
    assert pngs(seen) == pngs(calm)


async def test_a_killed_sampler_fails_no_edit(world: World) -> None:
    """Another one at its address paints the same pictures."""
    await world.tuned()
    await world.close()
    with service(world, "sampler") as (process, address):
        world.config = type(world.config)(**{**vars(world.config), "sampler": address})
        await world.open()
        assert world.server is not None
        async with AsyncClient(world.server.address) as client:
            another = []

            async def kill(event: EditEvent) -> None:
                if isinstance(event, EditStep) and not another:
                    process.kill()
                    process.wait()
                    another.append(service(world, "sampler", address))
                    another[0].__enter__()

            try:
                seen = await followed(client, picture(), kill)
                calm = await followed(client, picture())
            finally:
                for one in another:
                    one.__exit__(None, None, None)

    assert_hardly_noticed(seen, losses=1)
    assert pngs(seen) == pngs(calm)


async def test_a_cut_connection_fails_no_edit(world: World) -> None:
    """The gateway ends the edit whose reader it lost, and the next one has the same pictures."""
    await world.tuned()
    world.sampler.step_s = 0.1
    assert world.server is not None
    proxy = Proxy(world.server.address)
    await proxy.start()
    cuts = []

    async def cut(event: EditEvent) -> None:
        if isinstance(event, EditStep) and not cuts:
            cuts.append(proxy.cut())

    async with AsyncClient(proxy.address) as client:
        seen = await followed(client, picture(), cut)
        calm = await followed(client, picture())
        first = next(event.edit for event in seen if isinstance(event, EditAccepted))
        assert (await client.get_edit(first)).state == EditState.CANCELLED
    await proxy.stop()

    assert_hardly_noticed(seen, losses=1)
    assert pngs(seen) == pngs(calm)


async def test_an_edit_that_was_done_is_not_sampled_again(world: World) -> None:
    """Its connection is lost after the sampler's last word and before the client's first picture: the client asks
    again, and has the pictures of the edit that it asked for first (F33)."""
    await world.tuned()
    world.sampler.step_s = 0.05
    assert world.server is not None
    proxy = Proxy(world.server.address)
    await proxy.start()
    sampled = len(world.sampler.requests)

    async def lose(event: EditEvent) -> None:
        if isinstance(event, EditStep) and proxy.passes.is_set() and not event.index:
            proxy.passes.clear()  # nothing more arrives
            assert world.gateway is not None
            await eventually(lambda: _ended(world))
            proxy.cut()
            proxy.passes.set()

    async with AsyncClient(proxy.address) as client:
        seen = await followed(client, picture(), lose)
    await proxy.stop()
    kinds = [type(event) for event in seen]
    assert [kinds.count(kind) for kind in (EditDone, Retrying)] == [1, 1] and len(pngs(seen)) == 2
    assert len({event.edit for event in seen if isinstance(event, EditAccepted)}) == 1
    assert len(world.sampler.requests) == sampled + 1


async def _ended(world: World) -> bool:
    assert world.gateway is not None
    return bool(world.gateway._results._ended)


async def test_gateways_that_are_replaced_one_by_one_fail_no_edit(
    world: World, postgres_server: PostgresServer
) -> None:
    """Two gateways are drained and started again, one after the other, twice, under edits and watches of clients that
    know both addresses: all edits are done, and every watch has every event once (F43)."""
    settings = {"UNITUNE_STATE": postgres_server.new_database()}
    world.tuner.update_s, world.sampler.step_s = 0.02, 0.02
    beside = settings | {"UNITUNE_INTERNAL_ADDRESS": "127.0.0.1:0"}  # tuners call the first
    async with restarted(world, **settings) as first, restarted(world, **beside) as second:
        pair, stopping, done = (first, second), asyncio.Event(), list[list[EditEvent]]()
        target = "ipv4:" + ",".join(gateway.address for gateway in pair)

        async def edits(number: int) -> None:
            async with AsyncClient(target) as client:
                while not stopping.is_set():
                    seed = 10 * number + len(done)
                    done.append([event async for event in client.edit(picture(), "a dog", seeds=[seed])])

        async def watches() -> None:
            async with AsyncClient(target) as client:
                number = 0
                while not stopping.is_set():
                    tuning = await client.create_tuning(picture(), tuning_seed=number, updates=40)
                    sequences = [event.sequence async for event in client.watch_tuning(tuning.name) if event.sequence]
                    assert sequences == list(range(1, len(sequences) + 1))
                    number += 1

        async with asyncio.TaskGroup() as group, asyncio.timeout(120):
            for number in range(2):
                group.create_task(edits(number))
            group.create_task(watches())
            for gateway in (*pair, *pair):
                before = len(done)
                await eventually(lambda before=before: _more(done, before), within_s=60)
                assert gateway.process is not None
                gateway.process.terminate()
                assert await asyncio.wait_for(gateway.process.wait(), 60) == 0
                await gateway.start()
            stopping.set()
    assert all(isinstance(events[-1], EditDone) for events in done)


async def _more(done: list[list[EditEvent]], than: int) -> bool:
    return len(done) > than
