"""What readers cost that do not read, in a real gateway process."""

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.configs import sampling_config
from tests.gateway.conftest import World, eventually, picture
from tests.gateway.test_main import start
from unitune import serving
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.edit_pb2_grpc import EditServiceStub

pytestmark = pytest.mark.slow  # a real process

READERS = 20
PICTURE_BYTES = 3 << 20
SEEDS = 4  # 12 MiB of pictures for each reader


def resident_bytes(pid: int) -> int:
    """The memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_readers_that_do_not_read_cost_little_memory(world: World) -> None:
    """20 readers with 12 MiB of pictures each, none of which is read, are all served by the sampler; the gateway grows
    by the messages that are on their way, and another reader has its pictures at once (R9)."""
    world.sampler.png = picture() + os.urandom(PICTURE_BYTES)
    process, address = await start(world)
    config = sampling_config(method="sdedit", num_inference_steps=2)

    def request(tenant: str) -> EditRequest:
        return EditRequest(
            parent=f"tenants/{tenant}", image_data=picture(), seeds=range(SEEDS), config=config, prompt="a dog"
        )

    try:
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(serving.channel(address)) for _ in range(READERS + 1)]
            warm = EditServiceStub(channels[0]).Edit(request("warm"))
            assert [event async for event in warm][-1].HasField("done")
            before = resident_bytes(process.pid)
            asleep = [
                EditServiceStub(channel).Edit(request(f"t{number}")) for number, channel in enumerate(channels[:-1])
            ]
            for call in asleep:
                assert (await call.read()).HasField("accepted")
            store = world.folder / "store" / "edits"

            async def all_done() -> bool:
                return len(list(store.rglob("edit"))) == READERS + 1

            await eventually(all_done, 60)
            grown = resident_bytes(process.pid) - before
            awake = EditServiceStub(channels[-1]).Edit(request("awake"), timeout=30)
            assert [event async for event in awake][-1].HasField("done")
            print(f"{grown / READERS / 2**20:.2f} MiB a reader")
            assert grown < READERS * (3 << 20)
            for call in asleep:
                call.cancel()
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
