"""What an edit and a tuning take, for the simulation: measured figures, and the assumptions beside them."""

from dataclasses import dataclass, replace

from bench.fleet.report import Report


@dataclass(frozen=True)
class Costs:
    """Seconds, and what else an edit and a tuning take."""

    edit_s: float  # at the sampler, with its weights in an engine
    refit_s: float  # the weights are read from the store, decoded and put into an engine
    kept_refit_s: float  # they are decoded, and in the sampler's memory
    tuning_s: float
    overhead_s: float  # of an edit outside of the sampler, in which nothing is computed that others wait for
    gateway_cpu_s: float  # of an edit
    edit_commits: float  # transactions of the database
    # Where all share the cores of one machine:
    serving_cpu_s: float = 0.0  # of an edit, in gateways, database and clients, before it is at the sampler
    beside_cpu_s: float = 0.0  # the same while it is there
    computes: float = 1.0  # the share of its time at the sampler for which an edit needs a core
    crowding: float = 1.0  # how many times as long computing takes while all cores compute
    edits_s: tuple[float, ...] = ()  # what edits take in place of `edit_s`: each as long as one of these


# No command has measured these: a graphics card at the size of Stable Diffusion 1.5, 860 million values. What a gateway
# and the database do for an edit is the same on every device: `python -m bench.fleet` on two cores.
ASSUMED = Costs(
    edit_s=1.0,
    refit_s=3.0,
    kept_refit_s=0.5,
    tuning_s=60.0,
    overhead_s=0.05,
    gateway_cpu_s=0.02,
    edit_commits=3.0,
)


def measured(report: Report) -> Costs:
    """Those of the embedded base model on a CPU, which `python -m bench.fleet` measured."""
    costs = report.costs
    serving_cpu_s = costs.gateway_cpu_s + costs.database_cpu_s + costs.client_cpu_s
    outside_s = max(0.0, costs.edit_s - costs.sampling_s)  # of the sampler; an edit alone waits for no core there
    before_s = min(serving_cpu_s, outside_s)
    return Costs(
        edit_s=costs.sampling_s,
        refit_s=costs.refit_s,
        kept_refit_s=costs.kept_refit_s,
        tuning_s=costs.tuning_s,
        overhead_s=outside_s - before_s,
        gateway_cpu_s=costs.gateway_cpu_s,
        edit_commits=costs.commits,
        serving_cpu_s=before_s,
        beside_cpu_s=serving_cpu_s - before_s,
        computes=costs.computes,
        crowding=costs.crowding,
        edits_s=costs.samplings_s,
    )


def assumed(report: Report | None) -> Costs:
    """The assumptions, with what the report has measured of gateways and database."""
    if report is None:
        return ASSUMED
    return replace(ASSUMED, gateway_cpu_s=report.costs.gateway_cpu_s, edit_commits=report.costs.commits)
