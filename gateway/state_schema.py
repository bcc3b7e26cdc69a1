"""The tables of the state, for SQLite and PostgreSQL, and how what an earlier version made gets them."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from gateway.tuning_records import LIVE
from unitune.v1.tuning_pb2 import Tuning

SCHEMA_VERSION = 8
FIRST_SHARED_VERSION = 7  # the first that PostgreSQL has: a migration from it or a later one is for both databases
# The oldest version of this program that goes on with these tables, since gateways of two versions run side by side in
# an upgrade. A migration adds; what an older version reads or writes goes away, or changes its meaning, one release
# later. Then this is raised.
READABLE_FROM = 7

# As texts: PostgreSQL finds a partial index for ON CONFLICT only by its predicate without parameters.
IS_LIVE = text(f"state IN ({', '.join(map(str, LIVE))})")
IS_QUEUED = text(f"state = {Tuning.STATE_QUEUED}")
IS_RUNNING = text(f"state = {Tuning.STATE_RUNNING}")
IS_TO_TRIM = text("trim_s IS NOT NULL")

TABLES = MetaData()
_number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only what is called INTEGER

tunings = Table(
    "tunings",
    TABLES,
    Column("number", _number, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("tenant", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("image", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("base_model", Text, nullable=False, server_default=""),
    Column("place", Text, nullable=False, server_default=""),  # of the tuner that runs it
    # The instance that runs it, or that ran it when it was lost.
    Column("tuner", Text, nullable=False, server_default=""),
    Column("lease_s", Double),  # when a RUNNING one is lost unless its tuner reports, in Unix seconds
    Column("checkpoint", LargeBinary),  # from which the next attempt goes on
    Column("reached", Integer, nullable=False, server_default=text("0")),  # updates that were made when it was lost
    Column("furthest", Integer, nullable=False, server_default=text("0")),  # the most updates of a run that crashed
    Column("crashes", Integer, nullable=False, server_default=text("0")),  # since the one that got furthest
    Column("last_event", BigInteger, nullable=False, server_default=text("0")),
    Column("expire_s", Double),
    Column("trace", Text, nullable=False, server_default=""),  # of the call that made it, as W3C traceparent
    Column("blob", LargeBinary, nullable=False),
    Column("trim_s", Double),  # when all events of one that has ended go but the last, in Unix seconds
    sqlite_autoincrement=True,
)
Index("live", tunings.c.tenant, tunings.c.key, unique=True, sqlite_where=IS_LIVE, postgresql_where=IS_LIVE)
Index("by_tenant", tunings.c.tenant, tunings.c.number)
Index("by_image", tunings.c.image)
Index("by_state", tunings.c.state)
Index("queued", tunings.c.tenant, tunings.c.number, sqlite_where=IS_QUEUED, postgresql_where=IS_QUEUED)
Index("leased", tunings.c.lease_s, sqlite_where=IS_RUNNING, postgresql_where=IS_RUNNING)
Index("to_trim", tunings.c.trim_s, sqlite_where=IS_TO_TRIM, postgresql_where=IS_TO_TRIM)

events = Table(
    "events",
    TABLES,
    Column("tuning", _number),
    Column("sequence", BigInteger),
    Column("blob", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tuning", "sequence"),
    sqlite_with_rowid=False,
)
requests = Table(
    "requests",
    TABLES,
    Column("tenant", Text),
    Column("request_id", Text),
    Column("body", Text, nullable=False),
    Column("tuning", Text, nullable=False),
    Column("create_s", Double, nullable=False),
    PrimaryKeyConstraint("tenant", "request_id"),
    sqlite_with_rowid=False,
)
Index("by_age", requests.c.create_s)
# A tenant that has ever had a tuning. Whoever counts its tunings, or takes one, locks its row.
turns = Table(
    "turns",
    TABLES,
    Column("tenant", Text, primary_key=True),
    Column("last_turn", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
services = Table(
    "services",
    TABLES,
    Column("name", Text, primary_key=True),
    Column("info", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
evictions = Table(
    "evictions",
    TABLES,
    Column("number", _number, primary_key=True, autoincrement=True),
    Column("digest", Text, nullable=False),
    UniqueConstraint("digest"),
    sqlite_autoincrement=True,
)
api_keys = Table(
    "api_keys",
    TABLES,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the key
    Column("scopes", Text, nullable=False),
    Column("create_s", Double, nullable=False),
    Column("expire_s", Double),
    Column("revoke_s", Double),
    sqlite_with_rowid=False,
)
# What a tenant has used on a day of UTC, such as 2026-01-31.
usage = Table(
    "usage",
    TABLES,
    Column("tenant", Text),
    Column("day", Text),
    *(Column(name, Integer, nullable=False, server_default=text("0")) for name in ("images", "tunings", "edits")),
    *(Column(name, Double, nullable=False, server_default=text("0")) for name in ("tuner_s", "sampler_s")),
    PrimaryKeyConstraint("tenant", "day"),
    sqlite_with_rowid=False,
)
# What gateways hold against one another, such as a picture, for a time at most.
holds = Table(
    "holds",
    TABLES,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until_s", Double, nullable=False),
    sqlite_with_rowid=False,
)
# When a gateway last saw a tuner of a base model.
seen_models = Table(
    "seen_models",
    TABLES,
    Column("gateway", Text),
    Column("base_model", Text),
    Column("seen_s", Double, nullable=False),
    PrimaryKeyConstraint("gateway", "base_model"),
    sqlite_with_rowid=False,
)
# Edits of all gateways that run, or ended a short time ago.
edits = Table(
    "edits",
    TABLES,
    Column("name", Text, primary_key=True),
    Column("gateway", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("end_s", Double),
    Column("blob", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
Index("by_gateway", edits.c.gateway)
# The edit that a caller's request has, and whether it is counted in what the tenant has used.
edit_requests = Table(
    "edit_requests",
    TABLES,
    Column("tenant", Text),
    Column("request_id", Text),
    Column("body", Text, nullable=False),
    Column("edit", Text, nullable=False),
    Column("is_counted", Integer, nullable=False, server_default=text("0")),
    Column("create_s", Double, nullable=False),
    PrimaryKeyConstraint("tenant", "request_id"),
)
Index("edit_requests_by_age", edit_requests.c.create_s)
# When each gateway last showed a sign of life.
gateways = Table(
    "gateways",
    TABLES,
    Column("id", Text, primary_key=True),
    Column("seen_s", Double, nullable=False),
    sqlite_with_rowid=False,
)

_API_KEYS_OF_VERSION_4 = """
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    digest BLOB NOT NULL,
    scopes TEXT NOT NULL,
    create_s REAL NOT NULL,
    expire_s REAL,
    revoke_s REAL
) WITHOUT ROWID;
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
    # again finds its tuning by the key. The functions are those of state_upgrade.
    2: """
UPDATE tunings SET blob = upgraded_tuning(blob);
UPDATE events SET blob = upgraded_event(blob);
DELETE FROM services;
DELETE FROM requests;
""",
    3: _API_KEYS_OF_VERSION_4,
    # Version 4 kept each tuning's position in the queue, and had no leases. The function is that of state_upgrade.
    4: f"""
ALTER TABLE tunings DROP COLUMN position;
ALTER TABLE tunings ADD COLUMN base_model TEXT NOT NULL DEFAULT '';
ALTER TABLE tunings ADD COLUMN place TEXT NOT NULL DEFAULT '';
ALTER TABLE tunings ADD COLUMN lease_s REAL;
ALTER TABLE tunings ADD COLUMN checkpoint BLOB;
UPDATE tunings SET base_model = CAST(base_model_of(blob) AS TEXT);
CREATE INDEX queued ON tunings (tenant, number) WHERE state = {Tuning.STATE_QUEUED};
CREATE INDEX leased ON tunings (lease_s) WHERE state = {Tuning.STATE_RUNNING};
""",
    # A tenant that has tunings is known from the start.
    5: """
ALTER TABLE tunings ADD COLUMN trace TEXT NOT NULL DEFAULT '';
CREATE TABLE usage (
    tenant TEXT NOT NULL,
    day TEXT NOT NULL,
    images INTEGER NOT NULL DEFAULT 0,
    tunings INTEGER NOT NULL DEFAULT 0,
    edits INTEGER NOT NULL DEFAULT 0,
    tuner_s REAL NOT NULL DEFAULT 0,
    sampler_s REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, day)
) WITHOUT ROWID;
INSERT INTO usage (tenant, day) SELECT DISTINCT tenant, date('now') FROM tunings;
""",
    # Version 6 had a turn only for a tenant that was served.
    6: """
INSERT OR IGNORE INTO turns SELECT DISTINCT tenant, 0 FROM tunings;
CREATE INDEX by_age ON requests (create_s);
CREATE TABLE holds (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE seen_models (
    gateway TEXT, base_model TEXT, seen_s REAL NOT NULL, PRIMARY KEY (gateway, base_model)
) WITHOUT ROWID;
CREATE TABLE edits (
    name TEXT PRIMARY KEY, gateway TEXT NOT NULL, state INTEGER NOT NULL, end_s REAL, blob BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_gateway ON edits (gateway);
CREATE TABLE gateways (id TEXT PRIMARY KEY, seen_s REAL NOT NULL) WITHOUT ROWID;
""",
    # For SQLite and PostgreSQL.
    7: f"""
ALTER TABLE tunings ADD COLUMN trim_s DOUBLE PRECISION;
UPDATE tunings SET trim_s = 0 WHERE state NOT IN ({Tuning.STATE_QUEUED}, {Tuning.STATE_RUNNING});
CREATE INDEX to_trim ON tunings (trim_s) WHERE trim_s IS NOT NULL;
CREATE TABLE edit_requests (
    tenant TEXT NOT NULL, request_id TEXT NOT NULL, body TEXT NOT NULL, edit TEXT NOT NULL,
    is_counted INTEGER NOT NULL DEFAULT 0, create_s DOUBLE PRECISION NOT NULL, PRIMARY KEY (tenant, request_id)
);
CREATE INDEX edit_requests_by_age ON edit_requests (create_s);
""",
}
