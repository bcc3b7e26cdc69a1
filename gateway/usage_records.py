"""What each tenant has used, by the day, as the state keeps it. Each function is a part of a transaction.

Days are those of UTC. A row is kept for KEPT_DAYS, so a tenant has at most so many.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

KEPT_DAYS = 400

USAGE = """
CREATE TABLE usage (
    tenant TEXT NOT NULL,
    day TEXT NOT NULL, -- of UTC, as 2026-01-31
    images INTEGER NOT NULL DEFAULT 0,
    tunings INTEGER NOT NULL DEFAULT 0,
    edits INTEGER NOT NULL DEFAULT 0,
    tuner_s REAL NOT NULL DEFAULT 0,
    sampler_s REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, day)
) WITHOUT ROWID;
"""

Sql = Callable[..., Any]  # runs a statement with its values


@dataclass(frozen=True)
class Used:
    """Pictures that were kept, tunings that were made, edits that came to their turn, and the seconds for which a tuner
    had tunings and the sampler edits."""

    images: int = 0
    tunings: int = 0
    edits: int = 0
    tuner_s: float = 0.0
    sampler_s: float = 0.0

    def __add__(self, other: "Used") -> "Used":
        return Used(*(getattr(self, name) + getattr(other, name) for name in COLUMNS))

    @property
    def values(self) -> tuple[float, ...]:
        """In the order of COLUMNS."""
        return tuple(getattr(self, name) for name in COLUMNS)


COLUMNS = tuple(field.name for field in fields(Used))
_ADDED = ", ".join(f"{name} = usage.{name} + excluded.{name}" for name in COLUMNS)
_SUMS = ", ".join(f"SUM(CASE WHEN day BETWEEN ? AND ? THEN {name} ELSE 0 END)" for name in COLUMNS)


def today() -> date:
    """The day to count on."""
    return datetime.now(UTC).date()


def add(sql: Sql, tenant: str, used: Used) -> None:
    """Count for a tenant, today."""
    sql(
        f"INSERT INTO usage (tenant, day, {', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        f" ON CONFLICT (tenant, day) DO UPDATE SET {_ADDED}",
        *(tenant, today().isoformat(), *used.values),
    )


def forget_old(sql: Sql) -> None:
    """Delete what is older than KEPT_DAYS."""
    sql("DELETE FROM usage WHERE day < ?", (today() - timedelta(days=KEPT_DAYS)).isoformat())


def page(sql: Sql, first: date, last: date, after: str, size: int) -> list[tuple[str, Used]]:
    """What the tenants whose names come after another have used from day to day, both included; in the order of the
    names. A tenant that is known has a row, though it used nothing in that time."""
    days = (first.isoformat(), last.isoformat())
    rows = sql(
        f"SELECT tenant, {_SUMS} FROM usage WHERE tenant > ? GROUP BY tenant ORDER BY tenant LIMIT ?",
        *(days * len(COLUMNS) + (after, size)),
    ).fetchall()
    return [(tenant, Used(*sums)) for tenant, *sums in rows]


def of(sql: Sql, tenant: str, first: date, last: date) -> Used:
    """What one tenant has used from day to day."""
    days = (first.isoformat(), last.isoformat())
    *sums, rows = sql(
        f"SELECT {_SUMS}, COUNT(*) FROM usage WHERE tenant = ?", *(days * len(COLUMNS) + (tenant,))
    ).fetchone()
    return Used(*sums) if rows else Used()
