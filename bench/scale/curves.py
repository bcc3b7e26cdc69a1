"""What the page shows: samplers by their number, policy and memory, and a day with autoscaling, prices and limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from bench.scale.capacity import Ceilings, asked
from bench.scale.costs import Costs
from bench.scale.demand import DAY_S, Demand
from bench.scale.policies import PolicyName
from bench.scale.samplers import Refit
from bench.scale.simulation import Scaling, Setup, Simulation

EDITS_PER_GATEWAY = 20.0  # a second: so many gateways a steady fleet has
WINDOW_S = 900.0  # of the day's curve
LOOKS_EVERY_S = 15.0


@dataclass(frozen=True)
class Point:
    """One steady fleet. Shares are of edits, seconds from the request to the picture."""

    samplers: int
    policy: str
    engines: int
    keeps: int
    load: float  # seconds of edits for each engine and second
    edits: int
    p50_s: float
    p95_s: float
    cold: float
    kept: float
    busy: float  # of the engines' time, refits included


@dataclass(frozen=True)
class Day:
    """A part of a day's users with autoscaling. Lists have one value for each window."""

    start_s: float
    edits: int
    tunings: int
    sampler_hours: float
    tuner_hours: float
    p95_s: float  # of the whole day
    cold: float
    hours: Sequence[float]
    edits_per_s: Sequence[float]
    window_p95_s: Sequence[float]
    tuning_p95_s: float
    scaled_hours: Sequence[float]
    samplers: Sequence[int]
    tuners: Sequence[int]


def steady(
    costs: Costs,
    demand: Demand,
    samplers: int,
    policy: PolicyName,
    load: float,
    *,
    engines: int,
    keeps: int,
    edits: int,
) -> Point:
    """A fleet under a load that does not change, once it has settled; so many edits are looked at."""
    per_s = load * samplers * engines / costs.edit_s
    settles_s = demand.edits * (demand.looks_s + costs.edit_s) + costs.refit_s  # a visit
    for_s = settles_s + edits / per_s
    setup = Setup(
        costs,
        policy=policy,
        samplers=samplers,
        engines=engines,
        keeps=keeps,
        gateways=max(2, math.ceil(per_s / EDITS_PER_GATEWAY)),
    )
    visits = replace(demand, visits_per_day=per_s / demand.edits * DAY_S, peak=1.0)
    result = Simulation(setup).serve(visits, 0.0, for_s)
    window = result.within(settles_s, for_s)
    return Point(
        samplers,
        policy,
        engines,
        keeps,
        load,
        len(window.seconds),
        window.percentile(0.5),
        window.percentile(0.95),
        window.shares[Refit.COLD],
        window.shares[Refit.KEPT],
        result.busy_s / (result.wall_s * samplers * engines),
    )


def day(costs: Costs, demand: Demand, *, engines: int, keeps: int, start_s: float) -> Day:
    """A day with samplers and tuners that are as many as the load asks for, `start_s` after it does."""
    most = 10**6
    setup = Setup(
        costs,
        samplers=2,
        tuners=1,
        engines=engines,
        keeps=keeps,
        sampler_scaling=Scaling(2, most, 0.6, LOOKS_EVERY_S, start_s, 600.0),
        tuner_scaling=Scaling(1, most, 1.0, 2 * LOOKS_EVERY_S, start_s, 300.0),
    )
    result = Simulation(setup).serve(demand, 0.0, DAY_S)
    windows = [result.within(begin, begin + WINDOW_S) for begin in range(0, int(DAY_S), int(WINDOW_S))]
    whole = result.within(0.0, result.wall_s)
    every = round(WINDOW_S / LOOKS_EVERY_S)
    waits = sorted(result.tuning_seconds)
    return Day(
        start_s,
        result.ended,
        result.tuned,
        result.sampler_s / 3600,
        result.tuner_s / 3600,
        whole.percentile(0.95),
        whole.shares[Refit.COLD],
        [number * WINDOW_S / 3600 for number in range(len(windows))],
        [len(window.seconds) / WINDOW_S for window in windows],
        [window.percentile(0.95) if window.seconds else 0.0 for window in windows],
        waits[int(0.95 * len(waits))],
        [time_s / 3600 for time_s in result.series["time_s"][::every]],
        [int(number) for number in result.series["samplers"][::every]],
        [int(number) for number in result.series["tuners"][::every]],
    )


@dataclass(frozen=True)
class Prices:
    """Of an hour, in any currency."""

    sampler: float = 1.0
    tuner: float = 1.0


def per_1000_edits(of: Day, prices: Prices, edits_each: float) -> dict[str, float]:
    """What 1,000 edits cost in samplers and in tuners, if each tuning had so many edits."""
    return {
        "samplers": 1000 * of.sampler_hours * prices.sampler / of.edits,
        "tuners": 1000 * of.tuner_hours * prices.tuner / of.tunings / edits_each,
    }


def limits(demand: Demand, costs: Costs, ceilings: Ceilings, users: Sequence[float]) -> Mapping[str, list[dict]]:
    """What is asked at the peak, for numbers of visits a day."""
    return {
        f"{number:.0f}": [
            asdict(one) | {"share": one.share} for one in asked(replace(demand, visits_per_day=number), costs, ceilings)
        ]
        for number in users
    }
