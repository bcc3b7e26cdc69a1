"""What the state keeps of services, tenants and gateways: what a service said of itself, weights to be forgotten, what
tenants have used, and what gateways hold against one another."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import date

from gateway import edit_requests, usage_records
from gateway import state_statements as statements
from gateway.database import Database, Transaction, deletion, operation
from gateway.state_part import StatePart
from gateway.usage_records import Used
from unitune.errors import UniTuneError

HELD_S = 6.0  # after the last sign of life of who holds
HOLD_ON_S = 2.0  # between two such signs
HOLD_AGAIN_S = 0.05  # until something that another gateway holds is tried again
SEEN_KEPT_S = 24 * 3600.0


class StateOfServices(StatePart):
    """That part of the state."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._day: date | None = None  # when old usage was last forgotten

    # What tuner and sampler last said of themselves.

    @operation
    def known(self, tx: Transaction) -> dict[str, bytes]:
        """The serialized message of each service by the service's name."""
        return dict(tx.rows(statements.KNOWN))

    @operation
    def know(self, tx: Transaction, service: str, info: bytes) -> None:
        """Replace what is known of a service."""
        tx.run(statements.KNOW, the_name=service, the_info=info)

    @operation
    def know_first(self, tx: Transaction, service: str, info: bytes) -> bytes:
        """What is known of a service, which is this if nothing was known."""
        tx.run(statements.KNOW_FIRST, the_name=service, the_info=info)
        known: bytes = tx.value(statements.KNOWN_OF, the_name=service)
        return known

    @operation
    def saw(self, tx: Transaction, base_models: Sequence[str]) -> None:
        """This gateway has tuners of these base models now."""
        for base_model in sorted(base_models):
            tx.run(statements.SEE_MODEL, the_holder=self._id, the_model=base_model)
        tx.run(statements.FORGET_SEEN, kept_s=SEEN_KEPT_S)

    @operation
    def seen_elsewhere(self, tx: Transaction) -> dict[str, float]:
        """How many seconds ago another gateway had a tuner of each base model."""
        return dict(tx.rows(statements.SEEN_ELSEWHERE, the_holder=self._id))

    # The weights that the sampler must still forget.

    @operation
    def evictions(self, tx: Transaction) -> list[str]:
        """Their digests, the oldest first."""
        return tx.values(statements.EVICTIONS)

    @deletion
    def add_eviction(self, tx: Transaction, digest: str) -> None:
        """Remember weights, once."""
        tx.run(statements.ADD_EVICTION, the_digest=digest)

    @deletion
    def remove_eviction(self, tx: Transaction, digest: str) -> None:
        """The sampler has forgotten these weights."""
        tx.run(statements.REMOVE_EVICTION, the_digest=digest)

    # What tenants have used.

    @operation
    def use(self, tx: Transaction, used: Mapping[str, Used], requests: Collection[tuple[str, str]] = ()) -> None:
        """Count for tenants, today; and the edits of requests, by tenant and id, each request once."""
        edits = Counter(
            tenant for tenant, request_id in sorted(requests) if edit_requests.count(tx, tenant, request_id)
        )
        for tenant in sorted({*used, *edits}):
            usage_records.add(tx, tenant, used.get(tenant, Used()) + Used(edits=edits[tenant]))
        if self._day != (day := usage_records.today()):  # it visits every row
            usage_records.forget_old(tx)
            self._day = day

    @operation
    def used_by(self, tx: Transaction, tenant: str, first: date, last: date) -> Used:
        """What a tenant has used from day to day."""
        return usage_records.of(tx, tenant, first, last)

    @operation
    def used_by_all(self, tx: Transaction, first: date, last: date, after: str, size: int) -> list[tuple[str, Used]]:
        """The same of the tenants whose names come after another."""
        return usage_records.page(tx, first, last, after, size)

    # What gateways hold against one another.

    @asynccontextmanager
    async def holding(self, name: str) -> AsyncIterator[None]:
        """Hold something that is not in the state, for the block; no other gateway holds it meanwhile. A gateway that
        ends or stands still in the block holds it for HELD_S at most."""
        if not self.is_shared:
            yield
            return
        while True:
            taking = asyncio.ensure_future(self._hold(name))
            try:
                if await asyncio.shield(taking):
                    break
            except asyncio.CancelledError:  # its transaction runs to its end all the same
                with suppress(UniTuneError):
                    await taking
                    await self._let_loose(name)
                raise
            await asyncio.sleep(HOLD_AGAIN_S)
        holding_on = asyncio.create_task(self._hold_on(name))
        try:
            yield
        finally:
            holding_on.cancel()
            with suppress(UniTuneError):  # it ends by itself
                await self._let_loose(name)

    @operation
    def _hold(self, tx: Transaction, name: str) -> bool:
        return tx.row(statements.HOLD, the_name=name, the_holder=self._id, lasts_s=HELD_S) is not None

    async def _hold_on(self, name: str) -> None:
        while True:
            await asyncio.sleep(HOLD_ON_S)
            with suppress(UniTuneError):  # which is in the log
                await self._keep_hold(name)

    @operation
    def _keep_hold(self, tx: Transaction, name: str) -> None:
        tx.run(statements.KEEP_HOLD, the_name=name, the_holder=self._id, lasts_s=HELD_S)

    @operation
    def _let_loose(self, tx: Transaction, name: str) -> None:
        tx.run(statements.LET_LOOSE, the_name=name, the_holder=self._id)
