"""The tables of tunings, events and requests, and what one transaction may do with them.

Everything here runs on the state file's thread, within a transaction.
"""

import hashlib
import time

from google.protobuf.message import DecodeError

from gateway import state_upgrade
from gateway.names import parse
from gateway.sqlite_file import SqliteFile
from gateway.tuning_queue import (
    KEPT_EVENTS,
    LIVE,
    MAX_CRASHES,
    Announce,
    CreateRequest,
    Kept,
    Mutate,
    Page,
    Taken,
)
from unitune.errors import Internal, InvalidArgument, NotFound, to_status
from unitune.v1.tuning_pb2 import Tuning, TuningEvent

SCHEMA_VERSION = 3
REQUESTS_KEPT_S = 24 * 3600.0

SCHEMA = f"""
CREATE TABLE tunings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    image TEXT NOT NULL,
    state INTEGER NOT NULL,
    position INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    tuner TEXT NOT NULL DEFAULT '', -- the instance that runs it, or that ran it when it was lost
    reached INTEGER NOT NULL DEFAULT 0, -- updates that were made when it was lost
    furthest INTEGER NOT NULL DEFAULT 0, -- the most updates of a run that crashed
    crashes INTEGER NOT NULL DEFAULT 0, -- since the one that got furthest
    last_event INTEGER NOT NULL DEFAULT 0,
    expire_s REAL,
    blob BLOB NOT NULL
);
CREATE UNIQUE INDEX live ON tunings (tenant, key) WHERE state IN ({", ".join(map(str, LIVE))});
CREATE INDEX by_tenant ON tunings (tenant, number);
CREATE INDEX by_image ON tunings (image);
CREATE INDEX by_state ON tunings (state);
CREATE TABLE events (
    tuning INTEGER, sequence INTEGER, blob BLOB NOT NULL, PRIMARY KEY (tuning, sequence)
) WITHOUT ROWID;
CREATE TABLE requests (
    tenant TEXT, request_id TEXT, body TEXT NOT NULL, tuning TEXT NOT NULL, create_s REAL NOT NULL,
    PRIMARY KEY (tenant, request_id)
) WITHOUT ROWID;
CREATE TABLE turns (tenant TEXT PRIMARY KEY, last_turn INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE services (name TEXT PRIMARY KEY, info BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE evictions (number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE);
"""

# From each earlier version to the next.
MIGRATIONS = {
    # Version 1 counted what the gateway itself lost, too, so its counts blame nobody.
    1: """
ALTER TABLE tunings ADD COLUMN tuner TEXT NOT NULL DEFAULT '';
ALTER TABLE tunings ADD COLUMN reached INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tunings ADD COLUMN furthest INTEGER NOT NULL DEFAULT 0;
UPDATE tunings SET crashes = 0;
CREATE TABLE services (name TEXT PRIMARY KEY, info BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE evictions (number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE);
""",
    # In version 2 the choices of a config were texts. What a service said is asked again, and a request that is sent
    # again finds its tuning by the key.
    2: """
UPDATE tunings SET blob = upgraded_tuning(blob);
UPDATE events SET blob = upgraded_event(blob);
DELETE FROM services;
DELETE FROM requests;
""",
}


# A tenant's first tuning comes before anybody's second; among firsts, the tenant whose turn is longest ago.
_ORDER = f"""
SELECT number, position FROM (
    SELECT number, position, COALESCE(last_turn, 0) AS turn,
           ROW_NUMBER() OVER (PARTITION BY tunings.tenant ORDER BY number) AS rank
    FROM tunings LEFT JOIN turns ON turns.tenant = tunings.tenant
    WHERE state = {Tuning.STATE_QUEUED}
) ORDER BY rank, turn, number
"""


class TuningTable:
    """The tables. `appended` collects, until its owner clears it, each tuning that got events and its last number."""

    def __init__(self, file: SqliteFile) -> None:
        self._sql = file.sql
        self.appended: dict[str, int] = {}

    def by_name(self, name: str) -> Tuning | None:
        """A tuning as it is."""
        return self._one("name = ?", name)

    def live(self, tenant: str, key: str) -> Tuning | None:
        """The live tuning of a key."""
        return self._one("tenant = ? AND key = ? AND state IN (?, ?, ?)", tenant, key, *LIVE)

    def recall(self, tenant: str, request: CreateRequest) -> Tuning | None:
        """What this request made earlier. Raises InvalidArgument or NotFound, as TuningStore says."""
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
        tuning = self.by_name(row[1])
        if tuning is None:
            raise NotFound("the tuning that this request made is deleted", reason="TUNING_NOT_FOUND")
        return tuning

    def remember(self, tenant: str, request: CreateRequest, name: str) -> None:
        """Let `recall` find the tuning for a day."""
        now_s = time.time()
        self._sql("DELETE FROM requests WHERE create_s < ?", now_s - REQUESTS_KEPT_S)
        self._sql("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", tenant, *request, name, now_s)

    def insert(self, tenant: str, tuning: Tuning) -> Tuning:
        """Queue a new tuning."""
        tuning.etag = _etag(tuning)
        columns = (tuning.name, tenant, tuning.key, tuning.image, tuning.state, tuning.SerializeToString())
        self._sql("INSERT INTO tunings (name, tenant, key, image, state, blob) VALUES (?, ?, ?, ?, ?, ?)", *columns)
        self.renumber()
        return self._certain("name = ?", tuning.name)

    def page(self, tenant: str, state: int, after: int, size: int) -> Page:
        """Tunings below the row number `after`, the newest first; 0 means all."""
        rows = self._sql(
            "SELECT number, blob, position FROM tunings WHERE tenant = ?1 AND (?2 = 0 OR state = ?2)"
            " AND (?3 = 0 OR number < ?3) ORDER BY number DESC LIMIT ?4",
            *(tenant, state, after, size + 1),
        ).fetchall()
        tunings = [_tuning(blob, position) for _, blob, position in rows[:size]]
        return Page(tunings, after=rows[size - 1][0] if len(rows) > size else 0)

    def running(self) -> list[str]:
        """Names of the RUNNING tunings."""
        return [name for (name,) in self._sql("SELECT name FROM tunings WHERE state = ?", Tuning.STATE_RUNNING)]

    def expired(self, now_s: float) -> list[str]:
        """Names of the READY tunings whose time has come."""
        rows = self._sql("SELECT name FROM tunings WHERE state = ? AND expire_s <= ?", Tuning.STATE_READY, now_s)
        return [name for (name,) in rows]

    def uses_image(self, image: str) -> bool:
        """Whether any tuning was made from this image."""
        # The first image has an index. Further ones have no column of their own: their names are in the message.
        row = self._sql(
            "SELECT 1 FROM tunings WHERE image = ?"
            " UNION ALL SELECT 1 FROM tunings WHERE tenant = ? AND instr(blob, ?) LIMIT 1",
            *(image, _tenant(image), image.encode()),
        )
        return row.fetchone() is not None

    def live_user_of(self, image: str) -> str | None:
        """The name of a live tuning that was made from this image."""
        live = ", ".join(map(str, LIVE))
        own = f"SELECT name FROM tunings WHERE tenant = ? AND state IN ({live}) AND instr(blob, ?)"
        row = self._sql(own, _tenant(image), image.encode())
        found = row.fetchone()
        return found[0] if found else None

    def change(self, name: str, mutate: Mutate, announce: Announce | None) -> Tuning | None:
        """Change a tuning and tell of it, as TuningStore says."""
        row = self._sql("SELECT number, blob, position FROM tunings WHERE name = ?", name).fetchone()
        if row is None:
            return None
        number, blob, position = row
        tuning = Tuning.FromString(blob)
        before = tuning.state
        mutate(tuning)
        if _etag(tuning) == tuning.etag:
            return _tuning(blob, position)
        tuning.etag = _etag(tuning)
        self._sql(
            "UPDATE tunings SET state = ?, expire_s = ?, blob = ? WHERE number = ?",
            tuning.state,
            tuning.expire_time.ToMicroseconds() / 1e6 if tuning.HasField("expire_time") else None,
            tuning.SerializeToString(),
            number,
        )
        if announce is not None:
            self._append(number, announce(tuning))
        if before != tuning.state:
            self._sql("UPDATE tunings SET position = NULL WHERE number = ?", number)
            self.renumber()
        return self._certain("number = ?", number)

    def remove(self, name: str) -> None:
        """Forget a tuning and its events."""
        self._sql("DELETE FROM events WHERE tuning = (SELECT number FROM tunings WHERE name = ?)", name)
        self._sql("DELETE FROM tunings WHERE name = ?", name)
        self.renumber()
        self.appended[name] = 1 << 62  # above every number that a watcher can have: it wakes, and finds it gone

    def is_any_queued(self) -> bool:
        """Whether `take` would give one."""
        return self._sql(_ORDER).fetchone() is not None

    def take(self, tuner: str) -> Taken | None:
        """Make the next tuning RUNNING at this tuner."""
        row = self._sql(_ORDER).fetchone()
        if row is None:
            return None
        name, tenant, attempt = self._sql(
            "UPDATE tunings SET attempt = attempt + 1, tuner = ? WHERE number = ? RETURNING name, tenant, attempt",
            *(tuner, row[0]),
        ).fetchone()
        self._sql(
            "INSERT INTO turns SELECT ?, COALESCE(MAX(last_turn), 0) + 1 FROM turns WHERE true"
            " ON CONFLICT (tenant) DO UPDATE SET last_turn = excluded.last_turn",
            tenant,
        )

        def start(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_RUNNING
            tuning.start_time.GetCurrentTime()

        self.change(name, start, lambda _: TuningEvent(started=TuningEvent.Started(attempt=attempt)))
        return Taken(self._certain("name = ?", name), attempt)

    def give_back(self, name: str, *, lost: bool) -> None:
        """Queue a RUNNING tuning again; one that was lost keeps its tuner's instance for `count_crashes`."""

        def back(tuning: Tuning) -> None:
            if tuning.state != Tuning.STATE_RUNNING:
                return
            reached = tuning.progress.update
            self._sql("UPDATE tunings SET reached = ? WHERE name = ?", reached, name)
            if not lost:
                self._sql("UPDATE tunings SET tuner = '' WHERE name = ?", name)
            tuning.ClearField("progress")
            tuning.state = Tuning.STATE_QUEUED
            tuning.ClearField("start_time")

        self.change(name, back, None)

    def count_crashes(self, tuner: str) -> None:
        """Judge what was lost, now that this tuner answers: with another instance it has crashed."""
        lost = f"state = {Tuning.STATE_QUEUED} AND tuner != ''"
        if tuner:
            # The old values are on the right of each assignment.
            crashed = self._sql(
                "UPDATE tunings SET crashes = CASE WHEN reached > furthest THEN 1 ELSE crashes + 1 END,"
                f" furthest = MAX(furthest, reached) WHERE {lost} AND tuner != ? RETURNING name, crashes",
                tuner,
            ).fetchall()
            for name, crashes in crashed:
                if crashes >= MAX_CRASHES:
                    self._worn_out(name)
        self._sql(f"UPDATE tunings SET tuner = '' WHERE {lost}")

    def _worn_out(self, name: str) -> None:
        error = to_status(
            Internal(
                f"the tuning was lost {MAX_CRASHES} times with the process that ran it",
                reason="WORKER_CRASHED",
                metadata={"attempts": str(MAX_CRASHES)},
            )
        )

        def fail(tuning: Tuning) -> None:
            tuning.state = Tuning.STATE_FAILED
            tuning.error.CopyFrom(error)
            tuning.end_time.GetCurrentTime()

        self.change(name, fail, lambda _: TuningEvent(failed=error))

    def known(self) -> dict[str, bytes]:
        """What each service last said of itself."""
        return dict(self._sql("SELECT name, info FROM services").fetchall())

    def know(self, service: str, info: bytes) -> None:
        """Replace what is known of a service."""
        self._sql("INSERT OR REPLACE INTO services VALUES (?, ?)", service, info)

    def renumber(self) -> None:
        """Store each QUEUED tuning's position, and tell those that moved."""
        for index, (number, position) in enumerate(self._sql(_ORDER).fetchall()):
            if position != index:
                self._sql("UPDATE tunings SET position = ? WHERE number = ?", index, number)
                self._append(number, TuningEvent(queued=TuningEvent.Queued(position=index)))

    def read(self, name: str, after: int) -> Kept | None:
        """The kept events above a number."""
        row = self._sql("SELECT number, last_event, blob, position FROM tunings WHERE name = ?", name).fetchone()
        if row is None:
            return None
        number, last, blob, position = row
        rows = self._sql("SELECT blob FROM events WHERE tuning = ? AND sequence > ? ORDER BY sequence", number, after)
        events = [TuningEvent.FromString(event) for (event,) in rows]
        first = events[0].sequence if events else last + 1
        return Kept(_tuning(blob, position), events, last, gap=first > after + 1)

    def _append(self, number: int, event: TuningEvent) -> None:
        name, sequence = self._sql(
            "UPDATE tunings SET last_event = last_event + 1 WHERE number = ? RETURNING name, last_event", number
        ).fetchone()
        event.sequence = sequence
        event.create_time.GetCurrentTime()
        self._sql("INSERT INTO events VALUES (?, ?, ?)", number, sequence, event.SerializeToString())
        self._sql("DELETE FROM events WHERE tuning = ? AND sequence <= ?", number, sequence - KEPT_EVENTS)
        self.appended[name] = sequence

    def _one(self, where: str, *values: object) -> Tuning | None:
        row = self._sql(f"SELECT blob, position FROM tunings WHERE {where}", *values).fetchone()
        return _tuning(*row) if row else None

    def _certain(self, where: str, *values: object) -> Tuning:
        tuning = self._one(where, *values)
        assert tuning is not None  # written in this very transaction
        return tuning


def _tenant(name: str) -> str:
    return parse(name, "images").tenant


def _tuning(blob: bytes, position: int | None) -> Tuning:
    tuning = Tuning.FromString(blob)
    tuning.queue_position = position or 0
    return tuning


def _etag(tuning: Tuning) -> str:
    """A digest of all that a tuning says, except its place in the queue, which others change."""
    plain = Tuning()
    plain.CopyFrom(tuning)
    plain.ClearField("etag")
    plain.ClearField("queue_position")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()[:16]


def upgraded_tuning(blob: bytes) -> bytes:
    """A tuning of schema 2 as today. What cannot be read stays as it is: whoever asks for it is told."""
    try:
        tuning = Tuning.FromString(blob)
    except DecodeError:
        return blob
    state_upgrade.upgrade(tuning.config)
    tuning.etag = _etag(tuning)
    return tuning.SerializeToString()


def upgraded_event(blob: bytes) -> bytes:
    """The same of an event, which may tell of a tuning."""
    try:
        event = TuningEvent.FromString(blob)
    except DecodeError:
        return blob
    kind = event.WhichOneof("event")
    if kind in ("snapshot", "ready", "cancelled"):
        told = getattr(event, kind)
        told.CopyFrom(Tuning.FromString(upgraded_tuning(told.SerializeToString())))
    return event.SerializeToString()


MIGRATION_FUNCTIONS = (upgraded_tuning, upgraded_event)
