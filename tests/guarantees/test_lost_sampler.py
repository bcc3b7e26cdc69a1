"""Two real samplers behind a gateway, one of which is killed amid its edits."""

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tests.configs import sampling_config
from tests.gateway.conftest import World, eventually, picture, world
from tests.gateway.test_sample_queue import pictures, rest
from tests.sampler_svc.test_main import environment
from unitune.v1.edit_pb2 import EditRequest

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.slow  # real processes

STEPS = 150
EDITS = 7
SEEDS = [7, 8]


@pytest.fixture
async def samplers(world: World, engine: Path) -> AsyncIterator[dict[str, subprocess.Popen[str]]]:
    """Two sampler processes, by their addresses, and the world's gateway with them."""
    settings = environment(
        ENGINE=str(engine), STORE=str(world.folder / "store"), SAMPLER_ADDRESS="127.0.0.1:0", THREADS="1"
    )
    programs = [
        subprocess.Popen([sys.executable, "-m", "sampler_svc"], env=settings, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        found = {}
        for program in programs:
            assert program.stdout is not None
            found[program.stdout.readline().removeprefix("listening ").strip()] = program
        await world.close()
        world.config = replace(world.config, sampler=",".join(found))
        await world.open()
        yield found
        await world.close()
    finally:
        for program in programs:
            program.kill()
            program.wait()


def sdedit(world: World) -> grpc.aio.UnaryStreamCall:
    """An edit of two pictures."""
    config = sampling_config(method="sdedit", num_inference_steps=STEPS, strength=1.0)
    request = EditRequest(image_data=picture(), prompt="a cat", config=config, seeds=SEEDS)
    return world.edits.Edit(request, timeout=120)


async def test_the_other_sampler_makes_the_same_pictures(
    world: World, samplers: dict[str, subprocess.Popen[str]]
) -> None:
    """kill -9 of a sampler with an edit that has begun and one that waits for it: both end well, with the bytes of an
    edit without the loss; the one that had begun has a warning, the other has none (F27, check 7)."""
    expected = pictures(await rest(sdedit(world)))
    assert len(expected) == len(SEEDS)
    calls = [sdedit(world) for _ in range(EDITS)]  # two at each: one runs, one waits; the others wait in the gateway
    assert world.gateway is not None
    connections = world.gateway._samplers._connections

    async def are_there() -> bool:
        return all(one.in_flight == 2 and one._state.running == one._state.waiting == 1 for one in connections.values())

    await eventually(are_there, within_s=60)
    lost = next(iter(samplers.values()))
    lost.kill()
    lost.wait()
    ends = [await rest(call) for call in calls]
    for events in ends:
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds[-1] == "done" and kinds.count("done") == 1 and "failed" not in kinds
        assert pictures(events) == expected
    warned = sorted([event.WhichOneof("event") for event in events].count("warning") for events in ends)
    assert warned == [0] * (EDITS - 1) + [1]
