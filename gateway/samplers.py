"""All samplers that a gateway has: where they are, what they say of themselves, and which of them gets what.

An edit whose sampler is lost begins again at another one, with the same seeds: without a word if nothing had come, else
once, with a warning. With one sampler it fails.
"""

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from gateway import sampler_addresses
from gateway.resumed_run import ResumedRun
from gateway.sampler_choice import choose
from gateway.sampler_connection import Forget, SamplerConnection
from gateway.upstreams import CALL_S, unanswered
from unitune import metrics, serving, telemetry
from unitune.certificates import CertificateReader
from unitune.errors import Unavailable, UniTuneError
from unitune.v1.edit_pb2 import EditEvent
from unitune.v1.sampler_pb2 import SampleEvent, SampleRequest, SamplerInfo
from unitune.v1.server_pb2 import Upstream
from unitune.v1.tuning_pb2 import TuningConfig, WeightsRef

logger = logging.getLogger(__name__)

RESOLVE_S = 5.0  # between two looks for the addresses that a name stands for
ASKED = 3  # samplers that a question goes to, one after the other
MOVES = 3  # of an edit of which nothing has come yet
MOVES_LATER = 1  # of one of which something has
LOST = "the sampler was lost; the edit began again at another one"

T = TypeVar("T")


class Samplers:
    """The samplers that a setting names. It belongs to the event loop in which it was made."""

    def __init__(
        self,
        names: str,
        *,
        silence_s: float = serving.SILENCE_S,
        resolve_s: float = RESOLVE_S,
        certificates: CertificateReader | None = None,
    ) -> None:
        """`names` are HOST:PORT, separated by commas; a name with several addresses means a sampler at each.

        `silence_s` and `certificates` are those of SamplerConnection.
        """
        self._names = sampler_addresses.named(names)
        self._resolve_s = resolve_s
        self._connection_settings: dict[str, Any] = {"silence_s": silence_s, "certificates": certificates}
        self._addresses: dict[str, list[str]] = {}  # by name, as they were found last
        self._unresolved: set[str] = set()
        self._connections: dict[str, SamplerConnection] = {}  # by address
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._lookups: dict[str, asyncio.Task[list[str]]] = {}  # that run, by name
        self._resolved = asyncio.Event()
        self._recalled: SamplerInfo | None = None
        self._base_model = ""  # that of most samplers
        self._left_out = set[str]()  # addresses of samplers with another one
        self._turn = itertools.count()
        self._chance = random.Random()
        self.on_count: Callable[[int], None] = lambda count: None  # called with the number of samplers for edits
        self.forget: Forget = _forget_nothing  # called with what a sampler holds

    # Where they are.

    async def run(self) -> None:
        """Follow names and samplers until cancelled."""
        try:
            while True:
                await self._resolve()
                await asyncio.sleep(self._resolve_s)
        finally:
            tasks = [*self._watches.values(), *self._lookups.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(self) -> None:
        found = await asyncio.gather(*map(self._look_up, self._names), return_exceptions=True)
        for name, addresses in zip(self._names, found, strict=True):
            if isinstance(addresses, BaseException):  # those that it had before may still be right
                if name not in self._unresolved:
                    self._unresolved.add(name)
                    told = str(addresses) or "no answer"
                    telemetry.event(
                        logger, "name of samplers not found", level=logging.WARNING, address=name, detail=told
                    )
            else:
                self._unresolved.discard(name)
                self._addresses[name] = addresses
        named = dict.fromkeys(itertools.chain.from_iterable(self._addresses.values()))
        for address in named:
            if address not in self._connections:
                self._connections[address] = SamplerConnection(address, **self._connection_settings)
                self._watches[address] = asyncio.create_task(self._watch(self._connections[address]))
        for address, connection in self._connections.items():
            connection.is_named = address in named
        self._resolved.set()
        self._note()

    async def _look_up(self, name: str) -> list[str]:
        # A lookup that hangs keeps one of the event loop's few threads: a second of the same name would take another.
        if name not in self._lookups:
            self._lookups[name] = asyncio.create_task(sampler_addresses.resolved(name))
        looking = self._lookups[name]
        await asyncio.wait({looking}, timeout=RESOLVE_S)
        if not looking.done():
            raise TimeoutError
        del self._lookups[name]
        return looking.result()

    async def _watch(self, connection: SamplerConnection) -> None:
        try:
            await connection.watch(self._note, self.forget)
        except Exception:  # a fault of ours; the next look begins anew
            telemetry.failure(logger, "sampler not watched", address=connection.address)
        del self._connections[connection.address], self._watches[connection.address]
        await connection.close()
        self._note()

    def renew(self) -> None:
        """Connect anew where the certificate has changed. What runs goes on over its old connection."""
        for connection in self._connections.values():
            connection.renew()

    async def close(self) -> None:
        """Close the channels; calls that run are cancelled."""
        for connection in list(self._connections.values()):
            await connection.close()

    # What they say of themselves.

    @property
    def known(self) -> SamplerInfo | None:
        """What a sampler for edits said of itself last."""
        of_base_model = [
            one for one in self._named() if one.known is not None and one.known.base_model.digest == self._base_model
        ]
        of_base_model.sort(key=lambda connection: not connection.is_answering)
        return of_base_model[0].known if of_base_model else self._recalled

    def recall(self, info: SamplerInfo) -> None:
        """What an earlier process knew, for as long as no sampler has answered. Its base model stays until most
        samplers have another one."""
        self._recalled = info
        self._base_model = info.base_model.digest
        self._note()

    async def ask_all(self) -> bool:
        """Ask all what they are; whether any answers."""
        await self._until_resolved()
        answers = await asyncio.gather(*(one.sampler_info() for one in self._named()), return_exceptions=True)
        self._note()
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, UniTuneError):
                raise answer
        return any(isinstance(answer, SamplerInfo) for answer in answers)

    def described(self, *, with_addresses: bool = False) -> list[Upstream]:
        """Every sampler, as it last answered; at least one."""
        found = [
            Upstream(
                name="sampler",
                version=one.known.version if one.known else "",
                is_answering=one.is_answering,
                engine=one.known.engine if one.known else "",
                address=one.address if with_addresses else "",
                base_model=one.known.base_model.digest if one.known else "",
                is_left_out=self._is_of_another_model(one),
            )
            for one in sorted(self._named(), key=lambda connection: connection.address)
        ]
        nowhere = [name for name in self._names if not self._addresses.get(name)]
        return found + [Upstream(name="sampler", address=name if with_addresses else "") for name in nowhere]

    def _named(self) -> list[SamplerConnection]:
        return [connection for connection in self._connections.values() if connection.is_named]

    def _is_of_another_model(self, connection: SamplerConnection) -> bool:
        return connection.known is not None and connection.known.base_model.digest != self._base_model

    def _note(self) -> None:
        """Something has changed: find the base model of most samplers, and tell how many there are for edits."""
        # Those that are away count, too: one that strays is not most while the others start again.
        counts = Counter(one.known.base_model.digest for one in self._named() if one.known is not None)
        if counts:
            most, unheard = max(counts.values()), sum(one.is_unheard for one in self._named())
            is_nobodys = not self._base_model or not (counts[self._base_model] or unheard)
            if is_nobodys or 2 * most > counts.total() + unheard:
                self._base_model = min(digest for digest, count in counts.items() if count == most)
        left_out = {one.address for one in self._named() if one.is_answering and self._is_of_another_model(one)}
        for address in left_out - self._left_out:
            telemetry.event(logger, "sampler of another base model left out", level=logging.WARNING, address=address)
        self._left_out = left_out
        usable = len(self._usable())
        away = max(0, len(self._named()) - len(left_out) - usable)
        for state, count in (("usable", usable), ("left_out", len(left_out)), ("away", away)):
            metrics.SAMPLERS.labels(state).set(count)
        self.on_count(usable)

    # What they are asked.

    def _usable(self) -> list[SamplerConnection]:
        """The samplers for edits, at least one if there is any: those whose state is known, else those that answer."""
        of_model = [one for one in self._named() if not self._is_of_another_model(one)] or self._named()
        processes = list({one.epoch: one for one in of_model}.values())
        for group in (
            [one for one in processes if one.is_watched and one.is_answering and not one.is_draining],
            [one for one in processes if one.is_answering and not one.is_draining],
        ):
            if group:
                return group
        return processes

    async def _until_resolved(self) -> None:
        """Raises Unavailable (BACKEND_DOWN) if no name stands for any address."""
        try:
            async with asyncio.timeout(CALL_S):
                await self._resolved.wait()
        except TimeoutError:
            pass
        if not self._named():
            raise unanswered("sampler")

    async def _ask(self, question: Callable[[SamplerConnection, bool], Awaitable[T]]) -> T:
        """The answer of one sampler, of several if the first do not answer. Raises as the question, and Unavailable."""
        await self._until_resolved()
        usable = self._usable()
        start = next(self._turn) % len(usable)
        *first, last = (usable[start:] + usable[:start])[:ASKED]
        for connection in first:
            try:
                return await question(connection, False)
            except Unavailable:
                continue
        return await question(last, True)

    async def sampler_info(self) -> SamplerInfo:
        """What a sampler says of itself now. Raises Unavailable (BACKEND_DOWN)."""
        info = await self._ask(lambda sampler, waits: sampler.sampler_info(waits=waits))
        self._note()
        return info

    async def check_tuning(self, config: TuningConfig) -> list[str]:
        """Ask a sampler, whose base model is the tuner's, whether a config can be tuned; its warnings.

        Raises InvalidArgument, Unavailable (BACKEND_DOWN).
        """
        return await self._ask(lambda sampler, waits: sampler.check_tuning(config, waits=waits))

    async def check_sample(self, request: SampleRequest) -> list[str]:
        """Have a sampler check the request of a run; its warnings. Raises InvalidArgument, Unavailable
        (BACKEND_DOWN)."""
        return await self._ask(lambda sampler, waits: sampler.check_sample(request, waits=waits))

    async def evict(self, digest: str) -> None:
        """Make all samplers forget weights. One that is away, or fails, tells what it holds when its state comes again.

        Raises Unavailable (BACKEND_DOWN) if none answers.
        """
        await self._until_resolved()
        asked = [one for one in self._connections.values() if one.is_watched] or self._named()
        answers = await asyncio.gather(*(one.evict(digest) for one in asked), return_exceptions=True)
        evicted = {one for one, answer in zip(asked, answers, strict=True) if not isinstance(answer, BaseException)}
        for connection in self._connections.values():
            if connection not in evicted:
                connection.watch_anew()
        if all(isinstance(answer, BaseException) for answer in answers):
            raise answers[0]  # type: ignore[misc]

    async def load(self, weights: WeightsRef) -> None:
        """Have the sampler that an edit would get put weights into an engine, if one is free. Raises the sampler's
        error, or Unavailable."""
        await self._until_resolved()
        await self._chosen(weights.digest, self._usable()).load(weights)

    async def sample(self, request: SampleRequest, timeout_s: float | None) -> AsyncGenerator[SampleEvent, None]:
        """Sample; closing the iterator cancels it before its next step. Raises the sampler's error, or Unavailable."""
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        await self._until_resolved()
        run, tried, later = ResumedRun(), set[str](), 0
        is_alone = len(self._named()) == 1
        while True:
            left_s = None if ends_s is None else ends_s - time.monotonic()
            untried = [one for one in self._usable() if one.address not in tried]
            if not untried:
                raise unanswered("sampler")
            sampler = self._chosen(request.weights.digest, untried)
            tried.add(sampler.address)
            has_begun = False  # anything of this sampler but heartbeats has been passed on
            try:
                async with aclosing(sampler.sample(request, left_s)) as events:
                    async for event in events:
                        for passed in [event] if is_alone else run.passed(event):
                            has_begun = has_begun or not passed.HasField("heartbeat")
                            yield passed
                        if event.WhichOneof("event") in ("done", "failed"):
                            return
                raise unanswered("sampler")  # it ended without a last event
            except Unavailable as error:
                later += has_begun
                others = [one for one in self._usable() if one.address not in tried]
                is_late = ends_s is not None and time.monotonic() >= ends_s
                if is_alone or is_late or not others or later > MOVES_LATER or len(tried) > MOVES:
                    raise
                fields: telemetry.Fields = {
                    "edit": request.edit,
                    "address": sampler.address,
                    "reason": error.reason,
                }
                telemetry.event(logger, "edit begins again", level=logging.WARNING, **fields)
                metrics.EDIT_MOVES.inc()
            if has_begun:
                yield SampleEvent(warning=EditEvent.Warning(text=LOST))

    def _chosen(self, weights: str, usable: Sequence[SamplerConnection]) -> SamplerConnection:
        replicas = {one.address: one.replica() for one in usable if not one.is_faulty}
        if not replicas:
            replicas = {one.address: one.replica() for one in usable}
        return self._connections[choose(weights, list(replicas.values()), self._chance).address]


async def _forget_nothing(connection: SamplerConnection, held: Sequence[WeightsRef]) -> None:
    pass
