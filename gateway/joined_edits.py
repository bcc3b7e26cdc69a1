"""Edits that are asked for again by the same request id: the second request joins the edit of the first, anywhere.

It does not matter whether that runs or is done. One that was lost, cancelled, or failed with what will pass, begins
again.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator

from gateway import validation
from gateway.edit_results import EditResults, OpenEdit
from gateway.state import State
from gateway.tuning_records import CreateRequest
from unitune import telemetry
from unitune.errors import InvalidArgument, Unavailable, UniTuneError, from_status, to_status
from unitune.v1.edit_pb2 import Edit, EditEvent, EditRequest

logger = logging.getLogger(__name__)

LOOKS_EVERY_S = 0.25
EDIT_LOST = "EDIT_LOST"


def request_of(request: EditRequest) -> CreateRequest | None:
    """The id of a request that has one and makes an edit, with a digest of all else. Raises InvalidField."""
    if not request.request_id or request.validate_only:
        return None
    validation.check_request_id(request.request_id)
    body = EditRequest()
    body.CopyFrom(request)
    body.ClearField("request_id")
    body.ClearField("parent")  # the tenant is known apart from it
    return CreateRequest(request.request_id, hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest())


class JoinedEdits:
    """What the requests of one gateway join."""

    def __init__(self, state: State, results: EditResults, *, heartbeat_s: float) -> None:
        """`heartbeat_s` is the longest silence of a stream."""
        self._state = state
        self._results = results
        self._heartbeat_s = heartbeat_s
        self._end_reason: UniTuneError | None = None
        self._looks: dict[str, asyncio.Future[Edit | None]] = {}  # of the last moment, by the edit's name

    def end(self, reason: UniTuneError) -> None:
        """End the streams that wait for an edit of another gateway, which may outlast any drain."""
        self._end_reason = reason

    async def claim(self, tenant: str, request: CreateRequest, opened: OpenEdit) -> str:
        """The edit that this request has: an earlier one to be joined, or this new one.

        Raises InvalidArgument (REQUEST_ID_REUSED), and as State does where several gateways share it.
        """
        edit, lost = opened.edit, ""
        if self._state.is_read_only:
            return edit.name
        try:
            while True:
                entering = self._state.claim_edit(tenant, request, edit, lost)
                has = await self._results.enter_by(opened, entering)
                if has == edit.name:
                    opened.is_entered, opened.request_id = True, request.request_id
                    return has
                if not _begins_again(await self._results.look(has)):
                    return has
                lost = has
        except InvalidArgument:
            raise
        except UniTuneError as error:  # a full disk: an edit itself needs no space there
            if self._state.is_shared:
                raise
            telemetry.event(logger, "request of an edit not kept", level=logging.WARNING, reason=error.reason)
            return edit.name

    async def events(self, name: str, accepted: EditEvent) -> AsyncGenerator[EditEvent, None]:
        """`accepted`, then heartbeats to the edit's end, its pictures, and its end. If it does not come to a good end,
        the last event is UNAVAILABLE (EDIT_LOST): the next request with this id begins it again."""
        yield accepted
        told_s = time.monotonic()
        try:
            while (edit := await self._look(name)) is not None and edit.state == Edit.STATE_RUNNING:
                if self._end_reason is not None and not self._results.is_known(name):
                    raise self._end_reason
                await asyncio.sleep(LOOKS_EVERY_S)
                if time.monotonic() >= told_s + self._heartbeat_s:
                    told_s = time.monotonic()
                    yield EditEvent(heartbeat=EditEvent.Heartbeat())
            if edit is None or _begins_again(edit):
                yield EditEvent(failed=to_status(_lost()))
            elif edit.state == Edit.STATE_FAILED:
                yield EditEvent(failed=edit.error)
            else:
                async for event in self._results.pictures(name):
                    yield event
                yield EditEvent(done=EditEvent.Done(timings=edit.timings, tuning=edit.tuning))
        except UniTuneError as error:  # state or store do not answer
            yield EditEvent(failed=to_status(error))

    async def _look(self, name: str) -> Edit | None:
        """An edit as it was a moment ago: however many have joined it, the state is asked once."""
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = asyncio.ensure_future(self._results.look(name))
            asyncio.get_running_loop().call_later(LOOKS_EVERY_S, self._looks.pop, name)
        return await asyncio.shield(look)


def _begins_again(edit: Edit | None) -> bool:
    """Whether the request of this edit is to begin anew; None stands for one that is not known."""
    if edit is None or edit.state == Edit.STATE_CANCELLED:
        return True
    if edit.state != Edit.STATE_FAILED:
        return False
    error = from_status(edit.error)
    return isinstance(error, Unavailable) or error.retry_after_s is not None


def _lost() -> Unavailable:
    return Unavailable(
        "the edit of this request was cancelled or lost: send the request again", reason=EDIT_LOST, retry_after_s=0.1
    )
