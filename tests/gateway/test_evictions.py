"""Deletions while the sampler stands still: quick, and the weights are forgotten as soon as it answers."""

import asyncio
import time

import grpc
import pytest

from gateway import evictions
from gateway.state import State
from tests.gateway.conftest import World, eventually, refused
from tests.gateway.upstream_servers import serve_sampler
from unitune.errors import Unavailable
from unitune.v1.edit_pb2 import EditRequest
from unitune.v1.tuning_pb2 import DeleteTuningRequest, GetTuningRequest


async def test_a_deletion_does_not_wait_for_a_sampler_that_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is OK before the sampler's deadline, the weights are of no use, and it is told when it answers (r8)."""
    monkeypatch.setattr(evictions, "ANSWER_S", 0.05)
    tuning = await world.tuned()
    world.sampler.answers.clear()
    began = time.monotonic()
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name), timeout=30)
    assert time.monotonic() - began < 2.9  # the deadline of one call to the sampler is 3 s
    assert world.sampler.evicted == [] and world.stored() == []
    gone = GetTuningRequest(name=tuning.name)
    await refused(world.tunings.GetTuning(gone), grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")
    world.sampler.answers.set()

    async def is_told() -> bool:
        return tuning.weights.digest in world.sampler.evicted

    await eventually(is_told, 20)
    edit = world.edits.Edit(EditRequest(tuning=tuning.name, prompt="a dog"))
    await refused(edit, grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")


async def test_a_sampler_that_is_slow_to_forget_is_not_away(world: World) -> None:
    """It may be opening an engine again, which takes longer than the call waits; edits go on meanwhile."""
    assert world.gateway is not None
    samplers = world.gateway._samplers
    world.sampler.answers.clear()
    with pytest.raises(Unavailable):
        await samplers.evict("a" * 64)
    assert [one.is_answering for one in samplers.described()] == [True]
    world.sampler.answers.set()


async def test_what_is_to_be_forgotten_outlives_the_gateway(world: World) -> None:
    """A sampler that is away when a tuning is deleted is told by the next gateway, and then no more (r8)."""
    tuning = await world.tuned()
    address = world.sampler_server.address
    await world.sampler_server.stop()
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name), timeout=30)
    await world.close()
    assert world.sampler.evicted == []
    world.sampler_server = await serve_sampler(world.sampler, address)
    await world.open()

    async def is_told() -> bool:
        return tuning.weights.digest in world.sampler.evicted

    await eventually(is_told, 30)
    await asyncio.sleep(0.1)
    await world.close()
    state = await State.open(world.config.state)
    assert await state.evictions() == []
    await state.close()


async def test_weights_that_are_forgotten_already_are_not_waited_for(world: World) -> None:
    """A deletion whose weights the sampler forgot on another's account ends at once, and nothing is left in memory."""
    assert world.gateway is not None
    started = evictions.Evictions(world.gateway._state, world.gateway._samplers, retry_s=0.02)
    running = asyncio.create_task(started.run())
    await started.note("a" * 64)
    started.start()

    async def is_forgotten() -> bool:
        return world.sampler.evicted == ["a" * 64] and await world.gateway._state.evictions() == []

    await eventually(is_forgotten)
    await asyncio.wait_for(started.start_and_wait("a" * 64), evictions.ANSWER_S / 2)
    assert not started._done
    running.cancel()
