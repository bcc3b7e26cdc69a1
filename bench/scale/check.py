"""Whether the simulation tells what a real run of `python -m bench.fleet` did, with the same load and its costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

from bench.fleet.load import Load
from bench.fleet.report import Outcome, Report
from bench.measure import percentile
from bench.scale.costs import measured
from bench.scale.samplers import Refit
from bench.scale.simulation import Result, Setup, Simulation

WITHIN = 0.15
JUDGED = ("edits_per_s", "mean_s", "p50_s")
WARM = "warm_share"
TOLD = ("p95_s", WARM)  # of some dozens of edits chance decides: they are told, not judged
SEEDS = 5  # runs whose mean is compared


@dataclass(frozen=True)
class Compared:
    """One figure of one load."""

    load: str
    figure: str
    real: float
    simulated: float

    @property
    def difference(self) -> float:
        """The simulated one over the real one, less 1; of shares, the one less the other."""
        return self.simulated - self.real if self.figure == WARM else self.simulated / self.real - 1

    @property
    def is_wrong(self) -> bool:
        """Whether it is judged, and further off than it may be."""
        return self.figure in JUDGED and abs(self.difference) > WITHIN


def compared(report: Report) -> Iterator[Compared]:
    """Every figure of every load, on the fleet and on one sampler."""
    for name, phase in report.phases.items():
        for where, samplers, real in (("fleet", report.samplers, phase.fleet), ("one sampler", 1, phase.one_sampler)):
            ours = simulated(report, phase.load, samplers)
            for figure in (*JUDGED, *TOLD):
                yield Compared(f"{name}, {where}", figure, getattr(real, figure), getattr(ours, figure))


def simulated(report: Report, load: Load, samplers: int) -> Outcome:
    """What the simulation makes of a load: the mean of some runs, whose draws differ."""
    setup = Setup(
        measured(report), samplers=samplers, gateways=report.gateways, keeps=report.tunings, cores=report.cores
    )
    runs = [Simulation(setup, seed).replay(load) for seed in range(SEEDS)]

    def mean(figure: Callable[[Result], float]) -> float:
        return fmean(figure(run) for run in runs)

    return Outcome(
        edits=load.edits,
        lost=0,
        warm_share=mean(lambda run: run.refits.count(Refit.WARM) / run.ended),
        p50_s=mean(lambda run: percentile(run.seconds, 0.5)),
        p95_s=mean(lambda run: percentile(run.seconds, 0.95)),
        mean_s=mean(lambda run: fmean(run.seconds)),
        edits_per_s=mean(lambda run: run.ended / run.wall_s),
        wall_s=mean(lambda run: run.wall_s),
    )
