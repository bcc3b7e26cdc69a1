"""A state file made to look as an older version left it."""

import sqlite3

# As version 5 made the file, the last whose statements were SQLite's alone.
FIFTH_SCHEMA = """
CREATE TABLE tunings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    image TEXT NOT NULL,
    state INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    base_model TEXT NOT NULL DEFAULT '',
    place TEXT NOT NULL DEFAULT '',
    tuner TEXT NOT NULL DEFAULT '',
    lease_s REAL,
    checkpoint BLOB,
    reached INTEGER NOT NULL DEFAULT 0,
    furthest INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    last_event INTEGER NOT NULL DEFAULT 0,
    expire_s REAL,
    blob BLOB NOT NULL
);
CREATE UNIQUE INDEX live ON tunings (tenant, key) WHERE state IN (1, 2, 3);
CREATE INDEX by_tenant ON tunings (tenant, number);
CREATE INDEX by_image ON tunings (image);
CREATE INDEX by_state ON tunings (state);
CREATE INDEX queued ON tunings (tenant, number) WHERE state = 1;
CREATE INDEX leased ON tunings (lease_s) WHERE state = 2;
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
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, digest BLOB NOT NULL, scopes TEXT NOT NULL, create_s REAL NOT NULL,
    expire_s REAL, revoke_s REAL
) WITHOUT ROWID;
PRAGMA user_version = 5;
"""


def take_joining_out(old: sqlite3.Connection) -> None:
    """Undo what version 8 added."""
    for index in ("to_trim", "edit_requests_by_age"):
        old.execute(f"DROP INDEX {index}")
    old.execute("ALTER TABLE tunings DROP COLUMN trim_s")
    old.execute("DROP TABLE edit_requests")


def take_sharing_out(old: sqlite3.Connection) -> None:
    """Undo what version 7 added: the tables are those of version 6."""
    take_joining_out(old)
    old.execute("DROP INDEX by_age")
    for table in ("holds", "seen_models", "edits", "gateways"):
        old.execute(f"DROP TABLE {table}")


def take_usage_out(old: sqlite3.Connection) -> None:
    """Undo what version 6 added: the tables are those of version 5."""
    old.execute("ALTER TABLE tunings DROP COLUMN trace")
    old.execute("DROP TABLE usage")


def take_leases_out(old: sqlite3.Connection) -> None:
    """Undo what version 5 added: the tables are those of version 4."""
    for index in ("queued", "leased"):
        old.execute(f"DROP INDEX {index}")
    for column in ("base_model", "place", "lease_s", "checkpoint"):
        old.execute(f"ALTER TABLE tunings DROP COLUMN {column}")
    old.execute("ALTER TABLE tunings ADD COLUMN position INTEGER")


def take_keys_out(old: sqlite3.Connection) -> None:
    """Undo what version 4 added."""
    old.execute("DROP TABLE api_keys")
