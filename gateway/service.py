"""The public services: one method for each call of the contract."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from gateway import validation
from gateway.admission import Admission, tenant_of
from gateway.compare import Comparisons
from gateway.config import GatewayConfig
from gateway.edit import Edits
from gateway.edit_results import EditResults
from gateway.gauges import Gauges
from gateway.images import Images, check_announced, receive
from gateway.names import parse
from gateway.open_calls import OpenCalls
from gateway.principal import current
from gateway.relay import Relay
from gateway.retention import Retention
from gateway.samplers import Samplers
from gateway.signed_uploads import SignedUploads
from gateway.tuners import Tuners
from gateway.tunings import Tunings
from gateway.uploads import Uploads
from unitune import __version__, deadlines
from unitune.errors import NotFound, UniTuneError
from unitune.v1 import (
    edit_pb2,
    edit_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    scope_pb2,
    server_pb2,
    server_pb2_grpc,
    tuner_pb2,
    tuning_pb2,
    tuning_pb2_grpc,
)


class TuningService(tuning_pb2_grpc.TuningServiceServicer):
    """Tunings, as `tuning.proto` promises them."""

    def __init__(
        self, tunings: Tunings, results: EditResults, calls: OpenCalls, admission: Admission, heartbeat_s: float
    ) -> None:
        self._tunings = tunings
        self._results = results
        self._calls = calls
        self._admission = admission
        self._heartbeat_s = heartbeat_s
        self._watches: set[Relay[tuning_pb2.TuningEvent]] = set()
        self._end_reason: UniTuneError | None = None

    async def CreateTuning(self, request: tuning_pb2.CreateTuningRequest, context: Any) -> tuning_pb2.Tuning:
        self._admission.request(tenant_of(request))
        return await self._tunings.create(request)

    async def GetTuning(self, request: tuning_pb2.GetTuningRequest, context: Any) -> tuning_pb2.Tuning:
        self._admission.request(tenant_of(request))
        return await self._tunings.get(request.name)

    async def ListTunings(self, request: tuning_pb2.ListTuningsRequest, context: Any) -> tuning_pb2.ListTuningsResponse:
        self._admission.request(tenant_of(request))
        return await self._tunings.page(request)

    async def WatchTuning(
        self, request: tuning_pb2.WatchTuningRequest, context: Any
    ) -> AsyncGenerator[tuning_pb2.TuningEvent, None]:
        self._admission.request(tenant_of(request))
        if self._end_reason is not None:
            raise self._end_reason
        with self._calls.count(context):
            watch = Relay(
                self._tunings.watch(request.name, request.after_sequence),
                silence_s=self._heartbeat_s,
                heartbeat=_heartbeat,
                size_of=tuning_pb2.TuningEvent.ByteSize,
            )
            self._watches.add(watch)
            try:
                async with aclosing(watch.events()) as events:
                    async for event in events:
                        yield event
            finally:
                self._watches.discard(watch)

    async def CancelTuning(self, request: tuning_pb2.CancelTuningRequest, context: Any) -> tuning_pb2.Tuning:
        self._admission.request(tenant_of(request))
        return await self._tunings.cancel(request.name)

    async def UpdateTuning(self, request: tuning_pb2.UpdateTuningRequest, context: Any) -> tuning_pb2.Tuning:
        self._admission.request(tenant_of(request))
        return await self._tunings.update(request.tuning)

    async def DeleteTuning(self, request: tuning_pb2.DeleteTuningRequest, context: Any) -> Empty:
        self._admission.request(tenant_of(request))
        try:
            await self._tunings.delete(request.name, self._results.forget)
        except NotFound:
            if not request.allow_missing:
                raise
        return Empty()

    def end_watches(self, reason: UniTuneError) -> None:
        """End every watch, now or later, so that its client resumes it elsewhere. A tuning may outlast any drain."""
        self._end_reason = reason
        for watch in self._watches:
            watch.stop(reason)


class ImageService(image_pb2_grpc.ImageServiceServicer):
    """Uploads, as `image.proto` promises them."""

    def __init__(
        self,
        images: Images,
        uploads: Uploads,
        signed: SignedUploads,
        retention: Retention,
        calls: OpenCalls,
        admission: Admission,
    ) -> None:
        self._images = images
        self._admission = admission
        self._uploads = uploads
        self._signed = signed
        self._retention = retention
        self._calls = calls

    async def UploadImage(
        self, request_iterator: AsyncIterator[image_pb2.UploadImageRequest], context: Any
    ) -> image_pb2.Image:
        with self._calls.count(context):
            async with self._uploads.admit(current().tenant) as upload:

                def admit(tenant: str) -> None:
                    self._admission.request(tenant)
                    upload.count_for(tenant)

                tenant, header = await receive(request_iterator, upload, admit)
                if not header.upload:
                    return await self._images.keep(tenant, upload.take_bytes())
                async with self._signed.claimed(header.upload, upload) as sha256:
                    check_announced(header, upload.size_bytes, sha256)
                    return await self._images.keep(tenant, upload.take_bytes())

    async def CreateUpload(self, request: image_pb2.CreateUploadRequest, context: Any) -> image_pb2.Upload:
        self._admission.request(tenant_of(request))
        return await self._signed.create(request)

    async def GetImage(self, request: image_pb2.GetImageRequest, context: Any) -> image_pb2.Image:
        self._admission.request(tenant_of(request))
        return await self._images.find(parse(request.name, "images"))

    async def ListImages(self, request: image_pb2.ListImagesRequest, context: Any) -> image_pb2.ListImagesResponse:
        self._admission.request(tenant_of(request))
        return await self._images.page(request)

    async def DeleteImage(self, request: image_pb2.DeleteImageRequest, context: Any) -> Empty:
        self._admission.request(tenant_of(request))
        await self._retention.delete_image(request.name, allow_missing=request.allow_missing)
        return Empty()


class EditService(edit_pb2_grpc.EditServiceServicer):
    """Edits, as `edit.proto` promises them."""

    def __init__(
        self, edits: Edits, comparisons: Comparisons, results: EditResults, calls: OpenCalls, admission: Admission
    ) -> None:
        self._edits = edits
        self._admission = admission
        self._comparisons = comparisons
        self._results = results
        self._calls = calls

    async def Edit(self, request: edit_pb2.EditRequest, context: Any) -> AsyncGenerator[edit_pb2.EditEvent, None]:
        with self._calls.count(context), self._admission.edit(tenant_of(request), request.ByteSize()):
            async with aclosing(self._edits.edit(request, context.time_remaining())) as events:
                async for event in events:
                    yield event

    async def Compare(
        self, request: edit_pb2.CompareRequest, context: Any
    ) -> AsyncGenerator[edit_pb2.CompareEvent, None]:
        with self._calls.count(context), self._admission.edit(tenant_of(request), request.ByteSize()):
            async with aclosing(self._comparisons.compare(request, context.time_remaining())) as events:
                async for event in events:
                    yield event

    async def GetEdit(self, request: edit_pb2.GetEditRequest, context: Any) -> None:
        self._admission.request(tenant_of(request))
        async with self._results.reading(request.name, urls=request.image_urls) as edit:
            try:
                await deadlines.write(context, edit.SerializeToString())
            except deadlines.ReaderTooSlow as error:
                self._results.not_taken(request.name, error.writing)
                raise

    async def CancelEdit(self, request: edit_pb2.CancelEditRequest, context: Any) -> edit_pb2.Edit:
        self._admission.request(tenant_of(request))
        return await self._results.cancel_anywhere(request.name)


class ServerService(server_pb2_grpc.ServerServiceServicer):
    """Describes this server, from the last answers of tuner and sampler."""

    def __init__(
        self, samplers: Samplers, tuners: Tuners, gauges: Gauges, config: GatewayConfig, *, is_read_only: bool
    ) -> None:
        self._is_read_only = is_read_only
        self._samplers = samplers
        self._tuners = tuners
        self._gauges = gauges
        self._limits = validation.limits(config)

    async def GetServerInfo(self, request: server_pb2.GetServerInfoRequest, context: Any) -> server_pb2.ServerInfo:
        tuner, sampler = self._tuners.known, self._samplers.known
        is_admin = scope_pb2.SCOPE_ADMIN in current().scopes
        known = sampler or tuner
        return server_pb2.ServerInfo(
            version=__version__,
            base_model=known.base_model if known else None,
            **(_tuning_defaults(tuner) if tuner else {}),
            sampling_defaults=sampler.sampling_defaults if sampler else None,
            limits=self._limits,
            queue=self._gauges.queue,
            is_read_only=self._is_read_only,
            upstreams=[self._tuners.described(), *self._samplers.described(with_addresses=is_admin)],
            methods=edit_pb2.SamplingConfig.Method.keys()[1:],  # 0 is unset
            schedulers=edit_pb2.SamplingConfig.Scheduler.keys()[1:],
            method_sampling_defaults=sampler.method_defaults if sampler else (),
        )


def _tuning_defaults(tuner: tuner_pb2.TunerInfo) -> dict[str, Any]:
    """The fields of ServerInfo that say what fills in an unset TuningConfig: from a warm start, if there is one."""
    if not tuner.HasField("warm_start_defaults"):
        return {"tuning_defaults": tuner.tuning_defaults, "method_tuning_defaults": tuner.method_defaults}
    warm = tuner.warm_start_defaults
    by_method = [warm if one.method == warm.method else one for one in tuner.method_defaults]
    return {
        "tuning_defaults": warm,
        "method_tuning_defaults": by_method,
        "defaults_without_warm_start": tuner.tuning_defaults,
    }


def _heartbeat() -> tuning_pb2.TuningEvent:
    event = tuning_pb2.TuningEvent(heartbeat=tuning_pb2.TuningEvent.Heartbeat())
    event.create_time.GetCurrentTime()
    return event
