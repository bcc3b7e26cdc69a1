"""The tuner's work: it takes tunings of a gateway, one at a time, runs them in the PyTorch thread, and reports.

It goes on while no gateway answers, and reports to the one that does. Only an answer says that a tuning is not its any
more. Before it writes weights it asks.
"""

import asyncio
import contextvars
import functools
import gc
import hashlib
import logging
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import NamedTuple

import numpy as np
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.checkpoint import Checkpoints, SavedStage, read
from tuner_svc.config import DEFAULT_CODEC
from tuner_svc.gateways import Gateways
from tuner_svc.probe import pack_tuned
from tuner_svc.progress_tracker import UpdateProgress
from tuner_svc.torch_thread import TorchThread
from tuner_svc.tune import check, total_updates, tune, tuned_stages
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.tuning_run import MadeCheckpoint, TuningRun
from tuner_svc.tuning_stages import StageTimes, TuningStages
from unitune import __version__, images, store_paths, telemetry, tracing
from unitune.base_model import Preset, SuperResolutionSpec
from unitune.choices import (
    BOUND_TO_NULL_TEXT,
    NULL_TEXT,
    PROMPT_TO_PROMPT,
    TUNING_METHODS,
)
from unitune.drain import DRAIN_S
from unitune.errors import (
    Cancelled,
    DataLoss,
    Internal,
    InvalidField,
    NotFound,
    ResourceExhausted,
    Unavailable,
    UniTuneError,
    from_status,
    to_status,
)
from unitune.free_memory import give_back_memory
from unitune.object_store import ObjectStore
from unitune.options import TUNING, Flat, put_words, read_by
from unitune.options import check as check_fields
from unitune.server_info import base_model_info
from unitune.serving import HEARTBEAT_S
from unitune.super_resolution import large_size
from unitune.system_errors import store_error
from unitune.v1 import tuning_pb2
from unitune.v1.tuner_pb2 import (
    AnnounceRequest,
    Assignment,
    Checkpoint,
    ReportTuningRequest,
    ReportTuningResponse,
    StoredImage,
    TakeTuningRequest,
    TunerInfo,
    TunerProcess,
)
from unitune.v1.tuning_pb2 import TuningProgress
from unitune.weights import Manifest
from unitune.working_size import fit, size_of, working_size

UNSET_IS_FALSE = ("warm_start",)  # which gateways of earlier versions do not know
logger = logging.getLogger(__name__)

STORE_WAIT_S = 600.0  # for a store that is full or does not answer; made again, the weights cost as much
STORE_RETRY_S, STORE_LONGEST_RETRY_S = 0.5, 2.0  # pauses, which grow; a run that is to end waits for one at most
INSTANCE_BYTES = 16  # random bytes, different in every process
TAKE_WAIT_S = 20.0  # of one question for a tuning
REPORTS_IN_A_LEASE = 6
SOONEST_S = 1.0  # between two questions that are answered at once
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 16.0  # after a tuning that was given back for an error that will pass
FINISHES_WITHIN_S = DRAIN_S - 5.0  # a drain lets a tuning end that has no more left
GIVE_BACK_S = 3.0  # for a gateway to take a tuning back in a drain


class Packed(NamedTuple):
    """Weights as they are stored."""

    data: bytes
    manifest: Manifest


class TunerService:
    """Takes, runs and reports. It is used from one event loop."""

    def __init__(
        self,
        model: BaseModel,
        store: ObjectStore,
        gateways: Gateways,
        codec: str = DEFAULT_CODEC,
        thread: TorchThread | None = None,
        *,
        checkpoint_s: float = 0.0,
    ) -> None:
        """`thread` is the one that loaded the model; without it there is a new one. `checkpoint_s` are the seconds
        between two checkpoints, 0 makes none."""
        self._model, self._store, self._gateways, self._codec = model, store, gateways, codec
        self._thread = thread or TorchThread()
        self._checkpoint_s = checkpoint_s
        self._stage_times = StageTimes()
        self._process = TunerProcess(instance=secrets.token_hex(INSTANCE_BYTES))
        self._announcement = AnnounceRequest()
        self._report_every_s = HEARTBEAT_S
        self._run: TuningRun | None = None
        self._assignment = Assignment()
        self._is_draining = False
        self._task: asyncio.Task[None] | None = None

    def begin(self, address: str) -> None:
        """Begin to work. The address tells this tuner from others on the machine, and stays when it is restarted."""
        self._process.place = f"{socket.gethostname()}/{address}"
        self._task = asyncio.create_task(self._work())

    async def drain(self) -> None:
        """Take no more. A tuning that can end in time may, as long as a gateway answers; else it is given back."""
        self._is_draining = True
        gives_up_at = time.monotonic() + FINISHES_WITHIN_S
        while (run := self._run) is not None and not run.is_cancelled:
            if run.left_s() > gives_up_at - time.monotonic() or self._gateways.is_away:
                await self._give_back(run)
                return
            await asyncio.sleep(0.1)
        if self._task is not None and self._run is None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop working."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._gateways.close()

    def info(self) -> TunerInfo:
        """Base model and preset; in the PyTorch thread."""
        model = self._model
        return TunerInfo(
            base_model=base_model_info(model.spec),
            tuning_defaults=_defaults(model.preset, TUNING_METHODS[0]),
            warm_start_defaults=_warm_start_defaults(model),
            method_defaults=[_defaults(model.preset, method) for method in TUNING_METHODS],
            version=__version__,
        )

    async def _work(self) -> None:
        """Take tunings and run them, until drained or cancelled."""
        pause_s = FIRST_PAUSE_S
        # PyTorch's tensors are looked at.
        self._announcement.info.CopyFrom(await asyncio.wrap_future(self._thread.submit(self.info)))
        while not self._is_draining:
            try:
                assignment = await self._take()
                is_stuck = assignment is not None and await self._traced(assignment)
            except Exception:  # our own mistake must not end all tuning
                telemetry.failure(logger, "tuner's work failed")
                is_stuck = True
            if is_stuck and not self._is_draining:
                await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if is_stuck else FIRST_PAUSE_S

    async def _take(self) -> Assignment | None:
        """Ask for a tuning; None if there was none in time, or nobody answered."""
        answered = await self._gateways.announce(self._announcement)
        self._report_every_s = answered.lease.ToMilliseconds() / 1000 / REPORTS_IN_A_LEASE
        asked_s = time.monotonic()
        request = TakeTuningRequest(tuner=self._process, base_model=self._model.digest)
        try:
            taken = await self._gateways.take(request, TAKE_WAIT_S)
        except UniTuneError:  # its answer may be lost: by asking again the tuner gives back what it was given
            taken = None
        if taken is not None and taken.HasField("assignment"):
            return taken.assignment
        await asyncio.sleep(max(0.0, asked_s + SOONEST_S - time.monotonic()))
        return None

    # One attempt.

    async def _traced(self, assignment: Assignment) -> bool:
        """The attempt, within the trace of the call that made the tuning."""
        with tracing.working("tuning", assignment.trace, {"unitune.attempt": assignment.attempt}):
            return await self._attempt(assignment)

    async def _attempt(self, assignment: Assignment) -> bool:
        """Run an attempt to its end, and report it. True if it failed by something that will pass."""
        run = TuningRun(assignment.name)
        self._run, self._assignment = run, assignment
        holding = asyncio.create_task(self._hold(run, assignment))
        telling = asyncio.create_task(self._tell(run, assignment))
        try:
            outcome = await self._outcome(run, assignment)
            run.end()
            await telling
            holding.cancel()  # what ends the attempt renews its lease, too
            if outcome is None:
                return False
            if run.is_lost:  # meanwhile
                order = ReportTuningResponse()
            else:
                order = await self._gateways.report(outcome)
            telemetry.event(logger, "tuning reported", tuning=run.name, attempt=assignment.attempt)
            if outcome.HasField("done") and not order.HasField("noted"):
                await asyncio.to_thread(self._delete, run, assignment.path)
            return outcome.HasField("failed") and _will_pass(outcome)
        finally:
            for task in (holding, telling):
                task.cancel()
            await asyncio.gather(holding, telling, return_exceptions=True)
            if run.is_unwanted:
                await asyncio.to_thread(self._discard, run, assignment.path)
            for made in run.checkpoints:  # of which nobody knows
                await asyncio.to_thread(self._delete_object, run, made.path)
            self._run = None
            self._thread.submit(_give_back)

    async def _hold(self, run: TuningRun, assignment: Assignment) -> None:
        """Renew the lease until it is lost, or the tuning cancelled: then stop the run."""
        request = self._report(assignment)
        while True:
            asked_s = time.monotonic()
            request.alive.wait.FromMilliseconds(round(1000 * self._report_every_s))
            order = await self._gateways.report(request, self._report_every_s)
            self._obey(run, order)
            if run.is_lost:
                return
            soonest_s = min(SOONEST_S, self._report_every_s)
            await asyncio.sleep(max(0.0, asked_s + soonest_s - time.monotonic()))

    async def _tell(self, run: TuningRun, assignment: Assignment) -> None:
        """Report progress until the run has ended. What no gateway takes is replaced by what comes later."""
        request = self._report(assignment)
        while not run.is_over or run.progress is not None:
            await run.changed(HEARTBEAT_S)
            if run.checkpoints and not run.is_lost:
                await self._tell_checkpoint(run, assignment)
            progress, run.progress = run.progress or (None if run.is_over else run.progress_now()), None
            if progress is None or run.is_lost:
                continue
            request.progress.CopyFrom(_progress(progress))
            try:
                self._obey(run, await self._gateways.report_once(request))
            except UniTuneError:
                await asyncio.sleep(0.0 if run.is_over else STORE_RETRY_S)

    async def _tell_checkpoint(self, run: TuningRun, assignment: Assignment) -> None:
        """Report the latest checkpoint, or leave that for later. Those before it are then deleted, or all that this
        attempt made if it is over."""
        made = list(run.checkpoints)
        request = self._report(assignment)
        request.checkpoint.CopyFrom(Checkpoint(**made[-1]._asdict()))
        try:
            order = await self._gateways.report_once(request)
        except UniTuneError:
            return
        del run.checkpoints[: len(made)]
        self._obey(run, order)
        unused = [each.path for each in made]
        if order.HasField("noted"):
            unused = [*filter(None, [assignment.checkpoint.path]), *unused[:-1]]
            assignment.checkpoint.CopyFrom(request.checkpoint)
        for path in unused:
            await asyncio.to_thread(self._delete_object, run, path)

    def _obey(self, run: TuningRun, order: ReportTuningResponse) -> None:
        if not order.HasField("noted"):
            what = order.WhichOneof("order") or "nothing"
            telemetry.event(logger, "tuning let go", tuning=run.name, reason=what.upper())
            run.is_lost, run.is_unwanted = True, run.is_unwanted or what == "cancel"
            run.cancel()

    async def _give_back(self, run: TuningRun) -> None:
        """Stop a run, and have its tuning given to another tuner without waiting for the end of its update."""
        run.is_lost = True
        run.cancel()
        request = self._report(self._assignment)
        request.give_back.SetInParent()
        try:
            async with asyncio.timeout(GIVE_BACK_S):
                await self._gateways.report(request)
        except TimeoutError:  # the lease runs out
            telemetry.event(logger, "tuning not given back", level=logging.WARNING, tuning=run.name)

    def _report(self, assignment: Assignment) -> ReportTuningRequest:
        return ReportTuningRequest(name=assignment.name, attempt=assignment.attempt, tuner=self._process)

    async def _outcome(self, run: TuningRun, assignment: Assignment) -> ReportTuningRequest | None:
        """What there is to report at the end of an attempt; None if that is over for the gateway, too."""
        report = self._report(assignment)
        failure: UniTuneError
        try:
            report.done.CopyFrom(await self._weights(run, assignment))
            return report
        except (Cancelled, CancelledError):
            return None
        except UniTuneError as error:
            failure = error
        except torch.OutOfMemoryError:
            remedy = "lower batch, or choose mode attn_out or lora"
            message = f"the device has too little memory for this tuning; {remedy}"
            failure = ResourceExhausted(message, reason="DEVICE_MEMORY")
        except Exception:
            telemetry.failure(logger, "tuning broke", tuning=run.name)
            failure = Internal("the tuner made a mistake; its log has the details", reason="INTERNAL")
        report.failed.CopyFrom(to_status(failure))
        return report

    async def _weights(self, run: TuningRun, assignment: Assignment) -> tuning_pb2.WeightsRef:
        """Tune, prove, store. Raises the reason if there are no weights; nothing of them is then in the store."""
        store_paths.check_weights(assignment.path, "path")
        config = _config(assignment.config)
        check(self._model, config)
        files = [await self._store.answer(self._read, image) for image in assignment.images]
        image, large = await asyncio.to_thread(_model_images, files, self._model, tuned_stages(self._model, config))
        keep = functools.partial(self._keep, run, assignment.path)
        checkpoints = Checkpoints(
            assignment.key, self._checkpoint_s, keep, await self._store.answer(self._resumed, assignment)
        )
        run.refuse_cancelled()
        kind = config.method, config.mode, config.batch
        stages = TuningStages(self._stage_times, kind, total_updates(config), run.report)
        compute = functools.partial(self._compute, run, assignment, config, image, large, stages, checkpoints)
        work = self._thread.submit(contextvars.copy_context().run, compute)
        packed = await asyncio.wrap_future(work)
        # Asked, since the lease may have been lost while no gateway answered.
        request = self._report(assignment)
        request.alive.SetInParent()
        self._obey(run, await self._gateways.report(request))
        run.refuse_cancelled()
        stages.begin("storing")
        try:
            await asyncio.to_thread(self._put, run, assignment.path, packed.data, packed.manifest)
            stages.end()
            run.refuse_cancelled()
        except Exception as error:
            await asyncio.to_thread(self._delete, run, assignment.path)
            if isinstance(error, Cancelled):
                raise
            telemetry.failure(logger, "weights not stored", tuning=run.name)
            if isinstance(error, UniTuneError):
                raise
            raise store_error(error) from error
        manifest = packed.manifest
        return tuning_pb2.WeightsRef(
            key=manifest.key,
            digest=manifest.digest,
            path=assignment.path,
            size_bytes=manifest.size_bytes,
            base_model=manifest.base_model,
        )

    def _compute(
        self,
        run: TuningRun,
        assignment: Assignment,
        config: TuningConfig,
        image: images.ModelImage,
        large: Mapping[str, images.ModelImage],
        stages: TuningStages,
        checkpoints: Checkpoints,
    ) -> Packed:
        """In the PyTorch thread: tune and prove."""
        try:
            tuned = tune(
                self._model,
                image,
                config,
                large=large,
                on_progress=stages.updated,
                cancelled=lambda: run.is_cancelled,
                checkpoints=checkpoints,
            )
            stages.begin("packing")
            refuse = run.refuse_cancelled
            packed = Packed(
                *pack_tuned(self._model, tuned, config, assignment.key, self._codec, refuse, overwrites=True)
            )
            del tuned
            checkpoints.forget()
            give_back_memory()
            run.refuse_cancelled()
            return packed
        except BaseException:
            stages.close()
            raise

    def _read(self, image: StoredImage) -> bytes:
        """A picture's file. Raises NotFound (IMAGE_NOT_FOUND), DataLoss (IMAGE_CORRUPT)."""
        try:
            data = self._store.get(image.path)
        except FileNotFoundError:
            raise NotFound(
                f"the tuner's store has no image {image.name}; upload it again, and if that changes nothing, the "
                "operator has to give gateway and tuner the same UNITUNE_STORE",
                reason="IMAGE_NOT_FOUND",
                metadata={"name": image.name},
            ) from None
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise DataLoss(
                f"the stored image {image.name} is damaged; upload it again",
                reason="IMAGE_CORRUPT",
                metadata={"name": image.name},
            )
        return data

    def _resumed(self, assignment: Assignment) -> list[SavedStage]:
        """The stages of the checkpoint to go on from; none if there is none, or if it cannot be used."""
        given = assignment.checkpoint
        if not given.path:
            return []
        try:
            data = self._store.get(given.path)
            if hashlib.sha256(data).hexdigest() != given.sha256:
                raise ValueError("it is damaged")
            stages = read(data, assignment.key)
        except (FileNotFoundError, ValueError) as error:
            problem = "checkpoint not used"
            telemetry.event(logger, problem, level=logging.WARNING, tuning=assignment.name, detail=str(error))
            return []
        telemetry.event(logger, "tuning resumed", tuning=assignment.name, attempt=assignment.attempt)
        return stages

    def _keep(self, run: TuningRun, path: str, update: int, data: bytes) -> None:
        """In the PyTorch thread: write a checkpoint, which is then reported. Raises as the store does."""
        made = MadeCheckpoint(store_paths.checkpoint_path(path, update), hashlib.sha256(data).hexdigest(), update)
        self._store.put(made.path, data)
        run.checkpoints.append(made)
        run.wake()

    def _put(self, run: TuningRun, path: str, data: bytes, manifest: Manifest) -> None:
        """Write the weights, with retries for a while: they took minutes, and a full disk may get space."""
        gives_up_at, pause_s = time.monotonic() + STORE_WAIT_S, STORE_RETRY_S
        while True:
            try:
                self._store.put_weights(path, data, manifest)
                return
            except (ResourceExhausted, Unavailable):
                if run.is_cancelled or time.monotonic() > gives_up_at:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, STORE_LONGEST_RETRY_S)

    def _discard(self, run: TuningRun, path: str) -> None:
        """Delete all of an attempt: the gateway has done so, but something may have been written since."""
        try:
            self._store.discard(path)
        except Exception:  # the store is down; what is left goes when nobody owns it for long
            telemetry.failure(logger, "attempt not deleted", tuning=run.name)

    def _delete_object(self, run: TuningRun, path: str) -> None:
        try:
            self._store.delete(path)
        except Exception:  # the store is down; the gateway deletes it when it records the tuning's end
            telemetry.failure(logger, "checkpoint not deleted", tuning=run.name)

    def _delete(self, run: TuningRun, path: str) -> None:
        try:
            self._store.delete_weights(path)
        except Exception:  # the store is down; the gateway deletes the rest when it records the tuning's end
            telemetry.failure(logger, "weights not deleted", tuning=run.name)


def _will_pass(report: ReportTuningRequest) -> bool:
    """Whether a failure is none of the tuning's: the gateway then gives it back."""
    error = from_status(report.failed)
    return isinstance(error, Unavailable) or error.retry_after_s is not None


def _progress(progress: UpdateProgress) -> TuningProgress:
    told = {name: value for name, value in vars(progress).items() if name in TuningProgress.DESCRIPTOR.fields_by_name}
    return TuningProgress(**told | {"stage": f"STAGE_{progress.stage.upper()}"})


def _model_images(
    files: Sequence[bytes], model: BaseModel, stages: Sequence[SuperResolutionSpec]
) -> tuple[images.ModelImage, dict[str, images.ModelImage]]:
    """All pictures at the first one's working size; also that one at the size of each super-resolution stage that is to
    be tuned.

    Raises InvalidField for a picture that lacks the detail of super-resolution.
    """
    first, *others = files
    picture = images.decode(first)
    size = size_of(picture)
    into = working_size(size, model.image_side, model.size_step)
    place, large = fit(size, into), {}
    for stage in stages:
        place_in_large = place.scaled(large_size(model.spec.super_resolution, stage.name, into))
        if not images.is_as_large(size[1], size[0], (place_in_large.height, place_in_large.width)):
            remedy = images.too_small((place_in_large.height, place_in_large.width), stage.name)
            raise InvalidField("image", f"{size[1]}x{size[0]} pixels", remedy)
        large[stage.name] = place_in_large.to_model(picture)
    further = (images.decode(data) for data in others)
    return np.concatenate([place.to_model(picture), *(fit(size_of(one), into).to_model(one) for one in further)]), large


def _warm_start_defaults(model: BaseModel) -> tuning_pb2.TuningConfig | None:
    """Those of UniTune from the base model's warm start, if it has one."""
    if model.warm_start is None:
        return None
    return put_words(_defaults(model.preset, TUNING_METHODS[0]), model.warm_start.settings.defaults())


def _defaults(preset: Preset, method: str) -> tuning_pb2.TuningConfig:
    """The defaults of a method: all fields except a caller's own words."""
    own = preset.method_preset(method)
    known = {name: own for name in read_by(TUNING, method) if hasattr(own, name)}
    if method == NULL_TEXT:  # settings that it shares with edits have the defaults of those edits
        edits = preset.method_preset(PROMPT_TO_PROMPT)
        known |= {name: edits for name in BOUND_TO_NULL_TEXT if hasattr(edits, name)}
    own_words = {name: getattr(source, name) for name, source in known.items()}
    return put_words(tuning_pb2.TuningConfig(), {"method": method, **own_words})


def _give_back() -> None:
    """What an attempt has left: an error keeps the frames that it came through, and these the tuning's tensors."""
    gc.collect()
    give_back_memory()


def _config(config: tuning_pb2.TuningConfig) -> TuningConfig:
    check_fields(config, "config.", only=["method", "mode"])
    asked = Flat(config)
    fields = read_by(TUNING, asked.method)
    for name in fields:
        if TUNING[name].descriptor.has_presence and not asked.has(name) and name not in UNSET_IS_FALSE:
            raise InvalidField(f"config.{name}", "unset", "it must be set")
    return TuningConfig(**{name: getattr(asked, name) for name in fields})
