"""All that gateways remember across restarts, in one database.

It holds the tunings with their queue and their events, the last answers of tuner and sampler, and the weights
that the sampler must still forget. Each operation is one transaction, so that:

- A change of a tuning and its event are written together or not at all.
- A tuning has at most one terminal event, and it is the last.
- One key has at most one live tuning (QUEUED, RUNNING or READY) in a tenant.
- Nothing that was acknowledged is forgotten when the process is killed.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from google.rpc.status_pb2 import Status
from sqlalchemy import Select, Update

from gateway import admission, read_only_state, usage_records
from gateway import state_statements as statements
from gateway.database import EVERY_TOPIC, SERVER_SCHEMES, Database, Transaction, deletion, operation
from gateway.event_looks import EventLooks
from gateway.names import parse
from gateway.report_batch import ReportBatch
from gateway.sqlite_file import SqliteFile
from gateway.state_of_edits import StateOfEdits
from gateway.state_of_services import StateOfServices
from gateway.state_schema import FIRST_SHARED_VERSION, MIGRATIONS, READABLE_FROM, SCHEMA_VERSION, TABLES
from gateway.state_upgrade import MIGRATION_FUNCTIONS
from gateway.tuning_queue import LEASE_S, WaitingTenant, position
from gateway.tuning_records import (
    UNFINISHED,
    Attempt,
    CreateRequest,
    KeptEvents,
    Page,
    QueueLimits,
    QueueNow,
    Report,
    Standing,
    TakenTuning,
    Taker,
    etag_of,
)
from gateway.usage_records import Used
from unitune import metrics
from unitune.errors import TENANT_TUNING_LIMIT, Internal, NotFound, to_status
from unitune.v1.tuner_pb2 import Checkpoint
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress, WeightsRef

KEPT_EVENTS = 512  # of one tuning; a later watcher gets a snapshot in place of older ones
EVENTS_KEPT_S = 3600.0  # after a tuning's end; then only the last one is left
TRIMMED_AT_ONCE = 500  # tunings
REQUESTS_KEPT_S = 24 * 3600.0
KEPT_REQUESTS = 10_000  # of one tenant; the oldest are forgotten first
# Deaths of the tuner with one tuning until that is FAILED. A run that got further than all before it resets the count,
# because it survived what ended the others.
MAX_CRASHES = 3

MAX_NUMBER = (1 << 63) - 1  # of a row

RETRY_TUNING_S = 15.0  # a tuning takes a minute or two
NO_LIMITS = QueueLimits()

Mutate = Callable[[Tuning], None]
Announce = Callable[[Tuning], TuningEvent]


class _Found(NamedTuple):
    """A tuning as it is stored: the number of its row, and of its last event."""

    number: int
    last_event: int
    tuning: Tuning


class State(StateOfEdits, StateOfServices):
    """The state of one gateway, or of several. Operations raise what Database does, too."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._waiters: set[tuple[str, asyncio.Event]] = set()  # with the tuning that each waits for; "" means any
        self._reports = ReportBatch(self._keep_reports, database.gathers_s)
        look_s = database.look_s
        self._looks = EventLooks(self._last_events, look_s) if look_s is not None else None
        database.listen(self._wake)

    @classmethod
    async def open(cls, place: Path | str, listen: str = "") -> "State":
        """Open a file, or the database of a PostgreSQL server by its URL, making what is missing. A file that cannot be
        written is only read.

        `listen` is the URL of the server itself where `place` is a pooler's. Raises OSError when it cannot be used.
        """
        if not str(place).startswith(SERVER_SCHEMES):
            return cls(await SqliteFile.open(Path(place), TABLES, SCHEMA_VERSION, MIGRATIONS, MIGRATION_FUNCTIONS))
        try:
            from gateway.postgres import PostgresServer  # its driver is an extra
        except ImportError as error:
            raise OSError(f"the gateway's state: {error}: install unitune[fleet] for PostgreSQL") from error
        shared = {step: statements for step, statements in MIGRATIONS.items() if step >= FIRST_SHARED_VERSION}
        arguments = str(place), listen, TABLES, SCHEMA_VERSION, shared, READABLE_FROM
        return cls(await PostgresServer.open(*arguments))

    async def close(self) -> None:
        """Finish what was begun, then close the database."""
        if self._looks is not None:
            await self._looks.close()
        await self._reports.close()
        await self.database.close()

    # The tunings by name.

    @operation
    def recall(self, tx: Transaction, tenant: str, request: CreateRequest) -> Tuning | None:
        """The tuning that this request made earlier, None if it made none.

        Raises InvalidArgument (REQUEST_ID_REUSED) for another body, NotFound (TUNING_NOT_FOUND) if it was deleted.
        """
        return self._recalled(tx, tenant, request)

    @operation
    def create(
        self,
        tx: Transaction,
        tuning: Tuning,
        request: CreateRequest | None,
        limits: QueueLimits = NO_LIMITS,
        trace: str = "",
    ) -> Tuning:
        """Queue a new tuning, unless there is a live one of the same tenant and key; the one or the other. `trace` is
        that of the call which makes it.

        `recall` finds it by the request for a day at least. Raises as `recall` does, and ResourceExhausted
        (TENANT_TUNING_LIMIT, QUEUE_FULL) for a new one beyond the limits.
        """
        tenant = parse(tuning.name, "tunings").tenant
        found = self._live(tx, tenant, tuning.key) if request is None or self.is_read_only else None
        if found is not None:
            return found
        tx.run(statements.NEW_TENANT, the_tenant=tenant)
        tx.lock(statements.LOCK_TENANT, the_tenant=tenant)
        earlier = self._recalled(tx, tenant, request) if request else None
        if earlier is not None:
            return earlier
        made = self._live(tx, tenant, tuning.key)
        if made is None:
            self._admit(tx, tenant, limits)
            made = self._insert(tx, tenant, tuning, trace)
        if request:
            now_s = time.time()
            tx.run(statements.FORGET_REQUESTS, before_s=now_s - REQUESTS_KEPT_S)
            tx.run(statements.INSERT_REQUEST, tenant=tenant, **request._asdict(), tuning=made.name, create_s=now_s)
            self._forget_requests(tx, tenant)
        return made

    @operation
    def live(self, tx: Transaction, tenant: str, key: str) -> Tuning | None:
        """The QUEUED, RUNNING or READY tuning of this key."""
        return self._live(tx, tenant, key)

    @operation
    def get(self, tx: Transaction, name: str) -> Tuning | None:
        """A tuning as it is now."""
        return self._one(tx, name)

    @operation
    def ready_weights(self, tx: Transaction, names: Sequence[str]) -> dict[str, str]:
        """The digests of the weights of these tunings, by name, of those that are READY."""
        ready = [_found(row).tuning for row in tx.rows_of(statements.READY_TUNINGS, names=names)]
        return {tuning.name: tuning.weights.digest for tuning in ready}

    @operation
    def page(self, tx: Transaction, tenant: str, state: int, after: int, size: int) -> Page:
        """Tunings of one tenant; state 0 means any, `after` 0 means from the newest."""
        statement, of_state = (statements.PAGE_OF_STATE, {"the_state": state}) if state else (statements.PAGE, {})
        rows = tx.rows(statement, the_tenant=tenant, before=after or MAX_NUMBER, most=size + 1, **of_state)
        queue, queued = self._queue(tx), tx.values(statements.QUEUED_NUMBERS, the_tenant=tenant)
        ranks = {number: rank for rank, number in enumerate(queued, 1)}
        tunings = [self._ranked(Tuning.FromString(blob), queue, ranks.get(number, 1)) for number, blob in rows[:size]]
        return Page(tunings, after=rows[size - 1][0] if len(rows) > size else 0)

    @operation
    def change(self, tx: Transaction, name: str, mutate: Mutate, announce: Announce | None = None) -> Tuning | None:
        """Let `mutate` change a tuning in place, and append the event that `announce` makes of the result.

        Nothing is written or announced when `mutate` changes nothing. The tuning afterwards; None if there is none.
        """
        return self._change(tx, name, mutate, announce)

    @deletion
    def change_to_delete(
        self, tx: Transaction, name: str, mutate: Mutate, announce: Announce | None = None
    ) -> Tuning | None:
        """The same as a part of a deletion: it works on a full disk, too."""
        return self._change(tx, name, mutate, announce)

    @deletion
    def remove(self, tx: Transaction, name: str) -> None:
        """Forget a tuning and its events, on a full disk, too.

        Only its name and the requests that made it, an id and a digest each, stay known for a day. Nothing else of it
        is left in any file.
        """
        number = tx.value(statements.DELETE_TUNING, the_name=name)
        if number is not None:  # whoever appends an event has locked the tuning before
            tx.run(statements.DELETE_EVENTS, the_number=number)
        tx.notify(name)

    @operation
    def expired(self, tx: Transaction, now_s: float) -> list[str]:
        """Names of the READY tunings whose expire_time has come, in Unix seconds."""
        return tx.values(statements.EXPIRED, at_s=now_s)

    @operation
    def uses_image(self, tx: Transaction, image: str, but: str = "") -> bool:
        """Whether any tuning, but this one, was made from this image."""
        tenant, image_bytes = parse(image, "images").tenant, image.encode()
        asked = {"the_tenant": tenant, "the_image": image, "the_image_bytes": image_bytes, "the_name": but}
        found = tx.row(statements.USES_IMAGE, **asked)
        return found is not None

    @operation
    def live_user_of(self, tx: Transaction, image: str) -> str | None:
        """The name of a live tuning that was made from this image."""
        tenant = parse(image, "images").tenant
        found: str | None = tx.value(statements.LIVE_USER_OF, the_tenant=tenant, the_image_bytes=image.encode())
        return found

    # The queue: tenants in turn, within a tenant the oldest tuning first.

    async def wait_queued(self, base_model: str = "", most_running: int = 0) -> None:
        """Return once a tuning of this base model, or any, may be taken."""
        with self._waiter("") as event:
            while not await self._is_any_queued(base_model, most_running):
                await self._notified(event)

    @operation
    def _is_any_queued(self, tx: Transaction, base_model: str, most_running: int) -> bool:
        of_model = {"the_model": base_model} if base_model else {}
        if most_running:
            queued = statements.TENANTS_OF_MODEL_QUEUED if base_model else statements.TENANTS_QUEUED
            running = self._running(tx)
            return any(running.get(tenant, 0) < most_running for tenant in tx.values(queued, **of_model))
        is_any = statements.IS_ANY_OF_MODEL_QUEUED if base_model else statements.IS_ANY_QUEUED
        return tx.value(is_any, **of_model) is not None

    @operation
    def take(
        self, tx: Transaction, taker: Taker, *, base_model: str = "", lease_s: float = LEASE_S, most_running: int = 0
    ) -> TakenTuning | None:
        """Make the next tuning of a base model, any if that is empty, RUNNING for the time of a lease, and append that
        to its events. None if none is QUEUED, or other gateways just look at them. A tenant that has `most_running`
        ones RUNNING is passed over; 0 means any number.

        What the taker's place still runs has ended: there is one process at a time in a place, and it runs one tuning.
        Before that, a tuning that was lost with another instance counts as crashed, and one that crashed too often is
        FAILED (WORKER_CRASHED).
        """
        if self.is_read_only:  # though nothing may be queued
            raise read_only_state.refusal()
        self._end_earlier(tx, taker)
        self._count_crashes(tx, taker.instance)
        taken = self._next(tx, base_model, most_running)
        if taken is None:
            return None
        tenant, number, last_event, blob, attempt, checkpoint, trace = taken
        attempt += 1

        def start(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_RUNNING
            tuning.start_time.GetCurrentTime()

        tuning = self._write(
            tx,
            _Found(number, last_event, Tuning.FromString(blob)),
            start,
            lambda _: TuningEvent(started=TuningEvent.Started(attempt=attempt)),
            statements.CHANGE_TAKEN,
            new_attempt=attempt,
            new_tuner=taker.instance,
            new_place=taker.place,
            lasts_s=lease_s,
        )
        tx.run(statements.SERVE_TENANT, the_tenant=tenant)
        resumed = None if checkpoint is None else Checkpoint.FromString(checkpoint)
        return TakenTuning(tuning, attempt, resumed, trace)

    # What tuners report. An attempt that is not the latest of a RUNNING tuning changes nothing.

    async def report(
        self, attempt: Attempt, instance: str, *, progress: TuningProgress | None = None, lease_s: float = LEASE_S
    ) -> Standing:
        """Renew the lease of an attempt, which an instance runs, and keep its progress."""
        if progress is None:
            return await self._renew(attempt, instance, lease_s)
        report = Report(attempt, instance, progress, lease_s)
        if self.database.gathers_s:
            return await self._reports.add(report)
        (standing,) = await self._keep_reports([report])
        return standing

    @operation
    def _renew(self, tx: Transaction, attempt: Attempt, instance: str, lease_s: float) -> Standing:
        renewed = tx.row(
            statements.RENEW, the_name=attempt.name, the_attempt=attempt.number, by=instance, lasts_s=lease_s
        )
        return self._standing(tx, attempt) if renewed is None else Standing.KEPT

    @operation
    def keep_checkpoint(
        self, tx: Transaction, attempt: Attempt, instance: str, checkpoint: Checkpoint, *, lease_s: float = LEASE_S
    ) -> Standing:
        """The next attempt goes on from this checkpoint."""
        kept = tx.row(
            statements.KEEP_CHECKPOINT,
            the_name=attempt.name,
            the_attempt=attempt.number,
            by=instance,
            lasts_s=lease_s,
            new_checkpoint=checkpoint.SerializeToString(),
        )
        return self._standing(tx, attempt) if kept is None else Standing.KEPT

    @operation
    def finish(self, tx: Transaction, attempt: Attempt, weights: WeightsRef) -> Standing:
        """End an attempt with weights: the tuning is READY. Kept, too, if these weights made it READY before."""

        def ready(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_READY
            tuning.weights.CopyFrom(weights)

        return self._end(tx, attempt, ready, lambda now: TuningEvent(ready=now), lambda now: now.weights == weights)

    @operation
    def fail(self, tx: Transaction, attempt: Attempt, error: Status) -> Standing:
        """End an attempt and the tuning, FAILED. Kept, too, if the attempt did so before."""

        def failed(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_FAILED
            tuning.error.CopyFrom(error)

        return self._end(tx, attempt, failed, lambda _: TuningEvent(failed=error), lambda now: now.error == error)

    @operation
    def let_go(self, tx: Transaction, attempt: Attempt) -> Standing:
        """End an attempt: the tuning is QUEUED again, at its old place, and nobody is blamed."""
        held = self._held(tx, attempt)
        if held is None:
            return self._standing(tx, attempt)
        self._give_back(tx, held, tuner="")
        return Standing.KEPT

    @operation
    def standing(self, tx: Transaction, attempt: Attempt) -> Standing:
        """What became of an attempt."""
        return self._standing(tx, attempt)

    async def wait_lost(self, attempt: Attempt) -> None:
        """Return once an attempt is not the latest of a RUNNING tuning."""
        with self._waiter(attempt.name) as event:
            while await self.standing(attempt) is Standing.KEPT:
                await self._notified(event)

    @operation
    def sweep(self, tx: Transaction, longest_s: float | None = None) -> list[str]:
        """Give back, as lost, every RUNNING tuning whose lease has run out; their names.

        No lease of this gateway is longer than `longest_s`: one that seems to be is of a clock that was set back since.
        """
        if longest_s is not None and not self.is_shared:
            tx.run(statements.SHORTEN_LEASES, lasts_s=longest_s)
        lost = [(tuner, _found(row)) for tuner, *row in tx.rows(statements.LOST)]
        for tuner, found in lost:
            self._give_back(tx, found, tuner)
        return [found.tuning.name for _, found in lost]

    @operation
    def blame_nobody(self, tx: Transaction) -> None:
        """For a gateway that begins: whoever runs a tuning now may have ended together with the gateway before. A tuner
        that goes on says so by its next report."""
        tx.run(statements.FORGET_TUNERS)

    @operation
    def queued_base_models(self, tx: Transaction) -> list[str]:
        """The digests of the base models of all QUEUED tunings."""
        return tx.values(statements.QUEUED_MODELS)

    @operation
    def fail_queued(self, tx: Transaction, base_model: str, error: Status) -> list[str]:
        """Make all QUEUED tunings of a base model FAILED; their names."""
        names = tx.values(statements.QUEUED_OF_MODEL, the_model=base_model)
        for name in names:
            self._fail(tx, name, error)
        return names

    @operation
    def queue_now(self, tx: Transaction) -> QueueNow:
        """How many tunings are unfinished, and since when the oldest of the queue waits."""
        queued, running = tx.row(statements.COUNT_QUEUE)
        oldest = tx.value(statements.OLDEST_QUEUED)
        since_s = Tuning.FromString(oldest).create_time.ToMicroseconds() / 1e6 if oldest is not None else None
        return QueueNow(queued, running, since_s)

    # The events of each tuning.

    @operation
    def read(self, tx: Transaction, name: str, after: int) -> KeptEvents | None:
        """The kept events with a sequence number above `after`; None if there is no such tuning."""
        found = self._find(tx, statements.TUNING, the_name=name)
        if found is None:
            return None
        number, last, tuning = found
        blobs = tx.values(statements.EVENTS, the_number=number, after=after, up_to=last)
        events = [TuningEvent.FromString(blob) for blob in blobs]
        first = events[0].sequence if events else last + 1
        return KeptEvents(self._placed(tx, number, tuning), events, last, gap=first > after + 1)

    async def wait(self, name: str, after: int) -> None:
        """Return once the tuning may have an event above `after`, or is gone. Call it after `read`, in a loop."""
        with self._waiter(name) as event:  # before the query, so that no event is missed between the two
            if await self._waits_for_events(name, after):
                with self._looks.waiting(event, name, after) if self._looks is not None else nullcontext():
                    await event.wait()

    @operation
    def _last_events(self, tx: Transaction, names: Sequence[str]) -> dict[str, int]:
        return dict(tx.rows_of(statements.LAST_EVENTS, names=names)) if names else {}

    @operation
    def _waits_for_events(self, tx: Transaction, name: str, after: int) -> bool:
        return tx.value(statements.HAS_NO_EVENT_AFTER, the_name=name, after=after) is not None

    @operation
    def trim_events(self, tx: Transaction) -> int:
        """Forget all events but the last of tunings that ended EVENTS_KEPT_S ago; of how many."""
        ended = tx.rows(statements.TO_TRIM, most=TRIMMED_AT_ONCE)
        tx.run_for_each(statements.FORGET_EVENTS, [{"the_number": number, "up_to": last - 1} for number, last in ended])
        tx.run_for_each(statements.TRIMMED, [{"the_number": number} for number, _ in ended])
        return len(ended)

    # Who waits.

    @contextmanager
    def _waiter(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set when this tuning gets an event or is removed; an empty name stands for any tuning."""
        waiter = (name, asyncio.Event())
        self._waiters.add(waiter)
        try:
            yield waiter[1]
        finally:
            self._waiters.remove(waiter)

    async def _notified(self, event: asyncio.Event) -> None:
        """Return once a waiter's event is set, or it is time to look again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.database.look_s):
                await event.wait()
        event.clear()

    def _wake(self, name: str) -> None:
        for awaited, event in self._waiters:
            if awaited in ("", name) or name == EVERY_TOPIC:
                event.set()

    # Parts of operations, within their transaction.

    def _recalled(self, tx: Transaction, tenant: str, request: CreateRequest) -> Tuning | None:
        row = tx.row(statements.REQUEST, the_tenant=tenant, the_id=request.request_id)
        if row is None:
            return None
        body, made = row
        request.refuse_another(body)
        tuning = self._one(tx, made)
        if tuning is None:
            raise NotFound("the tuning that this request made is deleted", reason="TUNING_NOT_FOUND")
        return tuning

    def _forget_requests(self, tx: Transaction, tenant: str) -> None:
        """Forget the oldest of too many requests; some at once, so that it is seldom done."""
        kept = tx.value(statements.COUNT_REQUESTS, the_tenant=tenant)
        if kept > KEPT_REQUESTS:
            most = kept - KEPT_REQUESTS + KEPT_REQUESTS // 10
            tx.run(statements.FORGET_OLDEST_REQUESTS, the_tenant=tenant, most=most)

    def _live(self, tx: Transaction, tenant: str, key: str) -> Tuning | None:
        found = self._find(tx, statements.LIVE_TUNING, the_tenant=tenant, the_key=key)
        return self._placed(tx, found.number, found.tuning) if found else None

    def _admit(self, tx: Transaction, tenant: str, limits: QueueLimits) -> None:
        """Raise what a new tuning of this tenant is refused with."""
        if limits.refusal is not None:
            raise limits.refusal
        of_tenant, of_all = tx.row(statements.COUNT_UNFINISHED, the_tenant=tenant)
        if 0 < limits.of_tenant <= of_tenant:
            message = f"{of_tenant} tunings of this tenant are queued or running, as many as may: wait until one ends"
            raise admission.of_tenant(tenant, limits.of_tenant, message, TENANT_TUNING_LIMIT, RETRY_TUNING_S)
        kept = tx.value(statements.COUNT_KEPT, the_tenant=tenant)
        if 0 < limits.kept <= kept:
            message = f"{kept} tunings of this tenant are kept, ended ones too, as many as may: delete some"
            raise admission.of_tenant(tenant, limits.kept, message, TENANT_TUNING_LIMIT, RETRY_TUNING_S)
        if 0 < limits.of_all <= of_all:
            raise admission.of_all(limits.of_all, f"{of_all} tunings are queued or running", RETRY_TUNING_S)

    def _insert(self, tx: Transaction, tenant: str, tuning: Tuning, trace: str) -> Tuning:
        made = Tuning()
        made.CopyFrom(tuning)
        made.etag = etag_of(made)
        number = tx.value(
            statements.INSERT_TUNING,
            name=made.name,
            tenant=tenant,
            key=made.key,
            image=made.image,
            base_model=made.base_model,
            state=made.state,
            last_event=1,
            trace=trace,
            blob=made.SerializeToString(),
        )
        self._placed(tx, number, made)
        self._append(tx, (_Found(number, 1, made), _queued(made)))
        usage_records.add(tx, tenant, Used(tunings=1))
        return made

    def _change(self, tx: Transaction, name: str, mutate: Mutate, announce: Announce | None = None) -> Tuning | None:
        found = self._find(tx, statements.LOCKED_TUNING, the_name=name)
        return self._write(tx, found, mutate, announce) if found else None

    def _write(
        self,
        tx: Transaction,
        found: _Found,
        mutate: Mutate,
        announce: Announce | None,
        statement: Update = statements.CHANGE,
        **further: object,
    ) -> Tuning:
        """Let `mutate` change a tuning that is locked, and append what `announce` makes of it. `statement` writes
        `further` columns, too."""
        number, last_event, tuning = found
        before, ran_s = tuning.state, _ran_s(tuning)
        mutate(tuning)
        etag = etag_of(tuning)
        if etag == tuning.etag:
            return self._placed(tx, number, tuning)
        tuning.etag = etag
        last_event += announce is not None
        tx.run(statement, **_written(number, last_event, tuning), **further)
        self._placed(tx, number, tuning)
        if announce is not None:
            self._append(tx, (_Found(number, last_event, tuning), announce(tuning)))
        if before in UNFINISHED and tuning.state not in UNFINISHED:
            tx.run(statements.TRIM_LATER, the_number=number, lasts_s=EVENTS_KEPT_S)
        if before == Tuning.STATE_RUNNING != tuning.state:
            usage_records.add(tx, parse(tuning.name, "tunings").tenant, Used(tuner_s=ran_s))
        if before != tuning.state:
            tx.after_commit(partial(_count_end, tuning.state))
        return tuning

    def _next(self, tx: Transaction, base_model: str, most_running: int) -> tuple[Any, ...] | None:
        """Tenant, number, last event, message, attempts, checkpoint and trace of the tuning that is taken next."""
        running = self._running(tx) if most_running else {}
        statement, of_model = (
            (statements.NEXT_OF_MODEL, {"the_model": base_model}) if base_model else (statements.NEXT, {})
        )
        for tenant, *_ in self._queue(tx):
            if 0 < most_running <= running.get(tenant, 0):  # it would be locked in vain
                continue
            if not tx.lock(statements.LOCK_FREE_TENANT, the_tenant=tenant):
                continue
            # Counted again under the lock, which whoever takes one of the tenant's holds.
            if 0 < most_running <= self._running(tx).get(tenant, 0):
                continue
            row = tx.row(statement, the_tenant=tenant, **of_model)
            if row is not None:
                return (tenant, *row)
        return None

    def _running(self, tx: Transaction) -> dict[str, int]:
        """The number of RUNNING tunings of each tenant that has any."""
        return dict(tx.rows(statements.RUNNING_OF_TENANTS))

    def _held(self, tx: Transaction, attempt: Attempt) -> _Found | None:
        """The tuning of an attempt, locked, if the attempt is the latest and the tuning is RUNNING."""
        return self._find(tx, statements.HELD_TUNING, the_name=attempt.name, the_attempt=attempt.number)

    @operation
    def _keep_reports(self, tx: Transaction, reports: Sequence[Report]) -> list[Standing]:
        """Renew the leases of attempts, and keep their progress."""
        if len(reports) == 1:
            found = self._held(tx, reports[0].attempt)
            held = {reports[0].attempt: found} if found else {}
        else:
            rows = tx.rows_of(statements.REPORTED, names=sorted({report.attempt.name for report in reports}))
            held = {Attempt(name, attempt): _found(row) for name, attempt, *row in rows}
        written, events = dict[Attempt, dict[str, object]](), list[tuple[_Found, TuningEvent]]()
        for attempt, instance, progress, lease_s in reports:
            found = held.get(attempt)
            if found is None:
                continue
            number, last_event, tuning = found
            told = TuningProgress(attempt=attempt.number)
            told.MergeFrom(progress)
            if tuning.progress != told:
                tuning.progress.CopyFrom(told)
                tuning.etag = etag_of(tuning)
                held[attempt] = found = _Found(number, last_event + 1, tuning)
                events.append((found, TuningEvent(progress=told)))
            written[attempt] = {**_written(*found), "new_tuner": instance, "lasts_s": lease_s}
        tx.run_for_each(statements.CHANGE_REPORTED, list(written.values()))
        self._append(tx, *events)
        return [Standing.KEPT if report.attempt in held else self._standing(tx, report.attempt) for report in reports]

    def _standing(self, tx: Transaction, attempt: Attempt) -> Standing:
        if tx.value(statements.HOLDS, the_name=attempt.name, the_attempt=attempt.number) is not None:
            return Standing.KEPT
        tuning = self._one(tx, attempt.name)
        gone = tuning is None or tuning.state == Tuning.STATE_CANCELLED
        return Standing.CANCELLED if gone else Standing.LOST

    def _end(
        self,
        tx: Transaction,
        attempt: Attempt,
        mutate: Mutate,
        announce: Announce,
        is_the_same: Callable[[Tuning], bool],
    ) -> Standing:
        """End an attempt and the tuning, once: `is_the_same` tells an end that was reported before."""
        held = self._held(tx, attempt)
        if held is not None:

            def end(tuning: Tuning) -> None:
                mutate(tuning)
                tuning.end_time.GetCurrentTime()

            self._write(tx, held, end, announce, statements.CHANGE_END, new_lease_s=None, new_checkpoint=None)
            return Standing.KEPT
        ended = self._find(tx, statements.TUNING_OF_ATTEMPT, the_name=attempt.name, the_attempt=attempt.number)
        ends = (Tuning.STATE_READY, Tuning.STATE_FAILED)
        if ended is not None and ended.tuning.state in ends and is_the_same(ended.tuning):
            return Standing.KEPT
        return self._standing(tx, attempt)

    def _end_earlier(self, tx: Transaction, taker: Taker) -> None:
        """Give back what the taker's place still runs: as lost, if another process ran it."""
        for tuner, *row in tx.rows(statements.RUNNING_AT, by=taker.instance, at=taker.place or None):
            self._give_back(tx, _found(row), "" if tuner == taker.instance else tuner)

    def _give_back(self, tx: Transaction, found: _Found, tuner: str) -> None:
        """Queue a RUNNING tuning again, at its old place.

        A lost one keeps its tuner's instance for `_count_crashes`.
        """

        def back(tuning: Tuning) -> None:
            tuning.ClearField("progress")
            tuning.state = Tuning.STATE_QUEUED
            tuning.ClearField("start_time")

        self._write(
            tx,
            found,
            back,
            _queued,
            statements.CHANGE_BACK,
            new_reached=found.tuning.progress.update,
            new_place="",
            new_lease_s=None,
            new_tuner=tuner,
        )

    def _count_crashes(self, tx: Transaction, instance: str) -> None:
        """Count a crash of each lost tuning whose tuner was another instance than the one that answers now."""
        for number, name, tuner, reached, furthest, crashes in tx.rows(statements.UNCOUNTED):
            if not instance or tuner == instance:
                tx.run(statements.FORGET_TUNER, the_number=number)
                continue
            crashes = 1 if reached > furthest else crashes + 1
            tx.run(statements.COUNT_CRASH, the_number=number, new_crashes=crashes, new_furthest=max(furthest, reached))
            if crashes >= MAX_CRASHES:
                self._fail_crashed(tx, name)

    def _fail_crashed(self, tx: Transaction, name: str) -> None:
        error = to_status(
            Internal(
                f"the tuning was lost {MAX_CRASHES} times with the process that ran it",
                reason="WORKER_CRASHED",
                metadata={"attempts": str(MAX_CRASHES)},
            )
        )

        self._fail(tx, name, error)

    def _fail(self, tx: Transaction, name: str, error: Status) -> None:
        def fail(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_FAILED
            tuning.error.CopyFrom(error)
            tuning.end_time.GetCurrentTime()

        self._change(tx, name, fail, lambda _: TuningEvent(failed=error))

    def _queue(self, tx: Transaction) -> list[WaitingTenant]:
        """The tenants whose tunings are QUEUED, in order of their turns."""
        return [WaitingTenant(*row) for row in tx.rows(statements.QUEUE)]

    def _placed(self, tx: Transaction, number: int, tuning: Tuning) -> Tuning:
        """The tuning with its place in the queue, while it has one."""
        if tuning.state == Tuning.STATE_QUEUED:
            tenant = parse(tuning.name, "tunings").tenant
            rank = tx.value(statements.RANK, the_tenant=tenant, the_number=number)
            self._ranked(tuning, self._queue(tx), rank)
        return tuning

    def _ranked(self, tuning: Tuning, queue: Sequence[WaitingTenant], rank: int) -> Tuning:
        """The same of a tuning whose place among those of its tenant is known."""
        if tuning.state == Tuning.STATE_QUEUED:
            tuning.queue_position = position(queue, parse(tuning.name, "tunings").tenant, rank)
        return tuning

    def _append(self, tx: Transaction, *events: tuple[_Found, TuningEvent]) -> None:
        """Append events, each of which has the number of its tuning's last one."""
        kept, forgotten = list[dict[str, object]](), list[dict[str, object]]()
        for (number, last_event, tuning), event in events:
            event.sequence = last_event
            event.create_time.GetCurrentTime()
            kept.append({"tuning": number, "sequence": last_event, "blob": event.SerializeToString()})
            if last_event > KEPT_EVENTS:
                forgotten.append({"the_number": number, "up_to": last_event - KEPT_EVENTS})
            tx.notify(tuning.name)
        tx.run_for_each(statements.INSERT_EVENT, kept)
        tx.run_for_each(statements.FORGET_EVENTS, forgotten)

    def _find(self, tx: Transaction, statement: Select, **values: object) -> _Found | None:
        """A tuning as it is stored, without its place in the queue."""
        row = tx.row(statement, **values)
        return _found(row) if row else None

    def _one(self, tx: Transaction, name: str) -> Tuning | None:
        found = self._find(tx, statements.TUNING, the_name=name)
        return self._placed(tx, found.number, found.tuning) if found else None


def _found(row: Sequence[Any]) -> _Found:
    number, last_event, blob = row
    return _Found(number, last_event, Tuning.FromString(blob))


def _queued(tuning: Tuning) -> TuningEvent:
    return TuningEvent(queued=TuningEvent.Queued(position=tuning.queue_position))


def _written(number: int, last_event: int, tuning: Tuning) -> dict[str, object]:
    """The values of what writes a changed tuning."""
    return {
        "the_number": number,
        "new_state": tuning.state,
        "new_expire_s": tuning.expire_time.ToMicroseconds() / 1e6 if tuning.HasField("expire_time") else None,
        "new_last_event": last_event,
        "new_blob": tuning.SerializeToString(),
    }


def _ran_s(tuning: Tuning) -> float:
    """The seconds for which a tuner has had it."""
    return max(0.0, time.time() - tuning.start_time.ToMicroseconds() / 1e6) if tuning.HasField("start_time") else 0.0


def _count_end(state: Tuning.State) -> None:
    """Count a tuning that has come into this state from another."""
    if state == Tuning.STATE_QUEUED:
        metrics.TUNINGS_LOST.inc()
    elif state != Tuning.STATE_RUNNING:
        metrics.TUNING_ENDS.labels(Tuning.State.Name(state).removeprefix("STATE_").lower()).inc()
