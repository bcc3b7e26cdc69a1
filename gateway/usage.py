"""What tenants use, counted in memory and written into the state every few seconds.

An edit never waits for the state, and none fails because that cannot be written: what could not be kept is tried again.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import date, timedelta
from typing import Any

from gateway import usage_records, validation
from gateway.admission import Admission, tenant_of
from gateway.names import parse_parent
from gateway.state import State
from gateway.stored_bytes import StoredBytes
from gateway.usage_records import COLUMNS, Used
from unitune import store_paths, telemetry
from unitune.errors import InvalidField, UniTuneError
from unitune.v1 import usage_pb2, usage_pb2_grpc

logger = logging.getLogger(__name__)

EVERY_S = 5.0
KEPT_TENANTS = 10_000  # that are counted while nothing can be written
KEPT_REQUESTS = 100_000  # of edits, likewise
USUAL_DAYS = 30  # that are told
ALL_TENANTS = "*"  # counts its requests apart: nobody has this name
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class UsageCounts:
    """What the tenants of one gateway have used since it was written last."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._pending: dict[str, Used] = {}
        self._requests: set[tuple[str, str]] = set()  # whose edits had a turn, by tenant and id

    def count(self, tenant: str, used: Used) -> None:
        """Count for a tenant."""
        if tenant in self._pending or len(self._pending) < KEPT_TENANTS:
            self._pending[tenant] = self._pending.get(tenant, Used()) + used

    @asynccontextmanager
    async def turn(self, tenant: str, request_id: str = "") -> AsyncIterator[None]:
        """Count an edit that has its turn for as long as the block lasts. All edits of one request count as one."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            if request_id and len(self._requests) < KEPT_REQUESTS:
                self._requests.add((tenant, request_id))
            self.count(tenant, Used(edits=0 if request_id else 1, sampler_s=time.monotonic() - began_s))

    async def keep(self) -> None:
        """Write what was counted. Raises as State does, and counts it the next time."""
        pending, self._pending = self._pending, {}
        requests, self._requests = self._requests, set()
        if not pending:
            return
        try:
            await self._state.use(pending, requests)
        except Exception:
            self._requests |= requests
            for tenant, used in pending.items():
                self.count(tenant, used)
            raise

    async def run(self) -> None:
        """Write at intervals."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.keep()
            except UniTuneError:  # such as a disk that is full, which is in the log
                pass
            except Exception:
                telemetry.failure(logger, "usage not kept")


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """Usage, as `usage.proto` promises it."""

    def __init__(self, state: State, counts: UsageCounts, storage: StoredBytes, admission: Admission) -> None:
        self._state, self._counts, self._storage, self._admission = state, counts, storage, admission

    async def ListUsage(self, request: usage_pb2.ListUsageRequest, context: Any) -> usage_pb2.ListUsageResponse:
        self._admission.request(tenant_of(request) if request.parent else ALL_TENANTS)
        tenant = parse_parent(request.parent)
        size = validation.check_page_size(request.page_size)
        after = parse_parent(request.page_token, "page_token") or ""
        first, last = _days(request)
        with suppress(UniTuneError):  # what is kept can be told
            await self._counts.keep()
        if tenant is not None:
            found = [] if after else [(tenant, await self._state.used_by(tenant, first, last))]
        else:
            found = await self._state.used_by_all(first, last, after, size + 1)
        told = [await self._told(name, used) for name, used in found[:size]]
        for one in told:
            one.start_day, one.end_day = first.isoformat(), last.isoformat()
        return usage_pb2.ListUsageResponse(usage=told, next_page_token=told[-1].parent if len(found) > size else "")

    async def _told(self, tenant: str, used: Used) -> usage_pb2.Usage:
        stored = await self._storage.of(tenant)
        return usage_pb2.Usage(
            parent=f"tenants/{tenant}",
            **{name: getattr(used, name) for name in COLUMNS},
            image_bytes=stored[store_paths.IMAGES],
            weight_bytes=stored[store_paths.TUNINGS],
            result_bytes=stored[store_paths.EDITS],
        )


def _days(request: usage_pb2.ListUsageRequest) -> tuple[date, date]:
    last = _day(request, "end_day") or usage_records.today()
    first = _day(request, "start_day") or last - min(timedelta(days=USUAL_DAYS - 1), last - date.min)
    if first > last:
        raise InvalidField("start_day", first.isoformat(), f"it must not be after end_day, which is {last.isoformat()}")
    return first, last


def _day(request: usage_pb2.ListUsageRequest, field: str) -> date | None:
    value = str(getattr(request, field))
    if not value:
        return None
    with suppress(ValueError):
        if _DAY.fullmatch(value):
            return date.fromisoformat(value)
    raise InvalidField(field, value, "a day has the form 2026-01-31")
