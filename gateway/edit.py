"""One edit: resolve the target, find or make the tuning, stream its events, sample, be done.

accepted -> [tuning ...] -> loading -> step ... -> [warning] -> image ... -> done | failed | cancelled

A request with validate_only: accepted -> done.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, nullcontext

from gateway.edit_plan import EditPlan, Planner, rare_tokens_before
from gateway.edit_results import CancelledByOwner, EditResults, OpenEdit, new_edit
from gateway.fair_queue import FairQueue
from gateway.joined_edits import JoinedEdits, request_of
from gateway.metadata import Metadata
from gateway.relay import Relay
from gateway.samplers import Samplers
from gateway.tuning_records import CreateRequest
from gateway.tunings import Tunings
from gateway.turn_times import TurnTimes
from gateway.upstreams import unanswered
from gateway.usage import UsageCounts
from unitune import metrics, telemetry
from unitune.errors import (
    DEADLINE_UNREACHABLE,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    UniTuneError,
    from_status,
    to_status,
)
from unitune.v1.edit_pb2 import EditEvent, EditRequest, Timings
from unitune.v1.sampler_pb2 import SampleEvent, SampleRequest
from unitune.v1.tuning_pb2 import Tuning, TuningEvent

logger = logging.getLogger(__name__)

STEP_INTERVAL_S = 0.2  # between two step events


class Edits:
    """Runs edits."""

    def __init__(
        self,
        planner: Planner,
        tunings: Tunings,
        samplers: Samplers,
        results: EditResults,
        queue: FairQueue,
        usage: UsageCounts,
        *,
        heartbeat_s: float,
        joined: JoinedEdits,
    ) -> None:
        self._joined = joined
        self._planner = planner
        self._tunings = tunings
        self._samplers = samplers
        self._results = results
        self._queue = queue
        self._usage = usage
        self._heartbeat_s = heartbeat_s
        self._times = TurnTimes()

    async def edit(self, request: EditRequest, timeout_s: float | None) -> AsyncGenerator[EditEvent, None]:
        """The events of one edit. The last one is the only terminal event. Closing the generator stops the edit.

        Raises what the request is refused with, before the first event.
        """
        began = time.monotonic()
        asked = request_of(request)
        plan = await self._planner.plan(request)
        if request.validate_only:
            async for event in _numbered(_validated(plan, time.monotonic() - began)):
                yield event
            return
        self._refuse_unreachable(plan, None if timeout_s is None else began + timeout_s - time.monotonic())
        opened = self._results.begin(new_edit(plan.tenant))
        if asked is not None and (earlier := await self._claimed(plan.tenant, asked, opened)) != opened.edit.name:
            async with aclosing(self._joined.events(earlier, _accepted(plan, earlier))) as events:
                async for event in _numbered(events):
                    yield event
            return
        # Pictures wait in the store, so an edit goes on while its reader does not read: no turn at the sampler waits
        # for a reader, and a slow one costs no memory.
        opened.relay = Relay(
            self._events(plan, opened, began, timeout_s),
            silence_s=self._heartbeat_s,
            heartbeat=_heartbeat,
            size_of=EditEvent.ByteSize,
            lighten=_without_preview,
            stored=opened.pictures.stored,
        )
        try:
            async with aclosing(opened.relay.events()) as events:
                async for event in events:
                    yield opened.numbered(event)
        except CancelledByOwner:
            yield opened.numbered(EditEvent(cancelled=opened.edit))
        except UniTuneError as error:
            if opened.end_s is None:  # otherwise a picture could not be read from the store again for a slow reader
                opened.failed(to_status(error))
            yield opened.numbered(EditEvent(failed=to_status(error)))
        except Exception:
            telemetry.failure(logger, "edit failed", edit=opened.edit.name)
            ours = Internal("the server made a mistake; its log has the details", reason="INTERNAL")
            opened.failed(to_status(ours))
            yield opened.numbered(EditEvent(failed=opened.edit.error))
        finally:
            opened.cancelled()  # unless it ended before its reader went away

    async def _claimed(self, tenant: str, asked: CreateRequest, opened: OpenEdit) -> str:
        """The edit that a request has: an earlier one, or the one that was opened for it."""
        try:
            has = await self._joined.claim(tenant, asked, opened)
        except asyncio.CancelledError:
            opened.cancelled()
            raise
        except BaseException:
            self._results.drop(opened)
            raise
        if has != opened.edit.name:
            self._results.drop(opened)
        return has

    def _refuse_unreachable(self, plan: EditPlan, left_s: float | None) -> None:
        """Raise ResourceExhausted (DEADLINE_UNREACHABLE) for an edit whose turn cannot come and end in time.

        It counts the tenant's own edits before this one, at the speed of the fastest of the last ones. An edit that has
        to wait for its tuning is let in: how long that takes is not known well enough.
        """
        if left_s is None or (plan.tuning is not None and plan.tuning.state != Tuning.STATE_READY):
            return
        before, own = self._queue.work_before(plan.tenant), plan.least_steps
        needed_s = self._times.at_least_s(before + own)
        if needed_s is None or needed_s <= left_s:
            return
        how = "allow more time, or ask for less" if not before else "allow more time, or come when fewer edits wait"
        raise ResourceExhausted.of_quota(
            f"tenants/{plan.tenant}",
            round(max(0.0, left_s), 3),
            f"this edit takes {needed_s:.2g} seconds at least, and its deadline is in {max(0.0, left_s):.2g}: {how}",
            reason=DEADLINE_UNREACHABLE,
            retry_after_s=max(1.0, needed_s - left_s) if before else None,
        )

    async def _events(
        self, plan: EditPlan, opened: OpenEdit, began: float, timeout_s: float | None
    ) -> AsyncGenerator[EditEvent, None]:
        await self._results.enter(opened)
        yield _accepted(plan, opened.edit.name)

        tuning, tune_s = plan.tuning, 0.0
        if tuning is not None and tuning.state != Tuning.STATE_READY:
            with self._results.waiting(opened):
                async with aclosing(self._tunings.watch(tuning.name, 0)) as events:
                    async for event in events:
                        yield EditEvent(tuning=event)
            tuning = _ready(event)
            tune_s = time.monotonic() - began

        pictures = opened.pictures
        metadata = None if plan.omit_metadata else await asyncio.to_thread(Metadata, plan, tuning)
        timings: Timings | None = None
        pace = StepThrottle()
        async with aclosing(self._samples(plan, tuning, opened, began, timeout_s)) as samples:
            async for sample in samples:
                match sample.WhichOneof("event"):
                    case "loading":
                        yield EditEvent(loading=sample.loading)
                    case "step":
                        if pace.admits(sample.step):
                            yield EditEvent(step=sample.step)
                    case "warning":
                        yield EditEvent(warning=sample.warning)
                    case "image":
                        if metadata is not None and not sample.image.blocked:
                            metadata.put_into(sample.image)
                        picture = EditEvent(image=sample.image)
                        await pictures.keep(picture)
                        yield picture
                    case "heartbeat":
                        yield EditEvent(heartbeat=sample.heartbeat)
                    case "image_part":
                        picture = EditEvent(image_part=sample.image_part)
                        await pictures.keep(picture)
                        yield picture
                    case "done":
                        timings = sample.done
                    case "failed":
                        raise from_status(sample.failed)
        if timings is None:
            raise unanswered("sampler")

        timings.tune_s = tune_s
        timings.total_s = time.monotonic() - began
        for stage, seconds in (("tune", tune_s), ("queue", timings.queue_s), ("total", timings.total_s)):
            metrics.EDIT_STAGE_S.labels(stage).observe(seconds)
        opened.edit.tuning = tuning.name if tuning is not None else ""
        await self._results.finish(opened, timings)
        if tuning is not None and await self._tunings.is_gone(tuning.name):  # its deletion could not see these results
            await self._results.discard(opened.edit.name)
        opened.done(timings)
        yield EditEvent(done=EditEvent.Done(timings=timings, tuning=opened.edit.tuning))

    async def _samples(
        self, plan: EditPlan, tuning: Tuning | None, opened: OpenEdit, began: float, timeout_s: float | None
    ) -> AsyncGenerator[SampleEvent, None]:
        """The sampler's events, once the edit has its turn. Raises NotFound for a tuning that was deleted meanwhile."""
        waiting = nullcontext() if self._queue.has_place(plan.tenant) else self._results.waiting(opened)
        async with AsyncExitStack() as place:
            with waiting:
                waited_s = await place.enter_async_context(self._queue.place(plan.tenant, plan.least_steps))
            if tuning is not None:
                await self._tunings.with_weights(tuning.name)
            request = _sample_request(plan, tuning, opened, *await self._planner.pictures(plan))
            left_s = None if timeout_s is None else began + timeout_s - time.monotonic()
            turn = self._usage.turn(plan.tenant, opened.request_id)
            async with turn, aclosing(self._samplers.sample(request, left_s)) as samples:
                async for sample in samples:
                    if sample.HasField("done"):
                        sample.done.queue_s += waited_s
                        self._times.note(plan.least_steps, sample.done.denoise_s)
                    yield sample


class StepThrottle:
    """Admits at most five steps a second, and always the last one.

    The preview of a step that is dropped goes with the next step, unless that has a newer one.
    """

    def __init__(self) -> None:
        self._next_s = 0.0
        self._preview = b""

    def admits(self, step: EditEvent.Step) -> bool:
        """Whether to send this step. It gets the newest preview that was not sent yet."""
        self._preview = step.preview or self._preview
        now = time.monotonic()
        if now < self._next_s and step.index + 1 < step.total:
            return False
        self._next_s = now + STEP_INTERVAL_S
        step.preview, self._preview = self._preview, b""
        return True


async def _numbered(events: AsyncGenerator[EditEvent, None]) -> AsyncGenerator[EditEvent, None]:
    """Events that no OpenEdit numbers."""
    number = 0
    async for event in events:
        if not event.HasField("heartbeat"):
            number += 1
            event.sequence = number
        event.create_time.GetCurrentTime()
        yield event


async def _validated(plan: EditPlan, total_s: float) -> AsyncGenerator[EditEvent, None]:
    """The events of a request with validate_only."""
    yield _accepted(plan, "")
    yield EditEvent(done=EditEvent.Done(timings=Timings(total_s=total_s)))


def _accepted(plan: EditPlan, edit: str) -> EditEvent:
    return EditEvent(
        accepted=EditEvent.Accepted(
            edit=edit,
            config=plan.config,
            effective_strength=plan.effective_strength,
            seeds=plan.seeds,
            warnings=plan.warnings,
            tuning_config=plan.tuning.config if plan.tuning is not None else None,
        )
    )


def _ready(last: TuningEvent) -> Tuning:
    """The tuning of a `ready` event. Raises the error of a FAILED tuning; FailedPrecondition for a cancelled one."""
    if last.HasField("failed"):
        raise from_status(last.failed)
    if not last.HasField("ready"):
        raise FailedPrecondition(
            "the tuning that this edit waited for was cancelled",
            reason="TUNING_CANCELLED",
            metadata={"name": last.cancelled.name},
        )
    return last.ready


def _sample_request(
    plan: EditPlan, tuning: Tuning | None, opened: OpenEdit, image: bytes, mask: bytes
) -> SampleRequest:
    return SampleRequest(
        edit=opened.edit.name,
        weights=tuning.weights if tuning is not None else None,
        image=image,
        mask=mask,
        rare_tokens=rare_tokens_before(tuning.config if tuning is not None else None),
        prompt=plan.prompt,
        config=plan.config,
        seeds=plan.seeds,
        preview_every=plan.preview_every,
        content_filter=plan.is_filtered,
    )


def _without_preview(event: EditEvent) -> None:
    if event.HasField("step"):
        event.step.ClearField("preview")


def _heartbeat() -> EditEvent:
    return EditEvent(heartbeat=EditEvent.Heartbeat())
