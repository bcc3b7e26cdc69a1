"""What is known of tuner and samplers, kept in the state for the next process. Samplers are polled; tuners call.

So the knowledge is recent, and no request waits for it. A gateway that starts without its tuner accepts tunings as the
process before it did.
"""

import asyncio
import logging

from gateway.samplers import Samplers
from gateway.state import State
from gateway.tuners import Tuners
from gateway.upstreams import CALL_S
from unitune import metrics, telemetry
from unitune.errors import UniTuneError
from unitune.v1.sampler_pb2 import SamplerInfo
from unitune.v1.tuner_pb2 import TunerInfo

logger = logging.getLogger(__name__)

TUNER, SAMPLER = "tuner", "sampler"
# Between two looks while no tuner is there. A request waits for one for CALL_S seconds, in which the gateway that a
# tuner called must have said so, and the others must have read it.
WITHOUT_TUNER_S = CALL_S / 3


class KnownServices:
    """Keeps what is known of both services up to date, and in the state."""

    def __init__(self, samplers: Samplers, tuners: Tuners, state: State) -> None:
        self._samplers = samplers
        self._tuners = tuners
        self._state = state
        self._kept: dict[str, bytes] = {}

    async def begin(self) -> None:
        """Ask the samplers once. Of whom nothing is known, use what an earlier process knew."""
        # Tuners call, so that no poll learns of them in time.
        metrics.UPSTREAM_UP.labels(TUNER).set_function(lambda: self._tuners.is_any_there)
        try:
            if self._state.is_shared:
                await self._share()
            else:
                self._kept = await self._state.known()
                if TUNER in self._kept:
                    self._tuners.recall(TunerInfo.FromString(self._kept[TUNER]))
            if SAMPLER in self._kept:
                self._samplers.recall(SamplerInfo.FromString(self._kept[SAMPLER]))
        except Exception:  # it matters only to requests that come before a service answers
            telemetry.failure(logger, "services not recalled")
        await self._ask()

    async def poll(self, every_s: float) -> None:
        """Ask at intervals, and keep what is new."""
        while True:
            try:
                await self.keep()
            except Exception:  # such as a disk that is full; the next round tries again
                telemetry.failure(logger, "services not kept")
            await asyncio.sleep(every_s if self._tuners.is_any_there else min(every_s, WITHOUT_TUNER_S))
            self._samplers.renew()
            await self._ask()

    async def _ask(self) -> None:
        try:
            is_up = await self._samplers.ask_all()
        except UniTuneError:
            is_up = False
        except Exception:  # a fault of ours, which must not end the task that asks
            telemetry.failure(logger, "samplers not asked")
            is_up = False
        metrics.UPSTREAM_UP.labels(SAMPLER).set(is_up)

    async def keep(self) -> None:
        """Write into the state what is new, if that can be written."""
        if self._state.is_read_only:
            return
        for name, info in ((TUNER, self._tuners.known), (SAMPLER, self._samplers.known)):
            if info is not None and (told := info.SerializeToString(deterministic=True)) != self._kept.get(name):
                await self._state.know(name, told)
                self._kept[name] = told
        if self._state.is_shared:
            await self._share()

    async def _share(self) -> None:
        """Tell other gateways of the tuners here, and learn of theirs."""
        await self._state.saw(self._tuners.here())
        self._tuners.seen_elsewhere(await self._state.seen_elsewhere())
        known = await self._state.known()
        if known.get(TUNER, self._kept.get(TUNER)) != self._kept.get(TUNER):
            self._tuners.known = TunerInfo.FromString(known[TUNER])
        self._kept |= known
