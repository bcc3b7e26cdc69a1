"""A client of the last release, made of its contract alone, has the conversation that it always had."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from tests.gateway.conftest import World, picture, world
from unitune import serving

__all__ = ["world"]  # a fixture

RELEASED = Path(__file__).resolve().parents[2] / "protos" / "released.binpb"


class ReleasedClient:
    """Calls by their names in the last release's contract, with its messages."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel, self._pool = channel, descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(RELEASED.read_bytes()).file:
            self._pool.Add(file)

    def message(self, kind: str, /, **fields: Any) -> Any:
        """A message of that contract."""
        return GetMessageClass(self._pool.FindMessageTypeByName(f"unitune.v1.{kind}"))(**fields)

    def call(self, service: str, method: str, request: Any) -> Any:
        """Begin a call; a list of requests is a stream of them."""
        descriptor = self._pool.FindServiceByName(f"unitune.v1.{service}").methods_by_name[method]
        read = GetMessageClass(descriptor.output_type).FromString
        kinds = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
        }
        begin = kinds[descriptor.client_streaming, descriptor.server_streaming]
        path, write = f"/unitune.v1.{service}/{method}", lambda message: message.SerializeToString()
        return begin(path, write, read)(request, timeout=60)

    async def uploaded(self, data: bytes) -> Any:
        """An uploaded picture."""

        async def requests() -> AsyncIterator[Any]:
            yield self.message("UploadImageRequest", header={"size_bytes": len(data)})
            yield self.message("UploadImageRequest", chunk=data)

        return await self.call("ImageService", "UploadImage", requests())


async def test_a_client_of_the_last_release_is_understood(world: World) -> None:
    """It uploads, tunes, watches, edits, comes back to the result, lists and deletes; every answer has all that its own
    contract knows of it (check 25)."""
    assert world.server is not None
    async with serving.channel(world.server.address) as channel:
        client = ReleasedClient(channel)
        image = await client.uploaded(picture())
        assert (image.width, image.height, image.media_type) == (40, 30, "image/png")
        request = client.message("CreateTuningRequest", image=image.name, config={"updates": 3})
        tuning = await client.call("TuningService", "CreateTuning", request)
        watch = client.message("WatchTuningRequest", name=tuning.name)
        events = [event async for event in client.call("TuningService", "WatchTuning", watch)]
        kept = [event for event in events if event.sequence]
        assert [event.sequence for event in kept] == list(range(1, len(kept) + 1))
        assert kept[-1].ready.weights.digest and kept[-1].ready.config.updates == 3

        request = client.message("EditRequest", tuning=tuning.name, prompt="a dog", seeds=[4, 5])
        events = [event async for event in client.call("EditService", "Edit", request)]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds[0] == "accepted" and kinds[-1] == "done" and kinds.count("image") == 2 and None not in kinds
        assert events[0].accepted.config.num_inference_steps > 0
        edit = await client.call(
            "EditService", "GetEdit", client.message("GetEditRequest", name=events[0].accepted.edit)
        )
        assert [one.seed for one in edit.images] == [4, 5] and all(one.png for one in edit.images)

        page = await client.call("TuningService", "ListTunings", client.message("ListTuningsRequest"))
        assert [one.name for one in page.tunings] == [tuning.name]
        info = await client.call("ServerService", "GetServerInfo", client.message("GetServerInfoRequest"))
        assert info.limits.upload_bytes == 16 << 20
        await client.call("TuningService", "DeleteTuning", client.message("DeleteTuningRequest", name=tuning.name))
        page = await client.call("TuningService", "ListTunings", client.message("ListTuningsRequest"))
        assert not page.tunings
