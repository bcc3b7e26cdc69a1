"""The tables of the state file, and how an older file gets them."""

from gateway.tuning_records import LIVE
from gateway.usage_records import USAGE
from unitune.v1.tuning_pb2 import Tuning

SCHEMA_VERSION = 6

API_KEYS = """
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    digest BLOB NOT NULL, -- SHA-256 of the key
    scopes TEXT NOT NULL,
    create_s REAL NOT NULL,
    expire_s REAL,
    revoke_s REAL
) WITHOUT ROWID;
"""

SCHEMA = f"""
CREATE TABLE tunings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    image TEXT NOT NULL,
    state INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    base_model TEXT NOT NULL DEFAULT '',
    place TEXT NOT NULL DEFAULT '', -- of the tuner that runs it
    tuner TEXT NOT NULL DEFAULT '', -- the instance that runs it, or that ran it when it was lost
    lease_s REAL, -- when a RUNNING one is lost unless its tuner reports, in Unix seconds
    checkpoint BLOB, -- from which the next attempt goes on
    reached INTEGER NOT NULL DEFAULT 0, -- updates that were made when it was lost
    furthest INTEGER NOT NULL DEFAULT 0, -- the most updates of a run that crashed
    crashes INTEGER NOT NULL DEFAULT 0, -- since the one that got furthest
    last_event INTEGER NOT NULL DEFAULT 0,
    expire_s REAL,
    trace TEXT NOT NULL DEFAULT '', -- of the call that made it, as W3C traceparent
    blob BLOB NOT NULL
);
CREATE UNIQUE INDEX live ON tunings (tenant, key) WHERE state IN ({", ".join(map(str, LIVE))});
CREATE INDEX by_tenant ON tunings (tenant, number);
CREATE INDEX by_image ON tunings (image);
CREATE INDEX by_state ON tunings (state);
CREATE INDEX queued ON tunings (tenant, number) WHERE state = {Tuning.STATE_QUEUED};
CREATE INDEX leased ON tunings (lease_s) WHERE state = {Tuning.STATE_RUNNING};
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
{API_KEYS}{USAGE}"""

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
    3: API_KEYS,
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
    5: f"""
ALTER TABLE tunings ADD COLUMN trace TEXT NOT NULL DEFAULT '';
{USAGE}
INSERT INTO usage (tenant, day) SELECT DISTINCT tenant, date('now') FROM tunings;
""",
}

# The clock is the database's: several gateways would not agree on theirs.
NOW_S = "((julianday('now') - 2440587.5) * 86400)"

# Who waits: each tenant with the number of its QUEUED tunings and the first of them, in the order of being served next.
# That is the tenant that was served longest ago. Of those that never were, it is the one that has waited longest.
QUEUE = f"""
SELECT tunings.tenant, COUNT(*), MIN(number), COALESCE(last_turn, 0)
FROM tunings LEFT JOIN turns ON turns.tenant = tunings.tenant
WHERE state = {Tuning.STATE_QUEUED} GROUP BY tunings.tenant ORDER BY 4, 3
"""
