"""What the gateway knows of its tuners, which call it: what they say of themselves, and whether any is there."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from gateway.upstreams import CALL_S, unanswered
from unitune.v1.server_pb2 import Upstream
from unitune.v1.tuner_pb2 import TunerInfo

# After an answer to a tuner, until it is missed: it asks again.
ASKS_AGAIN_S = 2.0
# How long a base model's tuner counts as there after it asked: a run takes longer than the wait for the next.
STAYS_S = 60.0
ELSEWHERE_S = 15.0  # after another gateway saw a tuner; it says so every few seconds
KEPT_BASE_MODELS = 100


class Tuners:
    """All tuners. It belongs to one event loop."""

    def __init__(self) -> None:
        self.known: TunerInfo | None = None  # what was said last
        self._is_recalled = False  # it was said to an earlier process
        self._calls = 0
        self._expected_until_s = -math.inf
        self._seen_s: dict[str, float] = {}  # by the digest of a base model, when a tuner of it was seen last
        self._elsewhere_s: dict[str, float] = {}  # the same of other gateways' tuners
        self._changed = asyncio.Event()

    def announced(self, info: TunerInfo) -> None:
        """A tuner has said what it is."""
        self.known, self._is_recalled = info, False
        self.saw(info.base_model.digest)

    def recall(self, info: TunerInfo) -> None:
        """What was said to an earlier process, until a tuner says something."""
        if self.known is None:
            self.known, self._is_recalled = info, True

    def saw(self, base_model: str) -> None:
        """A tuner of this base model is there."""
        self._seen_s.pop(base_model, None)
        self._seen_s[base_model] = time.monotonic()
        if len(self._seen_s) > KEPT_BASE_MODELS:
            del self._seen_s[next(iter(self._seen_s))]  # the one seen longest ago
        self._notify()

    def seen_s(self, base_model: str) -> float:
        """When a tuner of this base model was seen last, by the monotonic clock; minus infinity if never."""
        return max(seen.get(base_model, -math.inf) for seen in (self._seen_s, self._elsewhere_s))

    def here(self) -> list[str]:
        """The base models of the tuners that this gateway has now."""
        if not self._is_any_here:
            return []
        since_s = min(time.monotonic() - STAYS_S, max(self._seen_s.values(), default=0.0))
        return [base_model for base_model, seen_s in self._seen_s.items() if seen_s >= since_s]

    def seen_elsewhere(self, ages_s: Mapping[str, float]) -> None:
        """Other gateways had tuners of these base models so many seconds ago."""
        self._elsewhere_s = {base_model: time.monotonic() - age_s for base_model, age_s in ages_s.items()}
        self._notify()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """A tuner is there for as long as the block lasts, which is one call of it, and if it got its answer a moment
        longer."""
        self._calls += 1
        self._notify()
        try:
            yield
            self._expected_until_s = time.monotonic() + ASKS_AGAIN_S
        except asyncio.CancelledError:  # it has hung up
            self._expected_until_s = -math.inf
            raise
        finally:
            self._calls -= 1

    @property
    def is_any_there(self) -> bool:
        """Whether a tuner calls now, or is about to; or calls another gateway."""
        elsewhere_s = list(self._elsewhere_s.values())  # at once: metrics are asked for in another thread
        return self._is_any_here or time.monotonic() < max(elsewhere_s, default=-math.inf) + ELSEWHERE_S

    @property
    def _is_any_here(self) -> bool:
        return self._calls > 0 or time.monotonic() < self._expected_until_s

    def described(self) -> Upstream:
        """The tuners, as the last of them said."""
        version = self.known.version if self.known is not None else ""
        return Upstream(name="tuner", version=version, is_answering=self.is_any_there)

    async def info(self, sampled: str) -> TunerInfo:
        """What the last tuner said of itself. Raises Unavailable (BACKEND_DOWN) if none has said anything yet.

        `sampled` is the digest of the samplers' base model, empty if that is not known. Where it is not what an earlier
        process was told, the services have got another base model since, and the tuner has yet to say so.
        """

        def is_told() -> bool:
            is_other = self.known is not None and sampled not in ("", self.known.base_model.digest)
            return self.known is not None and not (self._is_recalled and is_other)

        await self._wait(is_told)
        assert self.known is not None
        return self.known

    async def wait_for_one(self) -> None:
        """Return if a tuner is there, or comes within a moment. Raises Unavailable (BACKEND_DOWN)."""
        await self._wait(lambda: self.is_any_there)

    async def _wait(self, is_true: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                while not is_true():
                    await self._changed.wait()
        except TimeoutError:
            raise unanswered("tuner") from None

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
