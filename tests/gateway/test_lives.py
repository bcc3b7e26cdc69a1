"""What a tuning survives: cut connections, frozen services, killed gateways, a disk that is full for a while."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest

from bench.soak.proxy import Proxy
from tests.configs import tuning_config
from tests.full_disk import fill, mounted
from tests.gateway.conftest import World, eventually, picture
from tests.gateway.test_main import start
from tests.gateway.upstream_servers import serve_sampler, serve_tuner
from unitune import serving
from unitune.errors import from_status
from unitune.images import MAX_CHUNK_BYTES
from unitune.options import Flat
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.image_pb2 import UploadImageRequest
from unitune.v1.image_pb2_grpc import ImageServiceStub
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import CreateTuningRequest, GetTuningRequest, Tuning, WatchTuningRequest
from unitune.v1.tuning_pb2_grpc import TuningServiceStub

pytestmark = pytest.mark.slow  # real services, killed and started again

ROOT = Path(__file__).parents[2]


# Connections


async def test_cut_connections_to_the_tuner_are_no_crash(world: World) -> None:
    """However often the connection of a tuner is cut under a run, the run goes on over the next one (R1)."""
    assert world.gateway is not None and world.tuner_server is not None
    proxy = Proxy(world.gateway.internal_address)
    await proxy.start()
    await world.tuner_server.stop()
    world.tuner_server = await serve_tuner(world.tuner, proxy.address)
    world.tuner.go_on.clear()
    tuning = await world.tune()
    await world.running(tuning.name)
    for _ in range(5):

        async def is_connected() -> bool:
            return proxy.cut() > 0

        await eventually(is_connected, within_s=30)
    world.tuner.go_on.set()
    await world.until(tuning.name, Tuning.STATE_READY)
    assert await world.attempts(tuning.name) == [1] and len(world.tuner.requests) == 1
    await world.tuner_server.stop()
    await proxy.stop()


async def test_a_run_may_be_older_than_its_connections(world: World) -> None:
    """A tuning and those who watch it live on when the gateway's connections are too old for new calls (R1)."""
    world.tuner.update_s = 0.5
    process, address = await start(world, UNITUNE_CONNECTION_AGE_S="1")
    async with serving.channel(address) as channel:
        image = await upload(channel)
        tunings = TuningServiceStub(channel)
        tuning = await tunings.CreateTuning(CreateTuningRequest(image=image, config=tuning_config(updates=12)))
        watched = []
        async for event in tunings.WatchTuning(WatchTuningRequest(name=tuning.name), timeout=60):
            watched.append(event)
            # New calls go on beside it, over new connections.
            assert (await tunings.GetTuning(GetTuningRequest(name=tuning.name), timeout=10)).name == tuning.name
    assert [event.started.attempt for event in watched if event.HasField("started")] == [1]
    assert watched[-1].HasField("ready")
    await end(process)


async def test_a_watch_outlasts_the_age_of_its_connection_a_hundred_times(world: World) -> None:
    """The reports of a tuning, and the watch that shows them, have no gap for as long as a hundred ages of the
    connection; nothing is reported or told twice (F22)."""
    assert world.gateway is not None
    world.tuner.update_s, age_s = 0.05, 0.05
    public = {"max_receive_bytes": serving.PUBLIC_REQUEST_BYTES, "door": world.gateway.access}
    server = await serving.start("127.0.0.1:0", world.gateway.register, connection_age_s=age_s, **public)
    tuning = await world.tune(updates=100)
    async with serving.channel(server.address) as channel:
        call = TuningServiceStub(channel).WatchTuning(WatchTuningRequest(name=tuning.name), timeout=60)
        events = [event async for event in call if event.sequence]
    updates = [event.progress.update for event in events if event.HasField("progress")]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1)) and events[-1].HasField("ready")
    assert events[-1].create_time.ToMicroseconds() - events[0].create_time.ToMicroseconds() >= 100 * 1e6 * age_s
    assert updates == sorted(set(updates)) and updates[-1] == 100

    async def is_answered() -> bool:  # the watch may tell of the end before the tuner hears that it is noted
        return world.tuner.orders == ["noted"]

    await eventually(is_answered)
    await server.stop()


async def test_an_edit_right_after_the_sampler_listens(world: World) -> None:
    """A sampler that is back is waited for, not refused for as long as the channel would wait to try again (r13)."""
    tuning = await world.tuned()
    address = world.sampler_server.address
    for seconds in (2.6, 3.2):  # meanwhile the channel fails to connect, and waits longer each time
        await world.sampler_server.stop()
        await asyncio.sleep(seconds)
        world.sampler_server = await serve_sampler(world.sampler, address)
        events = [event async for event in world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))]
        assert events[-1].HasField("done")


# What is known


async def test_a_gateway_that_starts_without_its_tuner_accepts_tunings(world: World) -> None:
    """What tuner and sampler last said outlives the gateway: tunings are accepted as before, and run later (r20)."""
    await world.known()
    await world.close()
    await world.tuner_server.stop()
    await world.sampler_server.stop()
    await world.open()
    tuning = await world.tune(seed=7)
    assert tuning.state == Tuning.STATE_QUEUED
    assert tuning.config.updates == 5 and Flat(tuning.config).mode == "attn_out"  # as the tuner told


async def test_services_that_got_another_base_model_are_waited_for(world: World) -> None:
    """A gateway that starts where an earlier one had another base model waits for its tuner, when the sampler answers
    first: what the earlier tuner said would be refused."""
    assert world.tuner is not None
    other = BaseModel(name="other", digest="5" * 64, width=64, height=64)
    await world.known()
    await world.close()
    await world.tuner_server.stop()
    world.tuner.base_model = world.sampler.base_model = other
    await world.open()

    tuning = asyncio.create_task(world.tune(seed=7))
    await asyncio.sleep(0.3)
    assert not tuning.done()
    world.tuner_server = await serve_tuner(world.tuner, world.gateway.internal_address)
    assert (await tuning).base_model == other.digest


# Frozen services

SERVICE = """
import asyncio, sys
from tests.gateway import upstream_servers as servers
from unitune.v1 import sampler_pb2, tuner_pb2
from unitune.v1.edit_pb2 import EditEvent
from unitune.object_store import ObjectStore

async def main():
    kind, store, address = sys.argv[1:]
    made = servers.Sampler(ObjectStore(store)) if kind == "sampler" else servers.Tuner(ObjectStore(store))
    if kind != "sampler":
        made.update_s = 0.05
        if kind == "held tuner":
            made.go_on.clear()
        server = await servers.serve_tuner(made, address)  # the gateway's
    else:
        made.step_s = 0.05
        server = await servers.serve_sampler(made, address)
    print(server.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def service(world: World, kind: str, address: str = "127.0.0.1:0") -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A stand-in tuner or sampler as a process of its own, which a signal can stop, and the sampler's address.

    `address` is that of the gateway for a tuner.
    """
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVICE, kind, str(world.folder / "store"), address]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().decode().strip()
    finally:
        process.kill()  # a stopped one, too
        process.wait()
        process.stdout.close()


async def impatient(world: World) -> str:
    """Open the world's gateway anew, with a short lease and no tuner; where tuners find it."""
    assert world.tuner_server is not None
    await world.known()
    await world.tuner_server.stop()
    await world.close()
    world.config = replace(world.config, lease_s=1.5)
    await world.open()
    assert world.gateway is not None
    return world.gateway.internal_address


async def test_a_frozen_tuner_is_given_up_and_not_blamed(world: World) -> None:
    """A tuner that stands still, its connection alive, loses its run when its lease runs out. When it goes on, the run
    is made again, and of the old one nothing is left (r7)."""
    with service(world, "tuner", await impatient(world)) as (process, _):
        tuning = await world.tune(updates=60)
        for _ in range(4):  # more often than a tuning may crash
            await world.until(tuning.name, Tuning.STATE_RUNNING)
            await eventually(lambda: has_progress(world, tuning.name))
            process.send_signal(signal.SIGSTOP)
            await asyncio.wait_for(world.until_not(tuning.name, Tuning.STATE_RUNNING), 30)
            process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            events = await world.watch(tuning.name)
        assert events[-1].HasField("ready"), events[-1]
        assert await world.attempts(tuning.name) == [1, 2, 3, 4, 5]
        await eventually(lambda: only_weights_of(world, events[-1].ready))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_another_tuner_goes_on_for_one_that_is_gone(world: World, end: signal.Signals) -> None:
    """When a tuner is killed, or stands still for longer than its lease, another one takes its tuning. One that goes on
    afterwards is told so: there is one READY, and the winner's weights alone (F17, F18)."""
    address = await impatient(world)
    with service(world, "tuner", address) as (process, _):
        tuning = await world.tune(updates=60)
        await eventually(lambda: has_progress(world, tuning.name), within_s=30)
        process.send_signal(end)
        world.tuner_server = await serve_tuner(world.tuner, address)
        async with asyncio.timeout(60):
            events = await world.watch(tuning.name)
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(1)  # for what must not happen
    assert [event.WhichOneof("event") for event in events].count("ready") == 1
    assert [event.started.attempt for event in events if event.HasField("started")] == [1, 2]
    assert await world.watch(tuning.name) == events
    assert await only_weights_of(world, events[-1].ready)


async def test_a_frozen_sampler_fails_its_edit_soon(world: World) -> None:
    """An edit whose sampler stands still ends with UNAVAILABLE, BACKEND_DOWN, within that silence (r7)."""
    tuning = await world.tuned()
    await world.close()
    with service(world, "sampler") as (process, address):
        world.config = replace(world.config, sampler=address, silence_s=3.0)
        await world.open()
        call = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
        async with asyncio.timeout(30):
            while not (event := await call.read()).HasField("step"):
                pass
            process.send_signal(signal.SIGSTOP)
            while (following := await call.read()) is not grpc.aio.EOF:
                event = following
        error = from_status(event.failed)
        assert (error.reason, error.metadata) == ("BACKEND_DOWN", {"upstream": "sampler"})


async def test_a_gateway_that_stood_still_blames_nobody(world: World) -> None:
    """Time in which the gateway itself did not run is no silence of its tuner: the run goes on where it was (r7)."""
    world.tuner.update_s = 0.2
    process, address = await start(world, UNITUNE_LEASE_S="3")
    async with serving.channel(address) as channel:
        tunings = TuningServiceStub(channel)
        config = tuning_config(updates=30)
        tuning = await tunings.CreateTuning(CreateTuningRequest(image=await upload(channel), config=config))
        call = tunings.WatchTuning(WatchTuningRequest(name=tuning.name))
        while not (event := await call.read()).HasField("progress"):
            pass
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(4)
        process.send_signal(signal.SIGCONT)
        while (following := await call.read()) is not grpc.aio.EOF:
            event = following
    assert event.HasField("ready") and len(world.tuner.requests) == 1
    await end(process)


async def test_a_tuning_that_kills_its_tuners_fails(world: World) -> None:
    """Processes that die under a run at the same place count, and after three of them the tuning is FAILED (R1)."""
    address = await impatient(world)
    name = (await world.tune()).name
    for number in range(1, 4):
        with service(world, "held tuner", address):

            async def is_held(number: int = number) -> bool:
                found = await world.tunings.GetTuning(GetTuningRequest(name=name))
                return (found.progress.attempt, found.progress.update) == (number, 2)

            await eventually(is_held, within_s=60)
    with service(world, "tuner", address):
        async with asyncio.timeout(60):
            events = await world.watch(name)
    assert from_status(events[-1].failed).reason == "WORKER_CRASHED"
    assert [event.started.attempt for event in events if event.HasField("started")] == [1, 2, 3]


async def has_progress(world: World, name: str, updates: int = 1) -> bool:
    """Whether a tuning tells of so many updates."""
    return (await world.tunings.GetTuning(GetTuningRequest(name=name))).progress.update >= updates


async def only_weights_of(world: World, tuning: Tuning) -> bool:
    """Whether the store has these weights and no others."""
    return world.stored_weights() == [
        f"{tuning.weights.path}/manifest.json",
        f"{tuning.weights.path}/weights.safetensors",
    ]


# Killed gateways


async def test_killed_gateways_do_not_fail_a_tuning(world: World) -> None:
    """SIGKILL to four gateways in turn, each in the middle of the run: its tuner goes on, reports to each, and the
    tuning ends READY by its first attempt, its weights written once (R5, F16)."""
    world.tuner.go_on.clear()
    name = ""
    for _ in range(4):
        process, address = await start(world)
        async with serving.channel(address) as channel:
            tunings = TuningServiceStub(channel)
            if not name:
                name = (await tunings.CreateTuning(CreateTuningRequest(image=await upload(channel)))).name

            async def has_begun(tunings: Any = tunings, name: str = name) -> bool:
                return (await tunings.GetTuning(GetTuningRequest(name=name))).progress.update == 2

            await eventually(has_begun, within_s=30)
            process.kill()
            await process.wait()
    world.tuner.go_on.set()
    process, address = await start(world)
    async with serving.channel(address) as channel:
        call = TuningServiceStub(channel).WatchTuning(WatchTuningRequest(name=name), timeout=60)
        events = [event async for event in call]
    assert events[-1].HasField("ready"), events[-1]
    assert [event.started.attempt for event in events if event.HasField("started")] == [1]
    assert len(world.tuner.requests) == 1 and await only_weights_of(world, events[-1].ready)
    await end(process)


# A full disk


class Disk(Protocol):
    """Where a gateway's state lies, and how to fill it."""

    state: Path

    def fill(self, gateway: Process) -> None:
        """From now on nothing can be written."""

    def free(self, gateway: Process) -> None:
        """From now on it can."""


class NoFileMayGrow:
    """What the gateway writes to a file fails as on a disk that fails."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "grow.sqlite"

    def fill(self, gateway: Process) -> None:
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def free(self, gateway: Process) -> None:
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class SmallDisk:
    """A file system of 3 MB, and a file that takes what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.state, self._folder = folder / "state.sqlite", folder

    def fill(self, gateway: Process) -> None:
        self._ballast = fill(self._folder)

    def free(self, gateway: Process) -> None:
        self._ballast.unlink()


@pytest.fixture(params=["failing", "full"])
async def disk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Disk]:
    """A disk that fails, and, where this process may mount one, a disk that is full."""
    if request.param == "failing":
        yield NoFileMayGrow(tmp_path)
        return
    with mounted(tmp_path / "disk", "3m") as folder:
        yield SmallDisk(folder)


async def state_of(tunings: Any, name: str) -> Tuning.State:
    """The state of a tuning, if it can be told now."""
    return (await tunings.GetTuning(GetTuningRequest(name=name), timeout=10)).state


@pytest.mark.parametrize("lost", [False, True])
async def test_a_full_disk_delays_a_tuning_and_no_more(world: World, disk: Disk, lost: bool) -> None:
    """While the state cannot be written a run goes on; its result, or that it was lost, is written as soon as it can
    be, and nothing stays RUNNING (R6, N2)."""
    world.tuner.go_on.clear()
    world.tuner.losses = int(lost)
    process, address = await start(world, UNITUNE_STATE=str(disk.state))
    async with serving.channel(address) as channel:
        tunings = TuningServiceStub(channel)
        config = tuning_config(updates=40)
        if lost:  # the loss comes with the first update, so the tuner waits before it
            world.tuner.update_s = 1.0
        name = (await tunings.CreateTuning(CreateTuningRequest(image=await upload(channel), config=config))).name

        async def has_begun() -> bool:
            return await state_of(tunings, name) == Tuning.STATE_RUNNING and len(world.tuner.requests) == 1

        await eventually(has_begun, within_s=30)
        disk.fill(process)
        world.tuner.go_on.set()

        async def has_ended() -> bool:
            return bool(world.tuner.stopped if lost else world.stored_weights())

        await eventually(has_ended, within_s=30)
        world.tuner.update_s = 0.0
        await asyncio.sleep(1)  # for the writes that must fail
        disk.free(process)
        call = tunings.WatchTuning(WatchTuningRequest(name=name), timeout=60)
        events = [event async for event in call]
        assert events[-1].HasField("ready"), events[-1]
        started = [event.started.attempt for event in events if event.HasField("started")]
        assert started == ([1, 2] if lost else [1])
        assert await only_weights_of(world, events[-1].ready)
    await end(process)


async def test_a_gateway_that_starts_on_a_full_disk_gives_back_what_is_lost(world: World, tmp_path: Path) -> None:
    """Gateway and tuner are killed, and the disk is full when the next gateway starts. Once there is space again, the
    tuning that nobody runs goes back into the queue, without another start."""
    world.tuner.go_on.clear()
    with mounted(tmp_path / "disk", "3m") as folder:
        settings = {"UNITUNE_STATE": str(folder / "state.sqlite"), "UNITUNE_LEASE_S": "1"}
        process, address = await start(world, **settings)
        async with serving.channel(address) as channel:
            request = CreateTuningRequest(image=await upload(channel))
            name = (await TuningServiceStub(channel).CreateTuning(request)).name

            async def is_running() -> bool:
                return await state_of(TuningServiceStub(channel), name) == Tuning.STATE_RUNNING

            await eventually(is_running, within_s=30)
        process.kill()
        await process.wait()
        await world.tuners[0].stop()

        ballast = fill(folder)
        process, address = await start(world, **settings)
        async with serving.channel(address) as channel:
            await asyncio.sleep(2)  # in which it is asked to write, and cannot
            assert await state_of(TuningServiceStub(channel), name) == Tuning.STATE_RUNNING
            ballast.unlink()

            async def is_queued() -> bool:
                return await state_of(TuningServiceStub(channel), name) == Tuning.STATE_QUEUED

            await eventually(is_queued, within_s=30)
        await end(process)


# Helpers


async def upload(channel: grpc.aio.Channel, data: bytes = b"") -> str:
    """The name of an uploaded picture."""
    data = data or picture()

    async def requests() -> AsyncIterator[UploadImageRequest]:
        yield UploadImageRequest(header=UploadImageRequest.Header())
        for begin in range(0, len(data), MAX_CHUNK_BYTES):
            yield UploadImageRequest(chunk=data[begin : begin + MAX_CHUNK_BYTES])

    return (await ImageServiceStub(channel).UploadImage(requests(), timeout=30)).name


async def end(process: Process) -> str:
    """Stop a gateway as a supervisor does; what it logged."""
    process.terminate()
    _, log = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, log.decode()
    return log.decode()
