"""Takes tunings from the queue, one at a time, and has the tuner run them.

A tuner that does not answer leaves the queue as it is. A run that is lost with its tuner is queued again at its
old place, and FAILED when that has happened too often: a picture that kills its tuner must not do so forever.
"""

import asyncio
import logging
from contextlib import aclosing

from gateway.images import Images
from gateway.names import parse
from gateway.tuning_queue import State, Taken
from gateway.upstreams import Upstreams, unanswered
from gateway.weight_files import WeightFiles
from unitune import telemetry
from unitune.errors import FailedPrecondition, Internal, Unavailable, UniTuneError, from_status, to_status
from unitune.v1.tuner_pb2 import RunTuningRequest, TunerInfo
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress, WeightsRef

logger = logging.getLogger(__name__)

LONGEST_WAIT = 16  # times the first wait
# After a tuning is READY until its weights are loaded ahead: an edit that waited for it comes first and needs no help.
LOAD_AFTER_S = 0.5


class Dispatcher:
    """The one who runs tunings."""

    def __init__(
        self, state: State, images: Images, files: WeightFiles, upstreams: Upstreams, *, retry_s: float
    ) -> None:
        self._state = state
        self._images = images
        self._files = files
        self._upstreams = upstreams
        self._retry_s = retry_s
        self._running = ""
        self._task: asyncio.Task[bool] | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._loads: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run tunings until cancelled; a run that is cut off by that goes back into the queue."""
        try:
            await self._run_all()
        finally:
            for load in self._loads:
                load.cancel()

    async def _run_all(self) -> None:
        wait, recovered = 1, False
        while True:
            try:
                if not recovered:
                    await self._state.recover()
                    recovered = True
                lost = await self._next()
            except Exception:  # our own mistake must not end all tuning
                telemetry.failure(logger, "dispatch failed")
                lost = True
            if lost:
                await asyncio.sleep(wait * self._retry_s)
            wait = min(2 * wait, LONGEST_WAIT) if lost else 1

    def pause(self) -> None:
        """Take no more tunings; the one that runs goes on."""
        self._open.clear()

    async def stop(self, name: str) -> None:
        """Stop the run of that tuning, if there is one, and return once the tuner has been told."""
        if self._running == name and self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _next(self) -> bool:
        """Run the next tuning to its end; whether the tuner was lost or did not answer at all."""
        await self._state.wait_queued()
        await self._open.wait()
        try:
            tuner = await self._upstreams.tuner_info()
        except UniTuneError:
            return True
        taken = await self._state.take()
        if taken is None:
            return False
        self._running = taken.tuning.name
        self._task = asyncio.create_task(self._run(taken, tuner))
        try:
            await asyncio.wait({self._task})
            return not self._task.cancelled() and self._task.result()
        finally:
            self._running = ""
            self._task.cancel()
            await asyncio.wait({self._task})
            broke = not self._task.cancelled() and self._task.exception() is not None
            # Changes nothing unless it is still RUNNING, which nothing may be that nobody runs.
            await self._state.give_back(taken.tuning.name, crashed=broke)

    async def _run(self, taken: Taken, tuner: TunerInfo) -> bool:
        """Run one attempt and record how it ended; whether the tuner was lost."""
        name = taken.tuning.name
        telemetry.event(logger, "tuning started", tuning=name, attempt=taken.attempt)
        try:
            weights = await self._attempt(taken, tuner)
        except Unavailable as error:
            # A tuner that can still say why it stops (it drains, its store is down) was not brought down by the run.
            telemetry.event(logger, "tuning lost", level=logging.WARNING, tuning=name, reason=error.reason)
            await self._state.give_back(name, crashed=error.reason == "BACKEND_DOWN")
            return True
        except UniTuneError as error:
            await self._failed(name, error)
        except Exception:
            telemetry.failure(logger, "tuning failed", tuning=name)
            await self._failed(name, Internal("the server made a mistake; its log has the details", reason="INTERNAL"))
        else:
            await self._ready(name, weights)
        return False

    async def _attempt(self, taken: Taken, tuner: TunerInfo) -> WeightsRef:
        """The weights, in the store and verified. Raises whatever kept them from being made."""
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
        now = await self._state.get(tuning.name)
        if now is None or now.state != Tuning.STATE_RUNNING:  # cancelled before there was a run to stop
            raise asyncio.CancelledError
        async with aclosing(self._upstreams.run_tuning(request)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "progress":
                        await self._progress(tuning.name, event.progress)
                    case "done":
                        if (event.done.key, event.done.base_model) != (tuning.key, tuning.base_model):
                            raise Internal("the tuner made other weights than were asked for", reason="WRONG_WEIGHTS")
                        await self._files.verify(event.done)
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

        await self._state.change(name, mutate, lambda _: TuningEvent(progress=progress))

    async def _ready(self, name: str, weights: WeightsRef) -> None:
        def mutate(tuning: Tuning) -> None:
            if tuning.state == Tuning.STATE_RUNNING:
                tuning.state = Tuning.STATE_READY
                tuning.weights.CopyFrom(weights)
                tuning.end_time.GetCurrentTime()

        tuning = await self._state.change(name, mutate, lambda now: TuningEvent(ready=now))
        is_ready = tuning is not None and tuning.weights.digest == weights.digest
        await self._files.discard(name, keep=weights.path if is_ready else "")
        if is_ready:
            telemetry.event(logger, "tuning ready", tuning=name, size_bytes=weights.size_bytes)
            load = asyncio.create_task(self._load_ahead(name, weights))
            self._loads.add(load)
            load.add_done_callback(self._loads.discard)

    async def _load_ahead(self, name: str, weights: WeightsRef) -> None:
        """Spare the first edit its refit. Whatever goes wrong, the edit will load the weights itself and tell."""
        await asyncio.sleep(LOAD_AFTER_S)
        try:
            await self._upstreams.load(weights)
        except UniTuneError as error:
            telemetry.event(logger, "weights not loaded ahead", tuning=name, reason=error.reason)

    async def _failed(self, name: str, error: UniTuneError) -> None:
        status = to_status(error)

        def mutate(tuning: Tuning) -> None:
            if tuning.state == Tuning.STATE_RUNNING:
                tuning.state = Tuning.STATE_FAILED
                tuning.error.CopyFrom(status)
                tuning.end_time.GetCurrentTime()

        await self._files.discard(name)  # first: FAILED means that nothing is left
        await self._state.change(name, mutate, lambda _: TuningEvent(failed=status))
        telemetry.event(logger, "tuning failed", level=logging.WARNING, tuning=name, reason=error.reason)
