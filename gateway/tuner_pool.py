"""Gives tunings to the tuners that ask for them, and keeps what they report.

A tuner has a tuning for the time of a lease, which each report renews. A tuning whose lease has run out is QUEUED again
at its old place. That counts against it only if its tuner died, which another process taking work shows: a picture that
kills its tuner must not do so for ever. A cut connection, a gateway that died and a tuner that gives back do not count.

While the state or the store cannot be used, as on a full disk, a report fails, and its tuner repeats it.
"""

import asyncio
import logging
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from gateway.known_services import KnownServices
from gateway.names import parse
from gateway.samplers import Samplers
from gateway.state import State
from gateway.tuners import Tuners
from gateway.tuning_records import Attempt, Standing, TakenTuning, Taker
from gateway.weight_files import WeightFiles
from unitune import store_paths, telemetry
from unitune.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidField,
    Unavailable,
    UniTuneError,
    from_status,
    to_status,
)
from unitune.v1.tuner_pb2 import (
    AnnounceRequest,
    AnnounceResponse,
    Assignment,
    Checkpoint,
    ReportTuningRequest,
    ReportTuningResponse,
    StoredImage,
    TakeTuningRequest,
    TakeTuningResponse,
    TunerProcess,
)
from unitune.v1.tuner_pb2_grpc import TunerPoolServiceServicer
from unitune.v1.tuning_pb2 import WeightsRef

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 30.0  # of one call
SWEEPS_IN_A_LEASE = 6
# From READY until the weights are loaded ahead. An edit that waited for the tuning loads them itself, and sooner.
LOAD_AFTER_S = 0.5


class TunerPool(TunerPoolServiceServicer):
    """The servicer, and the sweep for leases that have run out."""

    def __init__(
        self,
        state: State,
        files: WeightFiles,
        tuners: Tuners,
        services: KnownServices,
        samplers: Samplers,
        *,
        lease_s: float,
        most_running: int,
        model_gone_s: float,
    ) -> None:
        """`lease_s` is how long an attempt lasts without a report. No more than `most_running` tunings of a tenant run
        at a time; 0 means any number. A tuning fails whose base model no tuner has had for `model_gone_s`, while others
        have tuners."""
        self._state = state
        self._files = files
        self._tuners = tuners
        self._services = services
        self._samplers = samplers
        self._lease_s = lease_s
        self._most_running = most_running
        self._model_gone_s = model_gone_s
        self._began_s = time.monotonic()
        self._no_sweep_until_s = self._began_s + lease_s
        self._draining = asyncio.Event()
        self._loads: set[asyncio.Task[None]] = set()

    # What tuners ask.

    async def Announce(self, request: AnnounceRequest, context: Any) -> AnnounceResponse:
        """Remember what a tuner is."""
        if not request.info.base_model.digest:
            raise InvalidField("info.base_model.digest", "", "it must be set")
        with self._tuners.calling():
            self._tuners.announced(request.info)
            with suppress(UniTuneError):  # such as a disk that is full; it is tried again
                await self._services.keep()
        lease = Duration()
        lease.FromTimedelta(timedelta(seconds=self._lease_s))
        return AnnounceResponse(lease=lease)

    async def TakeTuning(self, request: TakeTuningRequest, context: Any) -> TakeTuningResponse:
        """Wait for a tuning, and begin an attempt at it."""
        taker = _taker(request.tuner)
        if not request.base_model:
            raise InvalidField("base_model", "", "it must be set")
        gives_up_at = time.monotonic() + _wait_s(request.wait)
        with self._tuners.calling():
            self._tuners.saw(request.base_model)
            while not self._draining.is_set():
                taken = await self._state.take(
                    taker, base_model=request.base_model, lease_s=self._lease_s, most_running=self._most_running
                )
                if taken is not None:
                    telemetry.event(logger, "tuning started", tuning=taken.tuning.name, attempt=taken.attempt)
                    return TakeTuningResponse(assignment=self._assignment(taken))
                left_s = gives_up_at - time.monotonic()
                if left_s <= 0:
                    break
                await self._first_of(self._state.wait_queued(request.base_model, self._most_running), left_s)
        return TakeTuningResponse()

    async def ReportTuning(self, request: ReportTuningRequest, context: Any) -> ReportTuningResponse:
        """Keep a report, and answer what the tuner has to do."""
        parse(request.name, "tunings")
        instance, attempt = _taker(request.tuner).instance, Attempt(request.name, request.attempt)
        with self._tuners.calling():
            try:
                standing = await self._report(attempt, instance, request)
            except Exception:
                # Its tuner is there, though nothing can be kept.
                self._no_sweep_until_s = time.monotonic() + self._lease_s
                raise
        if standing is not Standing.KEPT:
            event = "report of an attempt that is over"
            telemetry.event(logger, event, tuning=attempt.name, attempt=attempt.number)
        return _order(standing)

    async def _report(self, attempt: Attempt, instance: str, request: ReportTuningRequest) -> Standing:
        match request.WhichOneof("report"):
            case "progress":
                return await self._state.report(attempt, instance, progress=request.progress, lease_s=self._lease_s)
            case "alive":
                return await self._alive(attempt, instance, _wait_s(request.alive.wait))
            case "checkpoint":
                return await self._checkpoint(attempt, instance, request.checkpoint)
            case "done":
                return await self._done(attempt, instance, request.done)
            case "failed":
                return await self._failed(attempt, from_status(request.failed))
            case "give_back":
                telemetry.event(logger, "tuning given back", tuning=attempt.name, attempt=attempt.number)
                return await self._state.let_go(attempt)
        raise InvalidField("report", "unset", "it must be set")

    async def _alive(self, attempt: Attempt, instance: str, wait_s: float) -> Standing:
        standing = await self._state.report(attempt, instance, lease_s=self._lease_s)
        if standing is not Standing.KEPT or not wait_s:
            return standing
        await self._first_of(self._state.wait_lost(attempt), wait_s)
        return await self._state.standing(attempt)

    async def _checkpoint(self, attempt: Attempt, instance: str, checkpoint: Checkpoint) -> Standing:
        path = self._files.checkpoint_path(attempt.name, attempt.number, checkpoint.update)
        if checkpoint.path != path:
            raise InvalidField("checkpoint.path", checkpoint.path, f"it must be {path}")
        return await self._state.keep_checkpoint(attempt, instance, checkpoint, lease_s=self._lease_s)

    async def _done(self, attempt: Attempt, instance: str, weights: WeightsRef) -> Standing:
        if await self._state.report(attempt, instance, lease_s=self._lease_s) is Standing.KEPT:
            tuning = await self._state.get(attempt.name)
            path = self._files.path(attempt.name, attempt.number)
            if tuning is not None and (weights.key, weights.base_model, weights.path) != (
                *(tuning.key, tuning.base_model),
                path,
            ):
                wrong = Internal("the tuner made other weights than were asked for", reason="WRONG_WEIGHTS")
                return await self._give_up(attempt, wrong)
            try:
                await self._files.verify(weights)
            except DataLoss as error:
                return await self._give_up(attempt, error)
        standing = await self._state.finish(attempt, weights)
        if standing is Standing.KEPT:
            await self._discard(attempt.name, keep=weights.path)
            telemetry.event(logger, "tuning ready", tuning=attempt.name, size_bytes=weights.size_bytes)
            load = asyncio.create_task(self._load_ahead(attempt.name, weights))
            self._loads.add(load)
            load.add_done_callback(self._loads.discard)
        return standing

    async def _failed(self, attempt: Attempt, error: UniTuneError) -> Standing:
        if isinstance(error, Unavailable) or error.retry_after_s is not None:  # it will pass, as a full store does
            reason = "tuning given back"
            telemetry.event(logger, reason, level=logging.WARNING, tuning=attempt.name, reason=error.reason)
            return await self._state.let_go(attempt)
        standing = await self._state.standing(attempt)
        if standing is Standing.KEPT:
            await self._discard(attempt.name)  # first: FAILED means that nothing is left, unless the store is down
            telemetry.event(logger, "tuning failed", level=logging.WARNING, tuning=attempt.name, reason=error.reason)
        return await self._state.fail(attempt, to_status(error))

    async def _give_up(self, attempt: Attempt, error: UniTuneError) -> Standing:
        """The attempt's own weights are not what they should be: the tuning fails, and the tuner deletes them."""
        await self._failed(attempt, error)
        return Standing.LOST

    def _assignment(self, taken: TakenTuning) -> Assignment:
        tuning = taken.tuning
        images = [parse(name, "images") for name in (tuning.image, *tuning.images)]
        return Assignment(
            name=tuning.name,
            attempt=taken.attempt,
            key=tuning.key,
            config=tuning.config,
            images=[
                StoredImage(name=str(image), path=store_paths.image_file_path(image.tenant, image.id), sha256=image.id)
                for image in images
            ],
            path=self._files.path(tuning.name, taken.attempt),
            checkpoint=taken.checkpoint,
            trace=taken.trace,
        )

    async def _first_of(self, event: Any, wait_s: float) -> None:
        """Wait for an event, but no longer than this, and not while the gateway drains."""
        tasks = {asyncio.ensure_future(event), asyncio.ensure_future(self._draining.wait())}
        try:
            await asyncio.wait(tasks, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # What the gateway does by itself.

    def pause(self) -> None:
        """Give out no more tunings, and let no call wait. Reports are kept as before."""
        self._draining.set()

    async def run(self) -> None:
        """Sweep until cancelled. Tuners go on with what they have."""
        is_anybody_blamed = not self._state.is_shared
        every_s = self._lease_s / SWEEPS_IN_A_LEASE
        try:
            while True:
                try:
                    if is_anybody_blamed:
                        await self._state.blame_nobody()
                        is_anybody_blamed = False
                    await self._sweep()
                except UniTuneError:  # such as a disk that is full, which is in the log: tuners could not report either
                    self._no_sweep_until_s = time.monotonic() + self._lease_s
                except Exception:  # a fault of ours, which must not end the sweeps
                    telemetry.failure(logger, "leases not swept")
                began_s, clock_s = time.monotonic(), time.time()
                await asyncio.sleep(every_s)
                slept_s = time.monotonic() - began_s
                set_s = time.time() - clock_s - slept_s  # the clock of the machine, by which leases end
                # This process stood still, and tuners could not report; or the machine was asleep.
                if slept_s > 2 * every_s or abs(set_s) > every_s:
                    self._no_sweep_until_s = time.monotonic() + self._lease_s
        finally:
            for load in self._loads:
                load.cancel()

    async def _sweep(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._no_sweep_until_s:
            for name in await self._state.sweep(self._lease_s):
                telemetry.event(logger, "tuning lost", level=logging.WARNING, tuning=name, reason="LEASE_EXPIRED")
        for digest in await self._state.queued_base_models():
            newest = self._tuners.known
            if newest is None or newest.base_model.digest == digest:
                continue
            if now_s - max(self._began_s, self._tuners.seen_s(digest)) < self._model_gone_s:
                continue
            error = FailedPrecondition(
                "the tuners' base model was changed while the tuning was queued; make a new tuning",
                reason="BASE_MODEL_MISMATCH",
                metadata={"asked": digest, "tuner": newest.base_model.digest},
            )
            for name in await self._state.fail_queued(digest, to_status(error)):
                telemetry.event(logger, "tuning failed", level=logging.WARNING, tuning=name, reason=error.reason)

    async def _discard(self, name: str, *, keep: str = "") -> None:
        try:
            await self._files.discard(name, keep=keep)
        except Exception:  # the store is down; what is left goes when the tuning is deleted
            telemetry.failure(logger, "weights not discarded", tuning=name)

    async def _load_ahead(self, name: str, weights: WeightsRef) -> None:
        """Spare the first edit its refit. If this fails, the edit loads the weights itself and reports the error."""
        await asyncio.sleep(LOAD_AFTER_S)
        try:
            await self._samplers.load(weights)
        except UniTuneError as error:
            telemetry.event(logger, "weights not loaded ahead", tuning=name, reason=error.reason)
        except Exception:
            telemetry.failure(logger, "weights not loaded ahead", tuning=name)


def _taker(tuner: TunerProcess) -> Taker:
    for field in ("place", "instance"):
        if not getattr(tuner, field):
            raise InvalidField(f"tuner.{field}", "", "it must be set")
    return Taker(tuner.instance, tuner.place)


def _wait_s(wait: Duration) -> float:
    return min(max(0.0, wait.seconds + wait.nanos / 1e9), LONGEST_WAIT_S)


def _order(standing: Standing) -> ReportTuningResponse:
    match standing:
        case Standing.KEPT:
            return ReportTuningResponse(noted=Empty())
        case Standing.CANCELLED:
            return ReportTuningResponse(cancel=Empty())
    return ReportTuningResponse(lease_lost=Empty())
