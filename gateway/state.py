"""All that the gateway remembers across restarts, in one SQLite file.

The file holds the tunings with their queue and their events, the last answers of tuner and sampler, and the weights
that the sampler must still forget. Each operation is one transaction, so that:

- A change of a tuning and its event are written together or not at all.
- A tuning has at most one terminal event, and it is the last.
- One key has at most one live tuning (QUEUED, RUNNING or READY) in a tenant.
- Nothing that was acknowledged is forgotten when the process is killed.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path

from google.rpc.status_pb2 import Status

from gateway import admission, usage_records
from gateway.names import parse
from gateway.sqlite_file import SqliteFile, deletion, operation
from gateway.state_schema import MIGRATIONS, NOW_S, QUEUE, SCHEMA, SCHEMA_VERSION
from gateway.state_upgrade import MIGRATION_FUNCTIONS
from gateway.tuning_queue import LEASE_S, WaitingTenant, position
from gateway.tuning_records import (
    LIVE,
    UNFINISHED,
    Attempt,
    CreateRequest,
    KeptEvents,
    Page,
    QueueLimits,
    QueueNow,
    Standing,
    TakenTuning,
    Taker,
    etag_of,
)
from gateway.usage_records import Used
from unitune import metrics
from unitune.errors import TENANT_TUNING_LIMIT, Internal, InvalidArgument, NotFound, to_status
from unitune.v1.tuner_pb2 import Checkpoint
from unitune.v1.tuning_pb2 import Tuning, TuningEvent, TuningProgress, WeightsRef

KEPT_EVENTS = 512  # of one tuning; a later watcher gets a snapshot in place of older ones
REQUESTS_KEPT_S = 24 * 3600.0
KEPT_REQUESTS = 10_000  # of one tenant; the oldest are forgotten first
# Deaths of the tuner with one tuning until that is FAILED. A run that got further than all before it resets the count,
# because it survived what ended the others.
MAX_CRASHES = 3

RETRY_TUNING_S = 15.0  # a tuning takes a minute or two
NO_LIMITS = QueueLimits()

Mutate = Callable[[Tuning], None]
Announce = Callable[[Tuning], TuningEvent]


class State:
    """The state of one gateway. Operations raise what SqliteFile does, too."""

    def __init__(self, file: SqliteFile) -> None:
        self.file = file
        self._sql = file.sql
        self._waiters: set[tuple[str, asyncio.Event]] = set()  # with the tuning that each waits for; "" means any

    @classmethod
    async def open(cls, path: Path) -> "State":
        """Open the file, making it if it is missing. Raises OSError when it is in use or not a file of ours.

        One that cannot be written is only read.
        """
        return cls(await SqliteFile.open(path, SCHEMA, SCHEMA_VERSION, MIGRATIONS, MIGRATION_FUNCTIONS))

    async def close(self) -> None:
        """Finish what was begun, then close the file."""
        await self.file.close()

    @property
    def is_read_only(self) -> bool:
        """Whether every operation that would write fails with FailedPrecondition (STATE_READ_ONLY)."""
        return self.file.is_read_only

    # The tunings by name.

    @operation
    def recall(self, tenant: str, request: CreateRequest) -> Tuning | None:
        """The tuning that this request made earlier, None if it made none.

        Raises InvalidArgument (REQUEST_ID_REUSED) for another body, NotFound (TUNING_NOT_FOUND) if it was deleted.
        """
        return self._recalled(tenant, request)

    @operation
    def create(
        self, tuning: Tuning, request: CreateRequest | None, limits: QueueLimits = NO_LIMITS, trace: str = ""
    ) -> Tuning:
        """Queue a new tuning, unless there is a live one of the same tenant and key; the one or the other. `trace` is
        that of the call which makes it.

        `recall` finds it by the request for a day at least. Raises as `recall` does, and ResourceExhausted
        (TENANT_TUNING_LIMIT, QUEUE_FULL) for a new one beyond the limits.
        """
        tenant = parse(tuning.name, "tunings").tenant
        earlier = self._recalled(tenant, request) if request else None
        if earlier is not None:
            return earlier
        made = self._live(tenant, tuning.key)
        if made is None:
            self._admit(tenant, limits)
            made = self._insert(tenant, tuning, trace)
        if request:
            now_s = time.time()
            self._sql("DELETE FROM requests WHERE create_s < ?", now_s - REQUESTS_KEPT_S)
            self._sql("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", tenant, *request, made.name, now_s)
            self._forget_requests(tenant)
        return made

    @operation
    def live(self, tenant: str, key: str) -> Tuning | None:
        """The QUEUED, RUNNING or READY tuning of this key."""
        return self._live(tenant, key)

    @operation
    def get(self, name: str) -> Tuning | None:
        """A tuning as it is now."""
        return self._one("name = ?", name)

    @operation
    def page(self, tenant: str, state: int, after: int, size: int) -> Page:
        """Tunings of one tenant; state 0 means any, `after` 0 means from the newest."""
        rows = self._sql(
            "SELECT number, blob FROM tunings WHERE tenant = ?1 AND (?2 = 0 OR state = ?2)"
            " AND (?3 = 0 OR number < ?3) ORDER BY number DESC LIMIT ?4",
            *(tenant, state, after, size + 1),
        ).fetchall()
        queue = self._queue()
        tunings = [self._placed(number, Tuning.FromString(blob), queue) for number, blob in rows[:size]]
        return Page(tunings, after=rows[size - 1][0] if len(rows) > size else 0)

    @operation
    def change(self, name: str, mutate: Mutate, announce: Announce | None = None) -> Tuning | None:
        """Let `mutate` change a tuning in place, and append the event that `announce` makes of the result.

        Nothing is written or announced when `mutate` changes nothing. The tuning afterwards; None if there is none.
        """
        return self._change(name, mutate, announce)

    @deletion
    def change_to_delete(self, name: str, mutate: Mutate, announce: Announce | None = None) -> Tuning | None:
        """The same as a part of a deletion: it works on a full disk, too."""
        return self._change(name, mutate, announce)

    @deletion
    def remove(self, name: str) -> None:
        """Forget a tuning and its events, on a full disk, too.

        Only its name and the requests that made it, an id and a digest each, stay known for a day. Nothing else of it
        is left in any file.
        """
        self._sql("DELETE FROM events WHERE tuning = (SELECT number FROM tunings WHERE name = ?)", name)
        self._sql("DELETE FROM tunings WHERE name = ?", name)
        self.file.after_commit(partial(self._wake, name))

    @operation
    def expired(self, now_s: float) -> list[str]:
        """Names of the READY tunings whose expire_time has come, in Unix seconds."""
        rows = self._sql("SELECT name FROM tunings WHERE state = ? AND expire_s <= ?", Tuning.STATE_READY, now_s)
        return [name for (name,) in rows]

    @operation
    def uses_image(self, image: str) -> bool:
        """Whether any tuning was made from this image."""
        # The first image has an index. Further ones have no column of their own: their names are in the message.
        row = self._sql(
            "SELECT 1 FROM tunings WHERE image = ?"
            " UNION ALL SELECT 1 FROM tunings WHERE tenant = ? AND instr(blob, ?) LIMIT 1",
            *(image, parse(image, "images").tenant, image.encode()),
        )
        return row.fetchone() is not None

    @operation
    def live_user_of(self, image: str) -> str | None:
        """The name of a live tuning that was made from this image."""
        row = self._sql(
            "SELECT name FROM tunings WHERE tenant = ? AND state IN (?, ?, ?) AND instr(blob, ?)",
            *(parse(image, "images").tenant, *LIVE, image.encode()),
        ).fetchone()
        return row[0] if row else None

    # The queue: tenants in turn, within a tenant the oldest tuning first.

    async def wait_queued(self, base_model: str = "") -> None:
        """Return once a tuning of this base model, or any, is QUEUED."""
        with self._waiter("") as event:
            while not await self._is_any_queued(base_model):
                await event.wait()
                event.clear()

    @operation
    def _is_any_queued(self, base_model: str) -> bool:
        return self._next(base_model) is not None

    @operation
    def take(self, taker: Taker, *, base_model: str = "", lease_s: float = LEASE_S) -> TakenTuning | None:
        """Make the next tuning of a base model, any if that is empty, RUNNING for the time of a lease, and append that
        to its events. None if none is QUEUED.

        What the taker's place still runs has ended: there is one process at a time in a place, and it runs one tuning.
        Before that, a tuning that was lost with another instance counts as crashed, and one that crashed too often is
        FAILED (WORKER_CRASHED).
        """
        self._end_earlier(taker)
        self._count_crashes(taker.instance)
        number = self._next(base_model)
        if number is None:
            return None
        name, tenant, attempt, checkpoint, trace = self._sql(
            f"UPDATE tunings SET attempt = attempt + 1, tuner = ?, place = ?, lease_s = {NOW_S} + ? WHERE number = ?"
            " RETURNING name, tenant, attempt, checkpoint, trace",
            *(taker.instance, taker.place, lease_s, number),
        ).fetchone()
        self._sql(
            "INSERT INTO turns SELECT ?, COALESCE(MAX(last_turn), 0) + 1 FROM turns WHERE true"
            " ON CONFLICT (tenant) DO UPDATE SET last_turn = excluded.last_turn",
            tenant,
        )

        def start(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_RUNNING
            tuning.start_time.GetCurrentTime()

        self._change(name, start, lambda _: TuningEvent(started=TuningEvent.Started(attempt=attempt)))
        resumed = None if checkpoint is None else Checkpoint.FromString(checkpoint)
        return TakenTuning(self._existing(name), attempt, resumed, trace)

    # What tuners report. An attempt that is not the latest of a RUNNING tuning changes nothing.

    @operation
    def report(
        self, attempt: Attempt, instance: str, *, progress: TuningProgress | None = None, lease_s: float = LEASE_S
    ) -> Standing:
        """Renew the lease of an attempt, which an instance runs, and keep its progress."""
        if not self._renew(attempt, instance, lease_s):
            return self._standing(attempt)
        if progress is not None:
            told = TuningProgress(attempt=attempt.number)
            told.MergeFrom(progress)
            self._change(
                attempt.name, lambda tuning: tuning.progress.CopyFrom(told), lambda _: TuningEvent(progress=told)
            )
        return Standing.KEPT

    @operation
    def keep_checkpoint(
        self, attempt: Attempt, instance: str, checkpoint: Checkpoint, *, lease_s: float = LEASE_S
    ) -> Standing:
        """The next attempt goes on from this checkpoint."""
        if not self._renew(attempt, instance, lease_s):
            return self._standing(attempt)
        kept = checkpoint.SerializeToString()
        self._sql("UPDATE tunings SET checkpoint = ? WHERE name = ?", kept, attempt.name)
        return Standing.KEPT

    @operation
    def finish(self, attempt: Attempt, weights: WeightsRef) -> Standing:
        """End an attempt with weights: the tuning is READY. Kept, too, if these weights made it READY before."""

        def ready(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_READY
            tuning.weights.CopyFrom(weights)

        return self._end(attempt, ready, lambda now: TuningEvent(ready=now), lambda now: now.weights == weights)

    @operation
    def fail(self, attempt: Attempt, error: Status) -> Standing:
        """End an attempt and the tuning, FAILED. Kept, too, if the attempt did so before."""

        def failed(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_FAILED
            tuning.error.CopyFrom(error)

        return self._end(attempt, failed, lambda _: TuningEvent(failed=error), lambda now: now.error == error)

    @operation
    def let_go(self, attempt: Attempt) -> Standing:
        """End an attempt: the tuning is QUEUED again, at its old place, and nobody is blamed."""
        if not self._holds(attempt):
            return self._standing(attempt)
        self._give_back(attempt.name, lost=False)
        return Standing.KEPT

    @operation
    def standing(self, attempt: Attempt) -> Standing:
        """What became of an attempt."""
        return self._standing(attempt)

    async def wait_lost(self, attempt: Attempt) -> None:
        """Return once an attempt is not the latest of a RUNNING tuning."""
        with self._waiter(attempt.name) as event:
            while await self.standing(attempt) is Standing.KEPT:
                await event.wait()
                event.clear()

    @operation
    def sweep(self) -> list[str]:
        """Give back, as lost, every RUNNING tuning whose lease has run out; their names."""
        rows = self._sql(
            f"SELECT name FROM tunings WHERE state = {Tuning.STATE_RUNNING} AND COALESCE(lease_s, 0) < {NOW_S}"
        ).fetchall()
        for (name,) in rows:
            self._give_back(name, lost=True)
        return [name for (name,) in rows]

    @operation
    def blame_nobody(self) -> None:
        """For a gateway that begins: whoever runs a tuning now may have ended together with the gateway before. A tuner
        that goes on says so by its next report."""
        self._sql(f"UPDATE tunings SET tuner = '' WHERE state = {Tuning.STATE_RUNNING}")

    @operation
    def queued_base_models(self) -> list[str]:
        """The digests of the base models of all QUEUED tunings."""
        rows = self._sql(f"SELECT DISTINCT base_model FROM tunings WHERE state = {Tuning.STATE_QUEUED}")
        return [digest for (digest,) in rows]

    @operation
    def fail_queued(self, base_model: str, error: Status) -> list[str]:
        """Make all QUEUED tunings of a base model FAILED; their names."""
        rows = self._sql(
            f"SELECT name FROM tunings WHERE state = {Tuning.STATE_QUEUED} AND base_model = ?", base_model
        ).fetchall()
        for (name,) in rows:
            self._fail(name, error)
        return [name for (name,) in rows]

    @operation
    def queue_now(self) -> QueueNow:
        """How many tunings are unfinished, and since when the oldest of the queue waits."""
        queued, running = self._sql(
            "SELECT COUNT(CASE WHEN state = ?1 THEN 1 END), COUNT(CASE WHEN state = ?2 THEN 1 END)"
            " FROM tunings WHERE state IN (?1, ?2)",
            *UNFINISHED,
        ).fetchone()
        oldest = self._sql("SELECT blob FROM tunings WHERE state = ? ORDER BY number LIMIT 1", UNFINISHED[0]).fetchone()
        since_s = Tuning.FromString(oldest[0]).create_time.ToMicroseconds() / 1e6 if oldest else None
        return QueueNow(queued, running, since_s)

    # The events of each tuning.

    @operation
    def read(self, name: str, after: int) -> KeptEvents | None:
        """The kept events with a sequence number above `after`; None if there is no such tuning."""
        row = self._sql("SELECT number, last_event, blob FROM tunings WHERE name = ?", name).fetchone()
        if row is None:
            return None
        number, last, blob = row
        rows = self._sql("SELECT blob FROM events WHERE tuning = ? AND sequence > ? ORDER BY sequence", number, after)
        events = [TuningEvent.FromString(event) for (event,) in rows]
        first = events[0].sequence if events else last + 1
        return KeptEvents(self._placed(number, Tuning.FromString(blob)), events, last, gap=first > after + 1)

    async def wait(self, name: str, after: int) -> None:
        """Return once the tuning may have an event above `after`, or is gone. Call it after `read`, in a loop."""
        with self._waiter(name) as event:  # before the query, so that no event is missed between the two
            if await self._waits_for_events(name, after):
                await event.wait()

    @operation
    def _waits_for_events(self, name: str, after: int) -> bool:
        return self._sql("SELECT 1 FROM tunings WHERE name = ? AND last_event <= ?", name, after).fetchone() is not None

    # What tuner and sampler last said of themselves.

    @operation
    def known(self) -> dict[str, bytes]:
        """The serialized message of each service by the service's name."""
        return dict(self._sql("SELECT name, info FROM services").fetchall())

    @operation
    def know(self, service: str, info: bytes) -> None:
        """Replace what is known of a service."""
        self._sql("INSERT OR REPLACE INTO services VALUES (?, ?)", service, info)

    # The weights that the sampler must still forget.

    @operation
    def evictions(self) -> list[str]:
        """Their digests, the oldest first."""
        return [digest for (digest,) in self._sql("SELECT digest FROM evictions ORDER BY number")]

    @deletion
    def add_eviction(self, digest: str) -> None:
        """Remember weights, once."""
        self._sql("INSERT OR IGNORE INTO evictions (digest) VALUES (?)", digest)

    @deletion
    def remove_eviction(self, digest: str) -> None:
        """The sampler has forgotten these weights."""
        self._sql("DELETE FROM evictions WHERE digest = ?", digest)

    # What tenants have used.

    @operation
    def use(self, used: Mapping[str, Used]) -> None:
        """Count for tenants, today."""
        for tenant, of_tenant in used.items():
            usage_records.add(self._sql, tenant, of_tenant)
        usage_records.forget_old(self._sql)

    @operation
    def used_by(self, tenant: str, first: date, last: date) -> Used:
        """What a tenant has used from day to day."""
        return usage_records.of(self._sql, tenant, first, last)

    @operation
    def used_by_all(self, first: date, last: date, after: str, size: int) -> list[tuple[str, Used]]:
        """The same of the tenants whose names come after another."""
        return usage_records.page(self._sql, first, last, after, size)

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

    def _wake(self, name: str) -> None:
        for awaited, event in self._waiters:
            if awaited in ("", name):
                event.set()

    # Parts of operations, within their transaction.

    def _recalled(self, tenant: str, request: CreateRequest) -> Tuning | None:
        row = self._sql(
            "SELECT body, tuning FROM requests WHERE tenant = ? AND request_id = ?", tenant, request.request_id
        ).fetchone()
        if row is None:
            return None
        if row[0] != request.body:
            raise InvalidArgument(
                f"request_id is {request.request_id!r}: it was used for another request; make a new one",
                reason="REQUEST_ID_REUSED",
                metadata={"field": "request_id", "value": request.request_id, "remedy": "make a new one"},
            )
        tuning = self._one("name = ?", row[1])
        if tuning is None:
            raise NotFound("the tuning that this request made is deleted", reason="TUNING_NOT_FOUND")
        return tuning

    def _forget_requests(self, tenant: str) -> None:
        """Forget the oldest of too many requests; some at once, so that it is seldom done."""
        (kept,) = self._sql("SELECT COUNT(*) FROM requests WHERE tenant = ?", tenant).fetchone()
        if kept > KEPT_REQUESTS:
            self._sql(
                "DELETE FROM requests WHERE tenant = ?1 AND request_id IN"
                " (SELECT request_id FROM requests WHERE tenant = ?1 ORDER BY create_s LIMIT ?2)",
                *(tenant, kept - KEPT_REQUESTS + KEPT_REQUESTS // 10),
            )

    def _live(self, tenant: str, key: str) -> Tuning | None:
        return self._one("tenant = ? AND key = ? AND state IN (?, ?, ?)", tenant, key, *LIVE)

    def _admit(self, tenant: str, limits: QueueLimits) -> None:
        """Raise what a new tuning of this tenant is refused with."""
        if limits.refusal is not None:
            raise limits.refusal
        of_tenant, of_all = self._sql(
            "SELECT COUNT(CASE WHEN tenant = ? THEN 1 END), COUNT(*) FROM tunings WHERE state IN (?, ?)",
            *(tenant, *UNFINISHED),
        ).fetchone()
        if 0 < limits.of_tenant <= of_tenant:
            message = f"{of_tenant} tunings of this tenant are queued or running, as many as may: wait until one ends"
            raise admission.of_tenant(tenant, limits.of_tenant, message, TENANT_TUNING_LIMIT, RETRY_TUNING_S)
        (kept,) = self._sql("SELECT COUNT(*) FROM tunings WHERE tenant = ?", tenant).fetchone()
        if 0 < limits.kept <= kept:
            message = f"{kept} tunings of this tenant are kept, ended ones too, as many as may: delete some"
            raise admission.of_tenant(tenant, limits.kept, message, TENANT_TUNING_LIMIT, RETRY_TUNING_S)
        if 0 < limits.of_all <= of_all:
            raise admission.of_all(limits.of_all, f"{of_all} tunings are queued or running", RETRY_TUNING_S)

    def _insert(self, tenant: str, tuning: Tuning, trace: str) -> Tuning:
        tuning.etag = etag_of(tuning)
        columns = (
            *(tuning.name, tenant, tuning.key, tuning.image, tuning.base_model, tuning.state, trace),
            tuning.SerializeToString(),
        )
        number = self._sql(
            "INSERT INTO tunings (name, tenant, key, image, base_model, state, trace, blob)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
            *columns,
        ).fetchone()[0]
        made = self._existing(tuning.name)
        self._append(number, _queued(made))
        usage_records.add(self._sql, tenant, Used(tunings=1))
        return made

    def _change(self, name: str, mutate: Mutate, announce: Announce | None = None) -> Tuning | None:
        row = self._sql("SELECT number, blob FROM tunings WHERE name = ?", name).fetchone()
        if row is None:
            return None
        number, blob = row
        tuning = Tuning.FromString(blob)
        before, ran_s = tuning.state, _ran_s(tuning)
        mutate(tuning)
        if etag_of(tuning) == tuning.etag:
            return self._placed(number, tuning)
        tuning.etag = etag_of(tuning)
        self._sql(
            "UPDATE tunings SET state = ?, expire_s = ?, blob = ? WHERE number = ?",
            tuning.state,
            tuning.expire_time.ToMicroseconds() / 1e6 if tuning.HasField("expire_time") else None,
            tuning.SerializeToString(),
            number,
        )
        self._placed(number, tuning)
        if announce is not None:
            self._append(number, announce(tuning))
        if before == Tuning.STATE_RUNNING != tuning.state:
            usage_records.add(self._sql, parse(name, "tunings").tenant, Used(tuner_s=ran_s))
        if before != tuning.state:
            self.file.after_commit(partial(_count_end, tuning.state))
        return tuning

    def _next(self, base_model: str) -> int | None:
        """The number of the tuning that is taken next."""
        for tenant in self._queue():
            (number,) = self._sql(
                f"SELECT MIN(number) FROM tunings WHERE state = {Tuning.STATE_QUEUED} AND tenant = ?1"
                " AND (?2 = '' OR base_model = ?2)",
                *(tenant.tenant, base_model),
            ).fetchone()
            if number is not None:
                return int(number)
        return None

    def _holds(self, attempt: Attempt) -> bool:
        row = self._sql(
            f"SELECT 1 FROM tunings WHERE name = ? AND attempt = ? AND state = {Tuning.STATE_RUNNING}", *attempt
        )
        return row.fetchone() is not None

    def _renew(self, attempt: Attempt, instance: str, lease_s: float) -> bool:
        """Whether the attempt is the latest of a RUNNING tuning, whose lease then begins anew."""
        renewed = self._sql(
            f"UPDATE tunings SET lease_s = {NOW_S} + ?, tuner = ? WHERE name = ? AND attempt = ?"
            f" AND state = {Tuning.STATE_RUNNING} RETURNING number",
            *(lease_s, instance, *attempt),
        )
        return renewed.fetchone() is not None

    def _standing(self, attempt: Attempt) -> Standing:
        if self._holds(attempt):
            return Standing.KEPT
        tuning = self._one("name = ?", attempt.name)
        gone = tuning is None or tuning.state == Tuning.STATE_CANCELLED
        return Standing.CANCELLED if gone else Standing.LOST

    def _end(
        self, attempt: Attempt, mutate: Mutate, announce: Announce, is_the_same: Callable[[Tuning], bool]
    ) -> Standing:
        """End an attempt and the tuning, once: `is_the_same` tells an end that was reported before."""
        if self._holds(attempt):

            def end(tuning: Tuning) -> None:
                mutate(tuning)
                tuning.end_time.GetCurrentTime()

            self._change(attempt.name, end, announce)
            self._sql("UPDATE tunings SET lease_s = NULL, checkpoint = NULL WHERE name = ?", attempt.name)
            return Standing.KEPT
        ended = self._one("name = ? AND attempt = ?", *attempt)
        if ended is not None and ended.state in (Tuning.STATE_READY, Tuning.STATE_FAILED) and is_the_same(ended):
            return Standing.KEPT
        return self._standing(attempt)

    def _end_earlier(self, taker: Taker) -> None:
        """Give back what the taker's place still runs: as lost, if another process ran it."""
        rows = self._sql(
            f"SELECT name, tuner FROM tunings WHERE state = {Tuning.STATE_RUNNING}"
            " AND (tuner = ?1 OR (place != '' AND place = ?2))",
            *taker,
        ).fetchall()
        for name, tuner in rows:
            self._give_back(name, lost=tuner != taker.instance)

    def _give_back(self, name: str, *, lost: bool) -> None:
        """Queue a RUNNING tuning again, at its old place.

        A lost one keeps its tuner's instance for `_count_crashes`.
        """

        def back(tuning: Tuning) -> None:
            self._sql(
                "UPDATE tunings SET reached = ?, place = '', lease_s = NULL WHERE name = ?",
                tuning.progress.update,
                name,
            )
            if not lost:
                self._sql("UPDATE tunings SET tuner = '' WHERE name = ?", name)
            tuning.ClearField("progress")
            tuning.state = Tuning.STATE_QUEUED
            tuning.ClearField("start_time")

        self._change(name, back, _queued)

    def _count_crashes(self, tuner: str) -> None:
        """Count a crash of each lost tuning whose tuner was another instance than the one that answers now."""
        lost = f"state = {Tuning.STATE_QUEUED} AND tuner != ''"
        if tuner:
            # In SQL the right side of each assignment has the old values.
            crashed = self._sql(
                "UPDATE tunings SET crashes = CASE WHEN reached > furthest THEN 1 ELSE crashes + 1 END,"
                f" furthest = MAX(furthest, reached) WHERE {lost} AND tuner != ? RETURNING name, crashes",
                tuner,
            ).fetchall()
            for name, crashes in crashed:
                if crashes >= MAX_CRASHES:
                    self._fail_crashed(name)
        self._sql(f"UPDATE tunings SET tuner = '' WHERE {lost}")

    def _fail_crashed(self, name: str) -> None:
        error = to_status(
            Internal(
                f"the tuning was lost {MAX_CRASHES} times with the process that ran it",
                reason="WORKER_CRASHED",
                metadata={"attempts": str(MAX_CRASHES)},
            )
        )

        self._fail(name, error)

    def _fail(self, name: str, error: Status) -> None:
        def fail(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_FAILED
            tuning.error.CopyFrom(error)
            tuning.end_time.GetCurrentTime()

        self._change(name, fail, lambda _: TuningEvent(failed=error))

    def _queue(self) -> list[WaitingTenant]:
        """The tenants whose tunings are QUEUED, in order of their turns."""
        return [WaitingTenant(*row) for row in self._sql(QUEUE)]

    def _placed(self, number: int, tuning: Tuning, queue: list[WaitingTenant] | None = None) -> Tuning:
        """The tuning with its place in the queue, while it has one."""
        if tuning.state == Tuning.STATE_QUEUED:
            tenant = parse(tuning.name, "tunings").tenant
            (rank,) = self._sql(
                f"SELECT COUNT(*) FROM tunings WHERE state = {Tuning.STATE_QUEUED} AND tenant = ? AND number <= ?",
                *(tenant, number),
            ).fetchone()
            tuning.queue_position = position(self._queue() if queue is None else queue, tenant, rank)
        return tuning

    def _append(self, number: int, event: TuningEvent) -> None:
        name, sequence = self._sql(
            "UPDATE tunings SET last_event = last_event + 1 WHERE number = ? RETURNING name, last_event", number
        ).fetchone()
        event.sequence = sequence
        event.create_time.GetCurrentTime()
        self._sql("INSERT INTO events VALUES (?, ?, ?)", number, sequence, event.SerializeToString())
        self._sql("DELETE FROM events WHERE tuning = ? AND sequence <= ?", number, sequence - KEPT_EVENTS)
        self.file.after_commit(partial(self._wake, name))

    def _one(self, where: str, *values: object) -> Tuning | None:
        row = self._sql(f"SELECT number, blob FROM tunings WHERE {where}", *values).fetchone()
        return self._placed(row[0], Tuning.FromString(row[1])) if row else None

    def _existing(self, name: str) -> Tuning:
        tuning = self._one("name = ?", name)
        assert tuning is not None  # written in this very transaction
        return tuning


def _queued(tuning: Tuning) -> TuningEvent:
    return TuningEvent(queued=TuningEvent.Queued(position=tuning.queue_position))


def _ran_s(tuning: Tuning) -> float:
    """The seconds for which a tuner has had it."""
    return max(0.0, time.time() - tuning.start_time.ToMicroseconds() / 1e6) if tuning.HasField("start_time") else 0.0


def _count_end(state: Tuning.State) -> None:
    """Count a tuning that has come into this state from another."""
    if state == Tuning.STATE_QUEUED:
        metrics.TUNINGS_LOST.inc()
    elif state != Tuning.STATE_RUNNING:
        metrics.TUNING_ENDS.labels(Tuning.State.Name(state).removeprefix("STATE_").lower()).inc()
