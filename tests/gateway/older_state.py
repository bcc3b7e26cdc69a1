"""A state file made to look as an older version left it."""

import sqlite3


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
