"""A state file made to look as an older version left it."""

import sqlite3


def take_sharing_out(old: sqlite3.Connection) -> None:
    """Undo what version 6 added."""
    old.execute("DROP INDEX by_age")
    for table in ("holds", "seen_models"):
        old.execute(f"DROP TABLE {table}")


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
