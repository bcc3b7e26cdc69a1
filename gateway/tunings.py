"""Tunings: found by their key or made, watched, cancelled, changed, expired, deleted."""

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

from gateway import validation
from gateway.evictions import Evictions
from gateway.images import Images
from gateway.names import DEFAULT_TENANT, Name, missing, new_id, parse, parse_parent
from gateway.request_cost import check_tuning_cost
from gateway.samplers import Samplers
from gateway.state import NO_LIMITS, State
from gateway.stored_bytes import StoredBytes
from gateway.tuners import Tuners
from gateway.tuning_records import UNFINISHED, CreateRequest, QueueLimits
from gateway.upstreams import refuse_mismatch
from gateway.weight_files import WeightFiles
from unitune import telemetry, tracing, weights
from unitune.base_model import SUPER_RESOLUTION_STAGES
from unitune.choices import TUNING_METHODS
from unitune.errors import STORE_DOWN, Aborted, InvalidArgument, InvalidField, NotFound, Unavailable, UniTuneError
from unitune.options import Flat, check_base_model, to_words
from unitune.picture_file import PictureInfo
from unitune.system_errors import RETRY_DOWN_S
from unitune.v1.image_pb2 import Image
from unitune.v1.tuner_pb2 import TunerInfo
from unitune.v1.tuning_pb2 import (
    CreateTuningRequest,
    ListTuningsRequest,
    ListTuningsResponse,
    Tuning,
    TuningConfig,
    TuningEvent,
)

logger = logging.getLogger(__name__)

MAX_SEQUENCE = (1 << 63) - 1  # the largest number of SQLite


class Tunings:
    """The tunings of all tenants."""

    def __init__(
        self,
        state: State,
        images: Images,
        files: WeightFiles,
        samplers: Samplers,
        tuners: Tuners,
        evictions: Evictions,
        *,
        storage: StoredBytes,
        limits: QueueLimits = NO_LIMITS,
        most_pixels: int = 0,
        position_s: float,
    ) -> None:
        """`most_pixels` that one tuning may ask for (`gateway.request_cost`); 0 means any number. `position_s` are the
        seconds between two looks for the place in the queue of a tuning that is watched.
        """
        self._state = state
        self._images = images
        self._files = files
        self._samplers = samplers
        self._tuners = tuners
        self._evictions = evictions
        self._position_s = position_s
        self._storage = storage
        self._limits = limits
        self._most_pixels = most_pixels

    async def create(self, request: CreateTuningRequest) -> Tuning:
        """The tuning that the request asks for, new or found. Raises as CreateTuning does."""
        validation.check_tuning_config(request.config, "config")
        validation.check_labels(request.labels, "labels")
        image = parse(request.image, "images", "image")
        further = [parse(name, "images", f"images[{index}]") for index, name in enumerate(request.images)]
        validation.check_number_of_images(1 + len(further), Flat(request.config).method or TUNING_METHODS[0])
        tenant = parse_parent(request.parent) or image.tenant
        caller = None
        if request.request_id and not request.validate_only:
            validation.check_request_id(request.request_id)
            caller = CreateRequest(request.request_id, _body(request, tenant))
            earlier = await self._state.recall(tenant, caller)
            if earlier is not None:
                return earlier
        config = await self.settled(request.config, "config")
        warnings = await self._unread(config)
        return await self.find_or_make(
            tenant,
            image,
            config,
            further,
            labels=request.labels,
            caller=caller,
            warnings=warnings,
            validate_only=request.validate_only,
        )

    async def settled(self, config: TuningConfig, field: str) -> TuningConfig:
        """A checked config with every default filled in. `field` is its place in the request.

        Raises InvalidField for a field that its method needs and that is unset, and for words that are no tokens of the
        base model; InvalidArgument (COST_LIMIT); Unavailable (BACKEND_DOWN).
        """
        info = await self._tuner_info()
        method = Flat(config).method or TUNING_METHODS[0]
        defaults = validation.tuning_defaults_of(config, info, field)
        filled = validation.fill_tuning_config(config, defaults)
        check_base_model(filled, info.base_model, f"{field}.")
        validation.check_complete(filled, field)
        check_tuning_cost(filled, info.base_model, self._most_pixels, field)
        if method == "textual_inversion":  # the one whose words must be tokens
            try:
                await self._samplers.check_tuning(filled)
            except InvalidArgument as error:
                name = (error.field or "config").removeprefix("config.")
                raise error.moved(f"{field}.{name}") from None
        return filled

    async def _unread(self, config: TuningConfig) -> list[str]:
        """Warnings of the parts of a settled config's texts that are not read. Raises InvalidField for a text of which
        nothing is read.

        Without a sampler there are none, and the tuner checks the texts before it begins.
        """
        if Flat(config).method == "textual_inversion":  # `settled` has asked already
            return []
        try:
            return await self._samplers.check_tuning(config)
        except Unavailable:
            return []

    async def find_or_make(
        self,
        tenant: str,
        image: Name,
        config: TuningConfig,
        further: Sequence[Name] = (),
        *,
        labels: Mapping[str, str] | None = None,
        caller: CreateRequest | None = None,
        needs_tuner: bool = False,
        warnings: Sequence[str] = (),
        validate_only: bool = False,
    ) -> Tuning:
        """The live tuning of an image, a settled config and further images, or a new one.

        With `validate_only` a new one is not made, and has no name. With `needs_tuner` one that still has to run is
        refused while no tuner answers. Raises NotFound (IMAGE_NOT_FOUND), FailedPrecondition (BASE_MODEL_MISMATCH),
        Unavailable (BACKEND_DOWN), and for a new one ResourceExhausted (TENANT_TUNING_LIMIT, TENANT_STORAGE_LIMIT,
        QUEUE_FULL).
        """
        # Another tenant's name looks like one that does not exist.
        image, *further = (name._replace(tenant=tenant) for name in (image, *further))
        pictures = [await self._images.find(name) for name in (image, *further)]
        if further:
            validation.check_size_of_images(sum(picture.size_bytes for picture in pictures))
        tuning = await self._planned(tenant, image, pictures[0], config, further)
        tuning.labels.update(labels or {})
        tuning.warnings.extend(warnings)
        if needs_tuner:
            await self._needs_tuner(tenant, tuning)
        if validate_only:
            tuning.name = ""
            return await self._state.live(tenant, tuning.key) or tuning
        async with self._images.holding(image, *further):
            for name in (image, *further):
                await self._images.find(name)  # it may have been deleted meanwhile
            limits = self._limits._replace(refusal=await self._storage.refusal(tenant))
            made = await self._state.create(tuning, caller, limits, tracing.here())
        if made.state == Tuning.STATE_READY and _is_past(made) and not self._state.is_read_only:
            raise Unavailable(
                "the tuning of this picture has expired, and its weights could not be discarded yet: try again",
                reason=STORE_DOWN,
                retry_after_s=RETRY_DOWN_S,
            )
        return made

    async def found_or_planned(
        self, tenant: str, image: Name, picture: Image | PictureInfo, config: TuningConfig
    ) -> Tuning:
        """The live tuning that `find_or_make` would find, or the one that it would make. Nothing is made.

        The image need not be stored. Raises as `find_or_make` with `needs_tuner` does.
        """
        tuning = await self._planned(tenant, image, picture, config)
        return await self._needs_tuner(tenant, tuning) or tuning

    async def _tuner_info(self) -> TunerInfo:
        """What the tuner says that runs new tunings. Raises Unavailable (BACKEND_DOWN) while that is not known."""
        sampler = self._samplers.known
        return await self._tuners.info(sampler.base_model.digest if sampler is not None else "")

    async def _planned(
        self, tenant: str, image: Name, picture: Image | PictureInfo, config: TuningConfig, further: Sequence[Name] = ()
    ) -> Tuning:
        """A new tuning that is not stored yet. Raises as `find_or_make` does."""
        info = await self._tuner_info()
        for stage in SUPER_RESOLUTION_STAGES:
            if getattr(config, f"{stage}_updates") > 0:
                validation.check_size_for_super_resolution(picture, info.base_model, stage)
        if self._samplers.known is not None:
            refuse_mismatch(info.base_model.digest, self._samplers.known.base_model.digest)
        tuning = Tuning(
            name=str(Name(tenant, "tunings", new_id("t"))),
            image=str(image),
            base_model=info.base_model.digest,
            config=config,
            state=Tuning.STATE_QUEUED,
            images=[str(name) for name in further],
        )
        further_ids = [name.id for name in further]
        size = validation.working_size_of(picture, info.base_model)
        tuning.key = tuning_key(image.id, tuning.base_model, tuning.config, further_ids, size)
        # The sweep may not have come to it yet. Others are not this caller's to wait for.
        if (found := await self._state.live(tenant, tuning.key)) is not None:
            await self._expire(found)
        tuning.create_time.GetCurrentTime()
        return tuning

    async def _needs_tuner(self, tenant: str, planned: Tuning) -> Tuning | None:
        """The live tuning of the same key, if there is one. Raises Unavailable (BACKEND_DOWN) if one would have to run
        and no tuner answers.
        """
        found = await self._state.live(tenant, planned.key)
        if found is None or found.state == Tuning.STATE_QUEUED:
            await self._tuners.wait_for_one()
        return found

    async def get(self, name: str) -> Tuning:
        """A tuning as it is now. Raises NotFound (TUNING_NOT_FOUND)."""
        parse(name, "tunings")
        return _required(await self._state.get(name), name)

    async def is_gone(self, name: str) -> bool:
        """Whether a tuning was deleted; False while the state cannot say."""
        try:
            return await self._state.get(name) is None
        except UniTuneError:
            return False

    async def with_weights(self, name: str) -> Tuning:
        """A tuning whose weights may be used. Raises NotFound (TUNING_NOT_FOUND, TUNING_EXPIRED)."""
        tuning = await self.get(name)
        if tuning.state != Tuning.STATE_READY:
            raise expired(name)
        return tuning

    async def page(self, request: ListTuningsRequest) -> ListTuningsResponse:
        """One page of a tenant's tunings. Raises InvalidField."""
        tenant = parse_parent(request.parent) or DEFAULT_TENANT
        size = validation.check_page_size(request.page_size)
        validation.check_state(request.state)
        after = _read_token(request.page_token, tenant, request.state) if request.page_token else 0
        page = await self._state.page(tenant, request.state, after, size)
        token = _page_token(tenant, request.state, page.after) if page.after else ""
        return ListTuningsResponse(tunings=page.tunings, next_page_token=token)

    async def watch(self, name: str, after: int) -> AsyncGenerator[TuningEvent, None]:
        """The events above `after`, as they come, up to the one that ends the tuning; and while it is QUEUED its place
        whenever that has changed, in an event without a number.

        Raises NotFound (TUNING_NOT_FOUND), or InvalidField for an `after` that no event has had yet.
        """
        parse(name, "tunings")
        kept = await self._state.read(name, min(after, MAX_SEQUENCE))
        _required(kept and kept.tuning, name)
        if kept is not None and after > kept.last:
            raise InvalidField("after_sequence", after, f"the last event so far is {kept.last}")
        told: int | None = None  # the place in the queue that the reader knows
        while kept is not None:
            ended = kept.tuning.state not in UNFINISHED
            events = kept.events
            if kept.gap:
                # The last event of a tuning that ended says how it ended. The snapshot replaces all events before it.
                events = kept.events[-1:] if ended else []
                snapshot = TuningEvent(sequence=kept.last - len(events), snapshot=kept.tuning)
                snapshot.create_time.GetCurrentTime()
                events = [snapshot, *events]
            for event in events:
                told = event.queued.position if event.HasField("queued") else told
                yield event
            if ended:
                return
            after = kept.last
            is_queued = kept.tuning.state == Tuning.STATE_QUEUED
            if is_queued and told != kept.tuning.queue_position:
                told = kept.tuning.queue_position
                yield _place(told)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._position_s if is_queued else None):
                    await self._state.wait(name, after)
            kept = await self._state.read(name, after)
        gone = TuningEvent(sequence=after + 1, cancelled=Tuning(name=name, state=Tuning.STATE_CANCELLED))
        gone.create_time.GetCurrentTime()
        yield gone

    async def cancel(self, name: str) -> Tuning:
        """Stop a tuning, unless it has ended; the tuning afterwards. Raises NotFound (TUNING_NOT_FOUND).

        Its tuner, if it has one, is told by the answer to its report, and deletes what it has written meanwhile.
        """
        parse(name, "tunings")
        tuning = _required(await self._state.change(name, _cancel, lambda now: TuningEvent(cancelled=now)), name)
        if tuning.state == Tuning.STATE_CANCELLED:
            await self._files.discard(name)
        return tuning

    async def update(self, wanted: Tuning) -> Tuning:
        """Replace labels and expire_time. Raises NotFound (TUNING_NOT_FOUND), Aborted (ETAG_MISMATCH), InvalidField."""
        parse(wanted.name, "tunings", "tuning.name")
        validation.check_labels(wanted.labels, "tuning.labels")
        if wanted.HasField("expire_time"):
            validation.check_future("tuning.expire_time", wanted.expire_time, "DeleteTuning discards now")

        def mutate(tuning: Tuning) -> None:
            if wanted.etag and wanted.etag != tuning.etag:
                remedy = "the tuning has changed since: read it again"
                raise Aborted.field_error("tuning.etag", wanted.etag, remedy, reason="ETAG_MISMATCH")
            tuning.ClearField("labels")
            tuning.labels.update(wanted.labels)
            tuning.ClearField("expire_time")
            if wanted.HasField("expire_time"):
                tuning.expire_time.CopyFrom(wanted.expire_time)

        return _required(await self._state.change(wanted.name, mutate), wanted.name)

    async def delete(self, name: str, discard_results: Callable[[str], Awaitable[None]]) -> None:
        """Cancel a tuning, discard its weights, delete its images unless other tunings use them, and forget it.
        `discard_results` deletes the results of its edits.

        Raises NotFound (TUNING_NOT_FOUND). If the store fails half-way, the tuning can be deleted again: its row goes
        last.
        """
        parse(name, "tunings")
        cancelled = await self._state.change_to_delete(name, _cancel, lambda now: TuningEvent(cancelled=now))
        tuning = _required(cancelled, name)
        digest = tuning.weights.digest
        if digest:
            await self._evictions.note(digest)
        await self._state.change_to_delete(name, _lose_weights)
        try:
            await self._files.discard(name)
            await discard_results(name)
            images = [parse(image, "images") for image in (tuning.image, *tuning.images)]
            async with self._images.holding(*images):  # of two tunings that go at once the second finds itself alone
                for image in images:
                    if not await self._state.uses_image(str(image), but=name):
                        await self._images.discard(image)
                await self._state.remove(name)
        finally:
            self._evictions.start()
        if digest:
            await self._evictions.start_and_wait(digest)
        telemetry.event(logger, "tuning deleted", tuning=name)

    async def expire(self) -> None:
        """Discard the weights of every tuning whose expire_time has come."""
        for name in await self._state.expired(time.time()):
            tuning = await self._state.get(name)
            if tuning is not None:
                await self._expire(tuning)

    async def _expire(self, tuning: Tuning) -> None:
        """Discard the weights of a tuning if its expire_time has come, unless another call was faster."""
        if tuning.state != Tuning.STATE_READY or not _is_past(tuning) or self._state.is_read_only:
            return
        await self._evictions.note(tuning.weights.digest)
        try:
            await self._files.discard(tuning.name)  # first: if the store fails, the next sweep finds the tuning again
        except Exception:  # other tunings, and callers who make a new one, must not wait for it
            telemetry.failure(logger, "weights not discarded", tuning=tuning.name)
            return
        await self._state.change_to_delete(tuning.name, _lose_weights)
        self._evictions.start()  # without waiting for the sampler
        telemetry.event(logger, "tuning expired", tuning=tuning.name)

    async def sweep(self, every_s: float) -> None:
        """Expire tunings, and forget events of those that ended long ago, at intervals."""
        while True:
            try:
                await self.expire()
                await self._state.trim_events()
            except Exception:  # such as a store that does not answer; the next round tries again
                telemetry.failure(logger, "sweep failed")
            await asyncio.sleep(every_s)


def tuning_key(
    image_sha256: str,
    base_model: str,
    config: TuningConfig,
    further: Sequence[str] = (),
    working_size: tuple[int, int] | None = None,
) -> str:
    """The digest of all that determines the weights: pictures, base model, every setting, the file's schema, and the
    working size (height, width) unless it is the base model's own."""
    always = ("method", "mode", "updates", "batch", "learning_rate", "rare_tokens", "seed")
    inputs = {"image": image_sha256, "base_model": base_model, "schema": weights.SCHEMA}
    inputs |= {name: getattr(Flat(config), name) for name in always} | to_words(config)
    if not config.warm_start:  # as before there was one
        inputs.pop("warm_start", None)
    if further:
        inputs["images"] = list(further)
    if working_size is not None:
        inputs["working_size"] = list(working_size)
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def not_found(name: str) -> NotFound:
    """The error for a tuning that does not exist or belongs to another tenant."""
    return missing(parse(name, "tunings"))


def expired(name: str) -> NotFound:
    """The error for a tuning whose weights are discarded."""
    return NotFound(
        f"the weights of {name} are discarded; make a new tuning", reason="TUNING_EXPIRED", metadata={"name": name}
    )


def _is_past(tuning: Tuning) -> bool:
    """Whether a tuning's expire_time has come."""
    return tuning.HasField("expire_time") and tuning.expire_time.ToMicroseconds() <= time.time() * 1e6


def _required(tuning: Tuning | None, name: str) -> Tuning:
    if tuning is None:
        raise not_found(name)
    return tuning


def _cancel(tuning: Tuning) -> None:
    if tuning.state in UNFINISHED:
        tuning.state = Tuning.STATE_CANCELLED
        tuning.end_time.GetCurrentTime()


def _lose_weights(tuning: Tuning) -> None:
    if tuning.state == Tuning.STATE_READY:
        tuning.state = Tuning.STATE_EXPIRED
        tuning.ClearField("weights")


def _place(position: int) -> TuningEvent:
    """The event that tells a place in the queue and is not kept."""
    event = TuningEvent(queued=TuningEvent.Queued(position=position))
    event.create_time.GetCurrentTime()
    return event


def _body(request: CreateTuningRequest, tenant: str) -> str:
    """A digest of a request without its id."""
    body = CreateTuningRequest()
    body.CopyFrom(request)
    body.parent = f"tenants/{tenant}"
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()


def _page_token(tenant: str, state: int, after: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([tenant, state, after]).encode()).decode()


def _read_token(token: str, tenant: str, state: int) -> int:
    try:
        of_tenant, of_state, after = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError, RecursionError):  # RecursionError: brackets within brackets
        of_tenant, of_state, after = None, None, None
    is_row = type(after) is int and 0 < after <= MAX_SEQUENCE
    if (of_tenant, of_state) != (tenant, state) or not is_row:
        raise InvalidField("page_token", token, "use next_page_token of an answer to the same parent and state")
    return after
