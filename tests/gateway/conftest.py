"""A whole gateway on loopback, between a stand-in tuner, a stand-in sampler and a client."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from gateway.config import GatewayConfig
from gateway.gateway import Gateway
from gateway.retention import OWNER
from tests.configs import tuning_config
from tests.gateway.upstream_servers import RunningTuner, Sampler, Tuner, serve_sampler, serve_tuner
from tests.gateway.warm_decoders import WarmChecks
from tests.picture_files import file_of
from tests.postgres_server import PostgresServer
from unitune import serving
from unitune.errors import DOMAIN, UniTuneError, from_rpc_error
from unitune.object_store import ObjectStore
from unitune.v1 import (
    edit_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    key_pb2_grpc,
    server_pb2_grpc,
    tuning_pb2,
    tuning_pb2_grpc,
    usage_pb2_grpc,
)
from unitune.v1.edit_pb2 import EditEvent, EditRequest


def picture(colour: str = "teal", size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """A picture's file."""
    return file_of(Image.new("RGB", size, colour), kind)


@dataclass
class World:
    """Everything a test of the gateway touches."""

    folder: Path
    tuner: Tuner | None  # that of this gateway; another one may have it
    sampler: Sampler
    config: GatewayConfig
    sampler_server: serving.RunningServer
    tuner_server: RunningTuner | None = None
    tuners: list[RunningTuner] = field(default_factory=list)  # of gateways that are processes
    port: int = 0  # at which such gateways have their internal address
    gateway: Gateway | None = None
    server: serving.RunningServer | None = None
    channel: grpc.aio.Channel | None = None
    stubs: dict[str, Any] = field(default_factory=dict)

    async def open(self) -> None:
        """Start the gateway on its state, at the same internal address every time, and connect a client."""
        self.gateway = await Gateway.open(self.config)
        self.gateway._images._checks = WarmChecks()
        self.config = replace(self.config, internal_address=self.gateway.internal_address)
        if self.tuner_server is None and self.tuner is not None:
            self.tuner_server = await serve_tuner(self.tuner, self.gateway.internal_address)
        if self.tuner_server is not None and self.tuner_server.is_running:
            await eventually(self._has_tuner)
        self.server = await serving.start(
            "127.0.0.1:0",
            self.gateway.register,
            max_receive_bytes=serving.PUBLIC_REQUEST_BYTES,
            door=self.gateway.access,
        )
        self.channel = serving.channel(self.server.address)
        self.stubs = {
            "tunings": tuning_pb2_grpc.TuningServiceStub(self.channel),
            "images": image_pb2_grpc.ImageServiceStub(self.channel),
            "edits": edit_pb2_grpc.EditServiceStub(self.channel),
            "server": server_pb2_grpc.ServerServiceStub(self.channel),
            "keys": key_pb2_grpc.KeyServiceStub(self.channel),
            "usage": usage_pb2_grpc.UsageServiceStub(self.channel),
        }

    async def _has_tuner(self) -> bool:
        assert self.gateway is not None
        return self.gateway._tuners._calls > 0

    async def missed(self) -> None:
        """Return once the gateway knows that no tuner is there."""

        async def is_gone() -> bool:
            return self.gateway is None or self.gateway._tuners._calls == 0

        await eventually(is_gone)
        if self.gateway is not None:
            self.gateway._tuners._expected_until_s = 0.0  # without the moment in which it would ask again

    async def close(self) -> None:
        """Stop client and gateway."""
        if self.channel is not None and self.server is not None and self.gateway is not None:
            await self.channel.close(None)
            await self.server.stop()
            await self.gateway.close()
        self.channel = None

    @property
    def tunings(self) -> Any:
        return self.stubs["tunings"]

    @property
    def images(self) -> Any:
        return self.stubs["images"]

    @property
    def edits(self) -> Any:
        return self.stubs["edits"]

    @property
    def info(self) -> Any:
        return self.stubs["server"]

    async def upload(self, data: bytes, chunk_bytes: int = 1000, **header: Any) -> image_pb2.Image:
        """Upload a file in chunks."""

        async def requests() -> AsyncIterator[image_pb2.UploadImageRequest]:
            yield image_pb2.UploadImageRequest(header=image_pb2.UploadImageRequest.Header(**header))
            for start in range(0, len(data), chunk_bytes):
                yield image_pb2.UploadImageRequest(chunk=data[start : start + chunk_bytes])

        return await self.images.UploadImage(requests())

    async def tune(self, data: bytes | None = None, **config: Any) -> tuning_pb2.Tuning:
        """Upload a picture and create a tuning of it."""
        image = await self.upload(data or picture())
        request = tuning_pb2.CreateTuningRequest(image=image.name, config=tuning_config(**config))
        return await self.tunings.CreateTuning(request)

    async def tuned(self, data: bytes | None = None, **config: Any) -> tuning_pb2.Tuning:
        """A tuning that is READY."""
        tuning = await self.tune(data, **config)
        await self.watch(tuning.name)
        return await self.tunings.GetTuning(tuning_pb2.GetTuningRequest(name=tuning.name))

    async def watch(self, name: str, after: int = 0) -> list[tuning_pb2.TuningEvent]:
        """All events of a tuning that are kept, to its end."""
        request = tuning_pb2.WatchTuningRequest(name=name, after_sequence=after)
        events = [event async for event in self.tunings.WatchTuning(request, timeout=20)]
        return [event for event in events if event.sequence]

    async def attempts(self, name: str) -> list[int]:
        """The attempts that a tuning's events tell of."""
        return [event.started.attempt for event in await self.watch(name) if event.HasField("started")]

    async def until(self, name: str, state: tuning_pb2.Tuning.State) -> tuning_pb2.Tuning:
        """The tuning, once it is in this state."""

        async def reached() -> tuning_pb2.Tuning | None:
            tuning = await self.tunings.GetTuning(tuning_pb2.GetTuningRequest(name=name))
            return tuning if tuning.state == state else None

        return await eventually(reached)

    async def until_not(self, name: str, state: tuning_pb2.Tuning.State) -> None:
        """Return once the tuning is in another state."""

        async def has_left() -> bool:
            return (await self.tunings.GetTuning(tuning_pb2.GetTuningRequest(name=name))).state != state

        await eventually(has_left, within_s=60)

    async def running(self, name: str) -> None:
        """Return once the tuner has begun to run this tuning."""
        call = self.tunings.WatchTuning(tuning_pb2.WatchTuningRequest(name=name))
        while not (await call.read()).HasField("progress"):
            pass
        call.cancel()

    async def known(self) -> None:
        """Return once the gateway knows tuner and sampler as they are now."""

        async def is_known() -> bool:
            assert self.gateway is not None
            tuner, sampler = self.gateway._tuners.known, self.gateway._samplers.known
            return (
                tuner is not None
                and sampler is not None
                and tuner.base_model == self.tuner.base_model
                and sampler.base_model == self.sampler.base_model
            )

        await eventually(is_known)

    def stored_weights(self) -> list[str]:
        """The objects of the store that belong to tunings."""
        return [path for path in self.stored() if path.startswith("tunings/")]

    def stored(self) -> list[str]:
        """All objects of the store, such as `images/...`, but for the one that names its state."""
        root = self.folder / "store"
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return sorted(found - {OWNER})


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of PostgreSQL, started once in each worker."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may kill."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """An open gateway with an empty state and store."""
    store = ObjectStore(str(tmp_path / "store"))
    tuner, sampler = Tuner(store), Sampler(store)
    sampler_server = await serve_sampler(sampler)
    config = GatewayConfig(
        internal_address="127.0.0.1:0",
        sampler=sampler_server.address,
        store=str(tmp_path / "store"),
        state=tmp_path / "state.sqlite",
        retry_s=0.02,
        position_s=0.1,
        poll_s=0.1,
    )
    world = World(tmp_path, tuner, sampler, config, sampler_server)
    tuner.missed = world.missed
    await world.open()
    yield world
    await world.close()
    for running in (world.tuner_server, *world.tuners):
        if running is not None:
            await running.stop()
    await world.sampler_server.stop()


async def edit(world: World, **request: object) -> list[EditEvent]:
    """All events of an edit."""
    return [event async for event in world.edits.Edit(EditRequest(**{"prompt": "a dog", **request}), timeout=20)]


async def eventually(check: Callable[[], Awaitable[Any]], within_s: float = 10.0) -> Any:
    """What `check` answers, once that is true."""
    async with asyncio.timeout(within_s):
        while not (answer := await check()):
            await asyncio.sleep(0.01)
        return answer


async def refused(call: Any, code: grpc.StatusCode, reason: str, field: str | None = None) -> UniTuneError:
    """The error with which a call is refused, having checked all that every error of ours must have."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    assert caught.value.code() is code, caught.value
    status = rpc_status.from_call(caught.value)
    assert status is not None and status.ByteSize() <= 4096
    infos = [any_ for any_ in status.details if any_.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    info = error_details_pb2.ErrorInfo()
    assert len(infos) == 1 and infos[0].Unpack(info) and info.domain == DOMAIN
    error = from_rpc_error(caught.value)
    assert error.reason == reason, error
    assert "Traceback" not in error.message and "/tmp" not in error.message and ".py" not in error.message
    if field is not None:
        assert error.field == field, error.metadata
        assert (error.metadata["value"] and error.metadata["remedy"]) or error.metadata["value"] == ""
        assert error.metadata["remedy"] in error.message
    return error


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()
