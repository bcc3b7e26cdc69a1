"""The queue's order, and a tuning's place in it.

Tenants take turns: the one that was served longest ago is next, with its oldest tuning. So a tenant's first tuning
comes before anybody's second. A tenant that runs as many as it may is passed over until one of them ends. A place is
computed when it is asked for. It is an estimate: tunings that come later, of tenants that have none now, may be served
before, and those of a tenant that is passed over later.
"""

from collections.abc import Sequence
from typing import NamedTuple

LEASE_S = 30.0  # that an attempt lasts without a report


class WaitingTenant(NamedTuple):
    """A tenant whose tunings are QUEUED: how many they are, the number of the oldest, and the tenant's last turn."""

    tenant: str
    num_queued: int
    first: int
    last_turn: int


def position(queue: Sequence[WaitingTenant], tenant: str, rank: int) -> int:
    """The tunings ahead of the one that has the place `rank`, from 1, among its tenant's; `queue` is in order of turns.

    Of every other tenant those before `rank` are ahead, and the one of the same rank if that tenant's turn comes first.
    """
    ahead, comes_first = rank - 1, True
    for other in queue:
        if other.tenant == tenant:
            comes_first = False
        else:
            ahead += min(other.num_queued, rank if comes_first else rank - 1)
    return ahead
