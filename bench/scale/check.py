"""Whether the simulation tells what a real run of `python -m bench.fleet` did, with the same load and its costs."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.fleet.load import Load
from bench.fleet.report import Outcome, Report
from bench.measure import percentile
from bench.scale.costs import measured
from bench.scale.samplers import Refit
from bench.scale.simulation import Setup, Simulation

WITHIN = 0.15
JUDGED = ("edits_per_s", "mean_s", "p50_s")  # a p95 of some dozens of edits is told, not judged


@dataclass(frozen=True)
class Compared:
    """One figure of one load."""

    load: str
    figure: str
    real: float
    simulated: float

    @property
    def difference(self) -> float:
        """The simulated one over the real one, less 1."""
        return self.simulated / self.real - 1

    @property
    def is_wrong(self) -> bool:
        """Whether it is judged, and further off than it may be."""
        return self.figure in JUDGED and abs(self.difference) > WITHIN


def compared(report: Report) -> Iterator[Compared]:
    """Every figure of every load, on the fleet and on one sampler."""
    for name, phase in report.phases.items():
        for where, samplers, real in (("fleet", report.samplers, phase.fleet), ("one sampler", 1, phase.one_sampler)):
            ours = simulated(report, phase.load, samplers)
            for figure in (*JUDGED, "p95_s"):
                yield Compared(f"{name}, {where}", figure, getattr(real, figure), getattr(ours, figure))


def simulated(report: Report, load: Load, samplers: int) -> Outcome:
    """What the simulation makes of a load."""
    setup = Setup(
        measured(report), samplers=samplers, gateways=report.gateways, keeps=report.tunings, cores=report.cores
    )
    result = Simulation(setup).replay(load)
    warm = sum(kind is Refit.WARM for kind in result.refits) / result.ended
    return Outcome(
        edits=result.ended,
        lost=0,
        warm_share=warm,
        p50_s=percentile(result.seconds, 0.5),
        p95_s=percentile(result.seconds, 0.95),
        mean_s=sum(result.seconds) / result.ended,
        edits_per_s=result.ended / result.wall_s,
        wall_s=result.wall_s,
    )
