"""Takes tunings from the queue, one at a time, and has the tuner run them.

While no tuner answers, the queue stays as it is. A run that is lost is queued again at its old place. It counts
against the tuning only if the tuner died with it, which the tuner's instance shows. After too many deaths the tuning
is FAILED: a picture that kills its tuner must not do so for ever. A cut connection, a tuner that stood still and a
gateway that died do not count.

While the state cannot be written, as on a full disk, a run goes on and its result waits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from gateway.images import Images
from gateway.names import parse
from gateway.state import State
from gateway.tuning_records import TakenTuning
from gateway.upstreams import Upstreams, unanswered
from gateway.weight_files import WeightFiles
from unitune import telemetry
from unitune.errors import DataLoss, FailedPrecondition, Internal, Unavailable, UniTuneError, from_status, to_status
from unitune.v1.tuner_pb2 import RunTuningRequest, TunerInfo
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress, WeightsRef

logger = logging.getLogger(__name__)

LONGEST_WAIT = 16  # times the first wait
# From READY until the weights are loaded ahead. An edit that waited for the tuning loads them itself, and sooner.
LOAD_AFTER_S = 0.5

T = TypeVar("T")


class Dispatcher:
    """Runs the tunings of one gateway."""

    def __init__(
        self,
        state: State,
        images: Images,
        files: WeightFiles,
        upstreams: Upstreams,
        *,
        retry_s: float,
        sweep_s: float,
    ) -> None:
        self._state = state
        self._images = images
        self._files = files
        self._upstreams = upstreams
        self._retry_s = retry_s
        self._sweep_s = sweep_s
        self._taking = asyncio.Lock()  # so that nothing is RUNNING before `_running` says so
        self._running = ""
        self._misses_progress = False  # of the current run; the log says so already
        self._task: asyncio.Task[bool] | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._loads: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run tunings until cancelled. The current run then goes back into the queue."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_all())
                tasks.create_task(self._sweep())
        finally:
            for load in self._loads:
                load.cancel()

    async def _run_all(self) -> None:
        wait = 1
        while True:
            try:
                await self._recover()
                lost = await self._next()
            except Exception:  # our own mistake must not end all tuning
                telemetry.failure(logger, "dispatch failed")
                lost = True
            if lost:
                await asyncio.sleep(wait * self._retry_s)
            wait = min(2 * wait, LONGEST_WAIT) if lost else 1

    async def _sweep(self) -> None:
        """Recover at intervals, so that no tuning stays RUNNING that nobody runs, for whatever reason."""
        while True:
            await asyncio.sleep(self._sweep_s)
            try:
                await self._recover()
            except Exception:  # such as a disk that is full; the next round tries again
                telemetry.failure(logger, "recovery failed")

    async def _recover(self) -> None:
        """Give back RUNNING tunings that are not run here. An earlier process, or a full disk, left them so."""
        async with self._taking:
            await self._state.recover(self._running)

    def pause(self) -> None:
        """Take no more tunings; the one that runs goes on."""
        self._open.clear()

    async def stop(self, name: str) -> None:
        """Stop the run of that tuning, if there is one, and return once the tuner has been told."""
        if self._running == name and self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _next(self) -> bool:
        """Run the next tuning to its end. True if the tuner was lost or did not answer."""
        await self._state.wait_queued()
        await self._open.wait()
        try:
            tuner = await self._upstreams.tuner_info()
        except UniTuneError:
            return True
        async with self._taking:
            taken = await self._state.take(tuner.instance)
            if taken is None:
                return False
            self._running = taken.tuning.name
        self._task = asyncio.create_task(self._run(taken, tuner))
        try:
            await asyncio.wait({self._task})
            return not self._task.cancelled() and self._task.result()
        finally:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._running = ""
            # No tuning may be RUNNING that nobody runs. One that has ended is not changed.
            await self._state.give_back(taken.tuning.name, lost=False)

    async def _run(self, taken: TakenTuning, tuner: TunerInfo) -> bool:
        """Run one attempt and record how it ended. True if the tuner was lost."""
        name = taken.tuning.name
        self._misses_progress = False
        telemetry.event(logger, "tuning started", tuning=name, attempt=taken.attempt)
        try:
            weights = await self._attempt(taken, tuner)
        except UniTuneError as error:
            if isinstance(error, Unavailable) or error.retry_after_s is not None:  # it will pass, as a full store does
                telemetry.event(logger, "tuning lost", level=logging.WARNING, tuning=name, reason=error.reason)
                # A tuner that can still say why it stops (it drains, its store is down) did not die.
                is_lost = error.reason == "BACKEND_DOWN"
                await self._retry(lambda: self._state.give_back(name, lost=is_lost), name)
                return True
            await self._failed(name, error)
        except Exception:
            telemetry.failure(logger, "tuning failed", tuning=name)
            await self._failed(name, Internal("the server made a mistake; its log has the details", reason="INTERNAL"))
        else:
            await self._ready(name, weights)
        return False

    async def _attempt(self, taken: TakenTuning, tuner: TunerInfo) -> WeightsRef:
        """The weights, in the store and verified. Raises the reason if there are none."""
        tuning = taken.tuning
        if tuner.base_model.digest != tuning.base_model:
            raise FailedPrecondition(
                "the tuner's base model was changed while the tuning was queued; make a new tuning",
                reason="BASE_MODEL_MISMATCH",
                metadata={"asked": tuning.base_model, "tuner": tuner.base_model.digest},
            )
        request = RunTuningRequest(
            name=tuning.name,
            key=tuning.key,
            image=await self._images.read(parse(tuning.image, "images")),
            config=tuning.config,
            path=self._files.path(tuning.name, taken.attempt),
            further_images=[await self._images.read(parse(name, "images")) for name in tuning.images],
        )
        now = await self._retry(lambda: self._state.get(tuning.name), tuning.name)
        if now is None or now.state != Tuning.STATE_RUNNING:  # cancelled before the run began
            raise asyncio.CancelledError
        async with aclosing(self._upstreams.run_tuning(request)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "progress":
                        await self._progress(tuning.name, event.progress)
                    case "done":
                        if (event.done.key, event.done.base_model) != (tuning.key, tuning.base_model):
                            raise Internal("the tuner made other weights than were asked for", reason="WRONG_WEIGHTS")
                        await self._retry(partial(self._files.verify, event.done), tuning.name)
                        return event.done
                    case "failed":
                        raise from_status(event.failed)
                    case "cancelled":
                        raise Unavailable("the tuner let go of the run", reason="RUN_LET_GO")
        raise unanswered("tuner")

    async def _progress(self, name: str, progress: TuningProgress) -> None:
        def mutate(tuning: Tuning) -> None:
            if tuning.state == Tuning.STATE_RUNNING:
                tuning.progress.CopyFrom(progress)

        try:
            await self._state.change(name, mutate, lambda _: TuningEvent(progress=progress))
        except Exception:  # such as a full disk, which must not end a run
            if not self._misses_progress:
                telemetry.failure(logger, "progress not written", tuning=name)
            self._misses_progress = True

    async def _retry(self, work: Callable[[], Awaitable[T]], name: str) -> T:
        """Do `work` again until it succeeds: a run and its result must outlast a disk that is full for a while.

        Raises DataLoss, which is about the weights, at once.
        """
        wait = 1
        while True:
            try:
                return await work()
            except DataLoss:
                raise
            except Exception:
                if wait == 1:
                    telemetry.failure(logger, "state or store not usable yet", tuning=name)
            await asyncio.sleep(wait * self._retry_s)
            wait = min(2 * wait, LONGEST_WAIT)

    async def _discard(self, name: str, *, keep: str = "") -> None:
        try:
            await self._files.discard(name, keep=keep)
        except Exception:  # the store is down; what is left goes when the tuning is deleted
            telemetry.failure(logger, "weights not discarded", tuning=name)

    async def _ready(self, name: str, weights: WeightsRef) -> None:
        def mutate(tuning: Tuning) -> None:
            if tuning.state == Tuning.STATE_RUNNING:
                tuning.state = Tuning.STATE_READY
                tuning.weights.CopyFrom(weights)
                tuning.end_time.GetCurrentTime()

        tuning = await self._retry(lambda: self._state.change(name, mutate, lambda now: TuningEvent(ready=now)), name)
        is_ready = tuning is not None and tuning.weights.digest == weights.digest
        await self._discard(name, keep=weights.path if is_ready else "")
        if is_ready:
            telemetry.event(logger, "tuning ready", tuning=name, size_bytes=weights.size_bytes)
            load = asyncio.create_task(self._load_ahead(name, weights))
            self._loads.add(load)
            load.add_done_callback(self._loads.discard)

    async def _load_ahead(self, name: str, weights: WeightsRef) -> None:
        """Spare the first edit its refit. If this fails, the edit loads the weights itself and reports the error."""
        await asyncio.sleep(LOAD_AFTER_S)
        try:
            await self._upstreams.load(weights)
        except UniTuneError as error:
            telemetry.event(logger, "weights not loaded ahead", tuning=name, reason=error.reason)
        except Exception:
            telemetry.failure(logger, "weights not loaded ahead", tuning=name)

    async def _failed(self, name: str, error: UniTuneError) -> None:
        status = to_status(error)

        def mutate(tuning: Tuning) -> None:
            if tuning.state == Tuning.STATE_RUNNING:
                tuning.state = Tuning.STATE_FAILED
                tuning.error.CopyFrom(status)
                tuning.end_time.GetCurrentTime()

        await self._discard(name)  # first: FAILED means that nothing is left, unless the store is down
        await self._retry(lambda: self._state.change(name, mutate, lambda _: TuningEvent(failed=status)), name)
        telemetry.event(logger, "tuning failed", level=logging.WARNING, tuning=name, reason=error.reason)
