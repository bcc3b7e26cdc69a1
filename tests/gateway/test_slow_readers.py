"""What readers cost that do not read, in a real gateway process."""

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.configs import entry, sampling_config
from tests.gateway.conftest import World, eventually, picture
from tests.gateway.test_main import start
from unitune import serving
from unitune.v1.edit_pb2 import CompareRequest, EditRequest, SamplingConfig
from unitune.v1.edit_pb2_grpc import EditServiceStub

pytestmark = pytest.mark.slow  # a real process

READERS = 20
PICTURE_BYTES = 3 << 20
SEEDS = 4  # 12 MiB of pictures for each reader


def resident_bytes(pid: int) -> int:
    """The memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["Edit", "Compare"])
async def test_readers_that_do_not_read_cost_little_memory(world: World, name: str) -> None:
    """20 readers with 12 MiB of pictures each, none of which is read, are all served by the sampler; the gateway grows
    by the messages that are on their way, and another reader has its pictures at once (R9)."""
    world.sampler.png = picture() + os.urandom(PICTURE_BYTES)
    process, address = await start(world)
    config = sampling_config(num_inference_steps=2)

    def begin(channel: Any, tenant: str, **options: Any) -> Any:
        asked = {"parent": f"tenants/{tenant}", "image_data": picture(), "seeds": range(SEEDS), "prompt": "a dog"}
        stub = EditServiceStub(channel)
        if name == "Compare":
            return stub.Compare(CompareRequest(**asked, methods=[entry("sdedit", config=config)]), **options)
        config.method = SamplingConfig.METHOD_SDEDIT
        return stub.Edit(EditRequest(**asked, config=config), **options)

    try:
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(serving.channel(address)) for _ in range(READERS + 1)]
            warm = begin(channels[0], "warm")
            assert [event async for event in warm][-1].HasField("done")
            before = resident_bytes(process.pid)
            asleep = [begin(channel, f"t{number}") for number, channel in enumerate(channels[:-1])]
            for call in asleep:
                assert (await call.read()).HasField("accepted")
            store = world.folder / "store" / "edits"

            async def all_done() -> bool:
                return len(list(store.rglob("edit"))) == READERS + 1

            await eventually(all_done, 60)
            grown = resident_bytes(process.pid) - before
            awake = begin(channels[-1], "awake", timeout=30)
            assert [event async for event in awake][-1].HasField("done")
            print(f"{grown / READERS / 2**20:.2f} MiB a reader")
            assert grown < READERS * (3 << 20)
            for call in asleep:
                call.cancel()
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
