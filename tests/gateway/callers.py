"""Callers of a gateway that asks for credentials: each has its own."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message

from tests.configs import tuning_config
from tests.gateway.conftest import World, picture
from unitune.v1 import (
    edit_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    key_pb2_grpc,
    server_pb2_grpc,
    tuning_pb2_grpc,
    usage_pb2_grpc,
)
from unitune.v1.key_pb2 import CreateKeyRequest
from unitune.v1.scope_pb2 import Scope
from unitune.v1.tuning_pb2 import CreateTuningRequest, GetTuningRequest, Tuning, WatchTuningRequest

EDIT, TUNE, READ, ADMIN = Scope.SCOPE_EDIT, Scope.SCOPE_TUNE, Scope.SCOPE_READ, Scope.SCOPE_ADMIN
STUBS = {
    "tunings": tuning_pb2_grpc.TuningServiceStub,
    "images": image_pb2_grpc.ImageServiceStub,
    "edits": edit_pb2_grpc.EditServiceStub,
    "info": server_pb2_grpc.ServerServiceStub,
    "keys": key_pb2_grpc.KeyServiceStub,
    "usage": usage_pb2_grpc.UsageServiceStub,
}


def bearer(credential: str) -> list[tuple[str, str]]:
    """The metadata of a call."""
    return [("authorization", f"Bearer {credential}")]


@dataclass
class Caller:
    """Somebody with a credential."""

    world: World
    credential: str

    def __call__(self, method: str, request: Message | Any) -> Any:
        """A call of a method such as `tunings.GetTuning`."""
        assert self.world.channel is not None
        service, _, name = method.partition(".")
        method_of: Callable[..., Any] = getattr(STUBS[service](self.world.channel), name)
        return method_of(request, metadata=bearer(self.credential), timeout=20)

    async def upload(self, data: bytes, **header: Any) -> image_pb2.Image:
        """Upload a picture."""

        async def requests() -> AsyncIterator[image_pb2.UploadImageRequest]:
            yield image_pb2.UploadImageRequest(header=image_pb2.UploadImageRequest.Header(**header))
            yield image_pb2.UploadImageRequest(chunk=data)

        return await self("images.UploadImage", requests())

    async def tuned(self) -> Tuning:
        """A tuning that is READY."""
        image = await self.upload(picture())
        request = CreateTuningRequest(image=image.name, config=tuning_config())
        tuning = await self("tunings.CreateTuning", request)
        async for _ in self("tunings.WatchTuning", WatchTuningRequest(name=tuning.name)):
            pass
        return await self("tunings.GetTuning", GetTuningRequest(name=tuning.name))


async def ask_for_keys(world: World) -> Caller:
    """Have the world's gateway ask for credentials from now on; the admin."""
    await world.close()
    path = world.folder / "admin.key"
    world.config = replace(world.config, admin_key_file=path)
    await world.open()
    return Caller(world, path.read_text().strip())


async def make(admin: Caller, tenant: str, *scopes: int) -> Caller:
    """A caller with a new key of a tenant; by default it may do everything but make keys."""
    request = CreateKeyRequest(parent=f"tenants/{tenant}", scopes=scopes or (EDIT, TUNE, READ))
    made = await admin("keys.CreateKey", request)
    return Caller(admin.world, made.secret)


def raw_call(world: World, path: str, credential: str | None) -> Any:
    """A call of any method by its full name, which sends no request yet."""
    assert world.channel is not None
    metadata = bearer(credential) if credential is not None else None
    return world.channel.stream_stream(path)(metadata=metadata, timeout=10)
