"""Weights that the samplers must forget. They are asked until one has, across restarts of both services; one that was
away is told when it comes back and says what it holds.

A deletion does not wait for a sampler that stands still. Meanwhile nobody can ask for these weights.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from gateway.names import Name
from gateway.sampler_connection import SamplerConnection
from gateway.samplers import Samplers
from gateway.state import State
from unitune import store_paths, telemetry
from unitune.errors import UniTuneError
from unitune.v1.tuning_pb2 import WeightsRef

logger = logging.getLogger(__name__)

LOOK_S = 60.0  # for what a gateway noted that has ended since
ANSWER_S = 1.0  # that a deletion waits; a sampler mostly answers at once


class Evictions:
    """The weights to forget, kept in the state. One task asks the samplers."""

    def __init__(self, state: State, samplers: Samplers, *, retry_s: float) -> None:
        """`retry_s` is the wait before samplers that did not answer are asked again."""
        self._state = state
        self._samplers = samplers
        self._retry_s = retry_s
        self._noted = asyncio.Event()
        self._done: dict[str, asyncio.Event] = {}  # of the weights that this process noted, until they are forgotten

    async def note(self, digest: str) -> None:
        """Remember in the state that these weights must be forgotten."""
        await self._state.add_eviction(digest)
        self._done.setdefault(digest, asyncio.Event())

    def start(self) -> None:
        """Have the noted weights forgotten, without waiting."""
        self._noted.set()

    async def start_and_wait(self, digest: str) -> None:
        """Have the noted weights forgotten. Wait for it for at most a second; it goes on afterwards."""
        done = self._done.get(digest)
        if done is None:  # another call has had them forgotten
            return
        self._noted.set()
        try:
            await asyncio.wait_for(done.wait(), ANSWER_S)
        except TimeoutError:
            telemetry.event(logger, "sampler still to forget weights", level=logging.WARNING, digest=digest)

    async def run(self) -> None:
        """Ask the samplers for as long as it takes."""
        while True:
            self._noted.clear()
            try:
                is_behind = not await self._evict_all()
            except Exception:  # such as a state that cannot be read; the next round tries again
                telemetry.failure(logger, "evictions failed")
                is_behind = True
            if is_behind:
                await asyncio.sleep(self._retry_s)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S if self._state.is_shared else None):
                        await self._noted.wait()

    async def _evict_all(self) -> bool:
        """True if nothing is left to be forgotten."""
        noted = set(self._done)
        left = await self._state.evictions()
        for digest in noted.difference(left):  # another gateway has had them forgotten
            self._forgotten(digest)
        for digest in left:
            try:
                await self._samplers.evict(digest)
            except UniTuneError:
                return False
            await self._state.remove_eviction(digest)
            self._forgotten(digest)
        return True

    def _forgotten(self, digest: str) -> None:
        done = self._done.pop(digest, None)
        if done is not None:
            done.set()

    async def forget_dead(self, sampler: SamplerConnection, held: Sequence[WeightsRef]) -> None:
        """Make one sampler forget what it holds of tunings that are no more. It may have been away when they ended."""
        try:
            for digest in await self._dead(held):
                telemetry.event(logger, "sampler held deleted weights", digest=digest)
                await sampler.evict(digest)
        except UniTuneError:  # the sampler or the state is away; the next watch tells again
            pass
        except Exception:
            telemetry.failure(logger, "weights of samplers not compared")

    async def _dead(self, held: Sequence[WeightsRef]) -> list[str]:
        names = {weights.digest: _tuning_of(weights) for weights in held}
        live = await self._state.ready_weights([name for name in names.values() if name is not None])
        return [digest for digest, name in names.items() if name is None or live.get(name) != digest]


def _tuning_of(weights: WeightsRef) -> str | None:
    path = store_paths.read_weights(weights.path)
    return str(Name(path.tenant, "tunings", path.tuning)) if path is not None else None
