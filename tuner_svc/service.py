"""TunerService: reads a request, tunes, sends events. One tuning runs at a time, in the PyTorch thread, in order."""

import asyncio
import contextvars
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import grpc
import numpy as np
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.config import DEFAULT_CODEC
from tuner_svc.probe import pack_tuned
from tuner_svc.progress_tracker import UpdateProgress
from tuner_svc.torch_thread import TorchThread
from tuner_svc.tune import check, total_updates, tune
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.tuning_run import TuningRun
from tuner_svc.tuning_stages import StageTimes, TuningStages
from unitune import __version__, images, store_paths, telemetry
from unitune.base_model import Preset, SuperResolutionSpec
from unitune.choices import (
    BOUND_TO_NULL_TEXT,
    NULL_TEXT,
    PROMPT_TO_PROMPT,
    TUNING_METHODS,
)
from unitune.errors import Cancelled, Internal, InvalidField, ResourceExhausted, Unavailable, UniTuneError, to_status
from unitune.free_memory import give_back_memory
from unitune.object_store import ObjectStore
from unitune.options import TUNING, Flat, put_words, read_by
from unitune.options import check as check_fields
from unitune.server_info import base_model_info
from unitune.serving import HEARTBEAT_S
from unitune.system_errors import store_error
from unitune.v1 import tuner_pb2, tuner_pb2_grpc, tuning_pb2
from unitune.v1.tuner_pb2 import RunTuningEvent
from unitune.v1.tuning_pb2 import TuningProgress
from unitune.weights import Manifest
from unitune.working_size import fit, size_of, working_size

logger = logging.getLogger(__name__)

STORE_WAIT_S = 20.0  # for a store that is full or does not answer
STORE_RETRY_S = 0.5
INSTANCE_BYTES = 16  # random bytes, different in every process


class TunerService(tuner_pb2_grpc.TunerServiceServicer):
    """The servicer. It is used from one event loop."""

    def __init__(
        self, model: BaseModel, store: ObjectStore, codec: str = DEFAULT_CODEC, thread: TorchThread | None = None
    ) -> None:
        """`thread` is the one that loaded the model; without it there is a new one."""
        self._model, self._store, self._codec = model, store, codec
        self._thread = thread or TorchThread()
        self._stage_times = StageTimes()
        self._runs: set[TuningRun] = set()
        self._is_draining = False
        self._instance = secrets.token_hex(INSTANCE_BYTES)

    def register(self, server: grpc.aio.Server) -> list[str]:
        """Add the servicer to a server; its full service names."""
        tuner_pb2_grpc.add_TunerServiceServicer_to_server(self, server)
        return [tuner_pb2.DESCRIPTOR.services_by_name["TunerService"].full_name]

    async def drain(self) -> None:
        """Accept no more runs, and cancel the current ones: starting again elsewhere is faster than waiting."""
        self._is_draining = True
        for run in self._runs:
            run.cancel()

    async def GetTunerInfo(self, request: tuner_pb2.GetTunerInfoRequest, context: Any) -> tuner_pb2.TunerInfo:
        """Base model and preset, and which process this is."""
        model = self._model
        return tuner_pb2.TunerInfo(
            base_model=base_model_info(model.spec),
            tuning_defaults=_defaults(model.preset, TUNING_METHODS[0]),
            method_defaults=[_defaults(model.preset, method) for method in TUNING_METHODS],
            instance=self._instance,
            version=__version__,
        )

    async def CheckTuning(self, request: tuner_pb2.CheckTuningRequest, context: Any) -> tuner_pb2.CheckTuningResponse:
        """Check what needs the tokenizer and the model."""
        return tuner_pb2.CheckTuningResponse(warnings=check(self._model, _config(request.config)))

    async def RunTuning(self, request: tuner_pb2.RunTuningRequest, context: Any) -> AsyncIterator[RunTuningEvent]:
        """Tune in the PyTorch thread, and stream its events."""
        config = _read(request)
        check(self._model, config)
        stage = self._model.super_resolution if config.super_resolution_updates > 0 else None
        pictures = (request.image, *request.further_images)
        decoding = asyncio.create_task(asyncio.to_thread(_model_images, pictures, self._model, stage))
        try:
            while not (await asyncio.wait({decoding}, timeout=HEARTBEAT_S))[0]:
                yield RunTuningEvent(heartbeat=RunTuningEvent.Heartbeat())
        finally:
            decoding.cancel()  # of no effect once it has ended
        image, large = decoding.result()
        if self._is_draining:
            raise Unavailable("the tuner is about to stop", reason="DRAINING")
        for earlier in self._runs:
            if earlier.name == request.name:  # the caller has lost the earlier stream
                earlier.cancel()
        run = TuningRun(request.name)
        self._runs.add(run)
        work = self._thread.submit(contextvars.copy_context().run, self._tune, run, request, config, image, large)
        work.add_done_callback(lambda _: run.wake())
        is_told = False
        try:
            while not work.done() or run.progress is not None:
                has_changed = await run.changed(HEARTBEAT_S)
                if run.is_cancelled:
                    work.cancel()  # only before it starts; later the loop of updates sees the flag
                if run.progress is not None:
                    progress, run.progress = run.progress, None
                    yield _progress(progress)
                elif not has_changed and not run.is_started:
                    yield RunTuningEvent(waiting=RunTuningEvent.Waiting())
                elif not has_changed:
                    progress_now = run.progress_now()
                    if progress_now is None:
                        yield RunTuningEvent(heartbeat=RunTuningEvent.Heartbeat())
                    else:
                        yield _progress(progress_now)
            is_told = True  # from here on the reader owns the weights, even if it closes the stream at once
            yield _outcome(run, work)
        finally:
            self._runs.discard(run)
            if not is_told:
                run.cancel()
                await self._take_back(run, work, request.path)

    async def CancelTuning(self, request: tuner_pb2.CancelRunRequest, context: Any) -> tuner_pb2.CancelRunResponse:
        """Stop every run of that name."""
        for run in self._runs:
            if run.name == request.name:
                run.cancel()
        return tuner_pb2.CancelRunResponse()

    def _tune(
        self,
        run: TuningRun,
        request: tuner_pb2.RunTuningRequest,
        config: TuningConfig,
        image: images.ModelImage,
        large: images.ModelImage | None,
    ) -> tuning_pb2.WeightsRef:
        """One tuning, in the PyTorch thread: tune, prove, store."""
        run.is_started = True
        kind = config.method, config.mode, config.batch
        stages = TuningStages(self._stage_times, kind, total_updates(config), run.report)
        tuned = tune(
            self._model, image, config, large=large, on_progress=stages.updated, cancelled=lambda: run.is_cancelled
        )
        stages.begin("packing")
        data, manifest = pack_tuned(
            self._model, tuned, config, request.key, self._codec, run.refuse_cancelled, overwrites=True
        )
        del tuned
        give_back_memory()
        run.refuse_cancelled()
        stages.begin("storing")
        try:
            self._put(run, request.path, data, manifest)
            stages.end()
        except Exception as error:
            telemetry.failure(logger, "weights not stored", tuning=run.name)
            self._delete(run, request.path)
            if isinstance(error, UniTuneError):
                raise
            raise store_error(error) from error
        return tuning_pb2.WeightsRef(
            key=manifest.key,
            digest=manifest.digest,
            path=request.path,
            size_bytes=manifest.size_bytes,
            base_model=manifest.base_model,
        )

    def _put(self, run: TuningRun, path: str, data: bytes, manifest: Manifest) -> None:
        """Write the weights, with retries for a while: they took minutes, and a full disk may get space."""
        gives_up_at = time.monotonic() + STORE_WAIT_S
        while True:
            try:
                self._store.put_weights(path, data, manifest)
                return
            except (ResourceExhausted, Unavailable):
                if run.is_cancelled or time.monotonic() > gives_up_at:
                    raise
                time.sleep(STORE_RETRY_S)

    async def _take_back(self, run: TuningRun, work: "Future[tuning_pb2.WeightsRef]", path: str) -> None:
        """Wait for the worker, and delete the weights if it has just made them: nobody else knows of them."""
        if not work.cancel():
            while not work.done():
                await run.changed(HEARTBEAT_S)
            if work.exception() is None:
                await asyncio.to_thread(self._delete, run, path)

    def _delete(self, run: TuningRun, path: str) -> None:
        try:
            self._store.delete_weights(path)
        except Exception:  # the store is down; the gateway deletes the rest when it records the tuning's end
            telemetry.failure(logger, "weights not deleted", tuning=run.name)


def _outcome(run: TuningRun, work: "Future[tuning_pb2.WeightsRef]") -> RunTuningEvent:
    """The last event of a run that has ended."""
    failure: UniTuneError
    try:
        return RunTuningEvent(done=work.result())
    except (Cancelled, CancelledError):
        return RunTuningEvent(cancelled=RunTuningEvent.Cancelled())
    except UniTuneError as error:
        failure = error
    except torch.OutOfMemoryError:
        remedy = "lower batch, or choose mode attn_out or lora"
        message = f"the device has too little memory for this tuning; {remedy}"
        failure = ResourceExhausted(message, reason="DEVICE_MEMORY")
    except Exception:
        telemetry.failure(logger, "tuning broke", tuning=run.name)
        failure = Internal("the tuner made a mistake; its log has the details", reason="INTERNAL")
    return RunTuningEvent(failed=to_status(failure))


def _progress(progress: UpdateProgress) -> RunTuningEvent:
    told = {name: value for name, value in vars(progress).items() if name in TuningProgress.DESCRIPTOR.fields_by_name}
    return RunTuningEvent(progress=TuningProgress(**told | {"stage": f"STAGE_{progress.stage.upper()}"}))


def _model_images(
    files: Sequence[bytes], model: BaseModel, stage: SuperResolutionSpec | None
) -> tuple[images.ModelImage, images.ModelImage | None]:
    """All pictures at the first one's working size; also that one at super-resolution's, if a `stage` is to be tuned.

    Raises InvalidField for a picture that lacks the detail of super-resolution.
    """
    first, *others = files
    picture = images.decode(first)
    size = size_of(picture)
    into = working_size(size, model.image_side, model.size_step)
    place, large = fit(size, into), None
    if stage is not None:
        place_in_large = place.scaled(stage.side_of(into))
        if not images.is_as_large(size[1], size[0], (place_in_large.height, place_in_large.width)):
            remedy = images.too_small((place_in_large.height, place_in_large.width))
            raise InvalidField("image", f"{size[1]}x{size[0]} pixels", remedy)
        large = place_in_large.to_model(picture)
    further = (images.decode(data) for data in others)
    return np.concatenate([place.to_model(picture), *(fit(size_of(one), into).to_model(one) for one in further)]), large


def _defaults(preset: Preset, method: str) -> tuning_pb2.TuningConfig:
    """The defaults of a method: all fields except a caller's own words."""
    own = preset.method_preset(method)
    known = {name: own for name in read_by(TUNING, method) if hasattr(own, name)}
    if method == NULL_TEXT:  # settings that it shares with edits have the defaults of those edits
        edits = preset.method_preset(PROMPT_TO_PROMPT)
        known |= {name: edits for name in BOUND_TO_NULL_TEXT if hasattr(edits, name)}
    own_words = {name: getattr(source, name) for name, source in known.items()}
    return put_words(tuning_pb2.TuningConfig(), {"method": method, **own_words})


def _read(request: tuner_pb2.RunTuningRequest) -> TuningConfig:
    """The request's config. Raises InvalidField; the gateway has filled and checked it, so that is its fault."""
    for field in ("name", "key", "path"):
        if not getattr(request, field):
            raise InvalidField(field, "", "it must be set")
    store_paths.check_weights(request.path, "path")
    return _config(request.config)


def _config(config: tuning_pb2.TuningConfig) -> TuningConfig:
    check_fields(config, "config.", only=["method", "mode"])
    asked = Flat(config)
    fields = read_by(TUNING, asked.method)
    for name in fields:
        if TUNING[name].descriptor.has_presence and not asked.has(name):
            raise InvalidField(f"config.{name}", "unset", "it must be set")
    return TuningConfig(**{name: getattr(asked, name) for name in fields})
