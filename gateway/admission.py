"""Admission: whether a request may enter now. What a tenant has open, how often it asks, what it stores, what one
request may cost.

All is decided before anything costly. A limit of 0 is none. What is refused says whose limit it is, and when to come
back; `gateway/config.py` has the limits.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf.message import Message

from gateway.config import GatewayConfig
from gateway.names import DEFAULT_TENANT, parse, parse_parent
from unitune.errors import QUEUE_FULL, TENANT_EDIT_LIMIT, TENANT_REQUEST_RATE, InvalidField, ResourceExhausted

RETRY_EDIT_S = 2.0  # an edit takes seconds
BURST_S = 10.0  # requests of so many seconds may come at once
KEPT_TENANTS = 10_000  # whose recent requests are counted
# Of the requests of open edits and comparisons, which may have pictures in them. Uploaded ones wait in the store.
OPEN_BYTES_OF_TENANT, OPEN_BYTES = 256 << 20, 512 << 20

# The fields by which a request names whose resources it is about, and their collections.
_NAMED_BY = {"tuning": "tunings", "image": "images"}


class Admission:
    """What all tenants have open in one gateway."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._rates = RequestRates(config.tenant_requests_per_s)
        self._edits: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()  # of their requests

    def request(self, tenant: str) -> None:
        """Count one request. Raises ResourceExhausted (TENANT_REQUEST_RATE)."""
        self._rates.take(tenant)

    @contextmanager
    def edit(self, tenant: str, size_bytes: int = 0) -> Iterator[None]:
        """Count one edit, or comparison, for as long as the block lasts, and its request of so many bytes.

        Raises ResourceExhausted (TENANT_EDIT_LIMIT, QUEUE_FULL, TENANT_REQUEST_RATE).
        """
        self.request(tenant)
        most, most_of_all = self._config.tenant_edits, self._config.open_edits
        if 0 < most <= self._edits[tenant]:
            message = f"{most} edits of this tenant run or wait, as many as may: begin this one when another has ended"
            raise of_tenant(tenant, most, message, TENANT_EDIT_LIMIT, RETRY_EDIT_S)
        if 0 < most_of_all <= self._edits.total():
            raise of_all(most_of_all, f"{most_of_all} edits run or wait", RETRY_EDIT_S)
        if self._bytes[tenant] + size_bytes > OPEN_BYTES_OF_TENANT:
            message = (
                f"the edits of this tenant that run or wait have {self._bytes[tenant]} bytes of pictures in their "
                "requests, as many as may: upload pictures and name them, or begin this one when another has ended"
            )
            raise of_tenant(tenant, OPEN_BYTES_OF_TENANT, message, TENANT_EDIT_LIMIT, RETRY_EDIT_S)
        if self._bytes.total() + size_bytes > OPEN_BYTES:
            raise of_all(OPEN_BYTES, f"edits that run or wait have {OPEN_BYTES} bytes in their requests", RETRY_EDIT_S)
        self._edits[tenant] += 1
        self._bytes[tenant] += size_bytes
        try:
            yield
        finally:
            self._edits[tenant] -= 1
            self._bytes[tenant] -= size_bytes
            if not self._edits[tenant]:
                del self._edits[tenant], self._bytes[tenant]


class RequestRates:
    """A token bucket for each tenant: it holds the requests of BURST_S and is refilled all the time."""

    def __init__(self, per_s: float) -> None:
        """`per_s` of 0 means no limit."""
        self._per_s = per_s
        self._most = max(1.0, per_s * BURST_S)
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def take(self, tenant: str) -> None:
        """Take one token. Raises ResourceExhausted (TENANT_REQUEST_RATE)."""
        if self._per_s <= 0:
            return
        now_s = time.monotonic()
        tokens = self._tokens(tenant, now_s)
        if tokens < 1:
            message = f"this tenant asks more often than {self._per_s:g} times a second: ask less often"
            wait_s = math.ceil(1000 * (1 - tokens) / self._per_s) / 1000
            raise of_tenant(tenant, self._per_s, message, TENANT_REQUEST_RATE, wait_s)
        self._buckets[tenant] = tokens - 1, now_s
        if len(self._buckets) > KEPT_TENANTS:  # a full bucket is as good as none
            self._buckets = {
                one: bucket for one, bucket in self._buckets.items() if self._tokens(one, now_s) < self._most
            }

    def _tokens(self, tenant: str, now_s: float) -> float:
        tokens, counted_s = self._buckets.get(tenant, (self._most, now_s))
        return min(self._most, tokens + (now_s - counted_s) * self._per_s)


def tenant_of(request: Message) -> str:
    """Whose request it is, by the names in it. A name of another form is refused later, and counts for nobody."""
    fields = request.DESCRIPTOR.fields_by_name
    try:
        if "parent" in fields and (named := parse_parent(getattr(request, "parent"))):  # noqa: B009 - not in Message
            return named
        if "name" in fields:
            tenant = str(getattr(request, "name")).split("/")[1:2]  # noqa: B009
            return (parse_parent(f"tenants/{tenant[0]}") if tenant else None) or DEFAULT_TENANT
        for field, collection in _NAMED_BY.items():
            value = getattr(request, field, "")
            if isinstance(value, Message):  # the tuning of UpdateTuning
                return tenant_of(value)
            if value:
                return parse(value, collection, field).tenant
    except InvalidField:
        pass
    return DEFAULT_TENANT


def of_tenant(tenant: str, limit: float, message: str, reason: str, retry_after_s: float) -> ResourceExhausted:
    """The error of a tenant that has reached its limit."""
    return ResourceExhausted.of_quota(f"tenants/{tenant}", limit, message, reason=reason, retry_after_s=retry_after_s)


def of_all(limit: int, full: str, retry_after_s: float) -> ResourceExhausted:
    """The error of a queue that all tenants share; `full` says what fills it."""
    message = f"{full}, as many as this server takes: come back later"
    return ResourceExhausted.of_quota("server", limit, message, reason=QUEUE_FULL, retry_after_s=retry_after_s)
