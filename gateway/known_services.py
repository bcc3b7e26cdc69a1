"""What is known of tuner and sampler: asked again and again, and kept in the state for the next process.

So what is known of them is never old and needs no waiting for, and a gateway that starts while its tuner is away
accepts tunings as the one before it did.
"""

import asyncio
import logging

from gateway.state import State
from gateway.upstreams import Upstreams
from unitune import telemetry
from unitune.v1.sampler_pb2 import SamplerInfo
from unitune.v1.tuner_pb2 import TunerInfo

logger = logging.getLogger(__name__)

TUNER, SAMPLER = "tuner", "sampler"


class KnownServices:
    """What `upstreams` knows of both services, in step with `state`."""

    def __init__(self, upstreams: Upstreams, state: State) -> None:
        self._upstreams = upstreams
        self._state = state
        self._kept: dict[str, bytes] = {}

    async def begin(self) -> None:
        """Ask both once; of one that does not answer, know what an earlier process knew."""
        await self._ask()
        try:
            self._kept = await self._state.known()
            if self._upstreams.known_tuner is None and TUNER in self._kept:
                self._upstreams.known_tuner = TunerInfo.FromString(self._kept[TUNER])
            if self._upstreams.known_sampler is None and SAMPLER in self._kept:
                self._upstreams.known_sampler = SamplerInfo.FromString(self._kept[SAMPLER])
        except Exception:  # nothing depends on it but requests that come before a service answers
            telemetry.failure(logger, "services not recalled")

    async def poll(self, every_s: float) -> None:
        """Ask both again and again."""
        while True:
            try:
                await self._keep()
            except Exception:  # such as a disk that is full; the next round tries again
                telemetry.failure(logger, "services not kept")
            await asyncio.sleep(every_s)
            await self._ask()

    async def _ask(self) -> None:
        await asyncio.gather(self._upstreams.tuner_info(), self._upstreams.sampler_info(), return_exceptions=True)

    async def _keep(self) -> None:
        for name, info in ((TUNER, self._upstreams.known_tuner), (SAMPLER, self._upstreams.known_sampler)):
            if info is not None and (told := info.SerializeToString(deterministic=True)) != self._kept.get(name):
                await self._state.know(name, told)
                self._kept[name] = told
