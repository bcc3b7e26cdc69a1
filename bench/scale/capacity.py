"""What a number of users asks of gateways, database and object store at the peak, against what each can do."""

import math
from dataclasses import dataclass

from bench.scale.costs import Costs
from bench.scale.demand import Demand

GATEWAY_LOAD = 0.6  # of a core, at which a gateway's autoscaler adds another
BATCHES_PER_S = 2.0  # of progress, each a transaction with a notification: gateway/report_batch.py
CONNECTIONS = 9  # to the database, of each gateway: gateway/postgres.py
# Transactions of a tuning that notify: create, take, end.
TUNING_COMMITS = 3
# Objects written and read. Of an edit: its picture and what is known of it. Of a tuning: a picture and what is known of
# it, read by the tuner; weights and their manifest, read by a sampler.
EDIT_PUTS, TUNING_PUTS, TUNING_GETS = 2, 4, 4
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html: of each prefix, to begin with.
PUTS_PER_S, GETS_PER_S = 3500, 5500


@dataclass(frozen=True)
class Ceilings:
    """What one database does, in transactions a second: `python -m bench.scale.commits`."""

    commits_per_s: float
    notifying_per_s: float
    connections: int = 500


@dataclass(frozen=True)
class Asked:
    """One thing that is asked, of whom, and how much of it there may be. Without a ceiling one adds more of them."""

    what: str
    amount: float
    ceiling: float | None

    @property
    def share(self) -> float | None:
        """Of the ceiling."""
        return None if self.ceiling is None else self.amount / self.ceiling


def asked(demand: Demand, costs: Costs, ceilings: Ceilings) -> list[Asked]:
    """Everything, at the peak of the day."""
    visits = demand.rate(43200.0)
    edits, tunings = visits * demand.edits, visits * demand.tuned_share
    gateways = max(2, math.ceil(edits * costs.gateway_cpu_s / GATEWAY_LOAD))
    notifying = TUNING_COMMITS * tunings + BATCHES_PER_S * gateways
    return [
        Asked("samplers that compute", edits * costs.edit_s, None),
        Asked("tuners that compute", tunings * costs.tuning_s, None),
        Asked("gateways, cores", gateways, None),
        Asked("commits/s", notifying + edits * costs.edit_commits, ceilings.commits_per_s),
        Asked("notifying commits/s", notifying, ceilings.notifying_per_s),
        Asked("connections to the database", CONNECTIONS * gateways, ceilings.connections),
        Asked("objects written/s", EDIT_PUTS * edits + TUNING_PUTS * tunings, PUTS_PER_S),
        Asked("objects read/s", TUNING_GETS * tunings, GETS_PER_S),
    ]
