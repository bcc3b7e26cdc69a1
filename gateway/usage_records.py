"""What each tenant has used, by the day, as the state keeps it. Each function is a part of a transaction.

Days are those of UTC. A row is kept for KEPT_DAYS, so a tenant has at most so many.
"""

from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Text, bindparam, case, delete, func, select

from gateway.database import Transaction
from gateway.dialects import Upsert
from gateway.state_schema import usage

KEPT_DAYS = 400


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

_tenant, _day = bindparam("the_tenant", type_=Text), bindparam("the_day", type_=Text)
_first, _last = bindparam("first", type_=Text), bindparam("last", type_=Text)
_ADD = Upsert(
    usage,
    lambda insert: insert.values(
        tenant=_tenant, day=_day, **{name: bindparam(f"more_{name}") for name in COLUMNS}
    ).on_conflict_do_update(
        index_elements=["tenant", "day"], set_={name: usage.c[name] + insert.excluded[name] for name in COLUMNS}
    ),
)
_FORGET = delete(usage).where(usage.c.day < _first)
_sums = [func.sum(case((usage.c.day.between(_first, _last), usage.c[name]), else_=0)) for name in COLUMNS]
_PAGE = (
    select(usage.c.tenant, *_sums)
    .where(usage.c.tenant > _tenant)
    .group_by(usage.c.tenant)
    .order_by(usage.c.tenant)
    .limit(bindparam("most"))
)
_OF = select(func.count(), *_sums).where(usage.c.tenant == _tenant)


def today() -> date:
    """The day to count on."""
    return datetime.now(UTC).date()


def add(tx: Transaction, tenant: str, used: Used) -> None:
    """Count for a tenant, today."""
    more = {f"more_{name}": value for name, value in zip(COLUMNS, used.values, strict=True)}
    tx.run(_ADD, the_tenant=tenant, the_day=today().isoformat(), **more)


def forget_old(tx: Transaction) -> None:
    """Delete what is older than KEPT_DAYS."""
    tx.run(_FORGET, first=(today() - timedelta(days=KEPT_DAYS)).isoformat())


def page(tx: Transaction, first: date, last: date, after: str, size: int) -> list[tuple[str, Used]]:
    """What the tenants whose names come after another have used from day to day, both included; in the order of the
    names. A tenant that is known has a row, though it used nothing in that time."""
    rows = tx.rows(_PAGE, the_tenant=after, first=first.isoformat(), last=last.isoformat(), most=size)
    return [(tenant, Used(*sums)) for tenant, *sums in rows]


def of(tx: Transaction, tenant: str, first: date, last: date) -> Used:
    """What one tenant has used from day to day."""
    days, *sums = tx.row(_OF, the_tenant=tenant, first=first.isoformat(), last=last.isoformat())
    return Used(*sums) if days else Used()
