"""What is known of tuner and sampler: polled, and kept in the state for the next process.

So the knowledge is recent, and no request waits for it. A gateway that starts without its tuner accepts tunings as the
process before it did.
"""

import asyncio
import logging

from gateway.state import State
from gateway.upstreams import Upstreams
from unitune import metrics, telemetry
from unitune.v1.sampler_pb2 import SamplerInfo
from unitune.v1.tuner_pb2 import TunerInfo

logger = logging.getLogger(__name__)

TUNER, SAMPLER = "tuner", "sampler"


class KnownServices:
    """Keeps what `upstreams` knows of both services up to date, and in the state."""

    def __init__(self, upstreams: Upstreams, state: State) -> None:
        self._upstreams = upstreams
        self._state = state
        self._kept: dict[str, bytes] = {}

    async def begin(self) -> None:
        """Ask both once. If one does not answer, use what an earlier process knew of it."""
        await self._ask()
        try:
            self._kept = await self._state.known()
            if self._upstreams.known_tuner is None and TUNER in self._kept:
                self._upstreams.known_tuner = TunerInfo.FromString(self._kept[TUNER])
            if self._upstreams.known_sampler is None and SAMPLER in self._kept:
                self._upstreams.known_sampler = SamplerInfo.FromString(self._kept[SAMPLER])
        except Exception:  # it matters only to requests that come before a service answers
            telemetry.failure(logger, "services not recalled")

    async def poll(self, every_s: float) -> None:
        """Ask both at intervals."""
        while True:
            try:
                await self._keep()
            except Exception:  # such as a disk that is full; the next round tries again
                telemetry.failure(logger, "services not kept")
            await asyncio.sleep(every_s)
            self._upstreams.renew()
            await self._ask()

    async def _ask(self) -> None:
        calls = self._upstreams.tuner_info(), self._upstreams.sampler_info()
        for name, answer in zip((TUNER, SAMPLER), await asyncio.gather(*calls, return_exceptions=True), strict=True):
            metrics.UPSTREAM_UP.labels(name).set(not isinstance(answer, BaseException))

    async def _keep(self) -> None:
        for name, info in ((TUNER, self._upstreams.known_tuner), (SAMPLER, self._upstreams.known_sampler)):
            if info is not None and (told := info.SerializeToString(deterministic=True)) != self._kept.get(name):
                await self._state.know(name, told)
                self._kept[name] = told
