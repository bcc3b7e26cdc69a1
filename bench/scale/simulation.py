"""The simulation: users, gateways that choose a sampler by what they last heard, samplers, tuners, and who scales them.

Time is in seconds. The same seed gives the same result.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import simpy

from bench.fleet.load import Load
from bench.measure import percentile
from bench.scale.costs import Costs
from bench.scale.demand import Demand
from bench.scale.gateways import Gateway
from bench.scale.policies import PolicyName
from bench.scale.samplers import Cores, Refit, Sampler, Steps
from bench.scale.tuners import Tuners


@dataclass(frozen=True)
class Scaling:
    """How the number of samplers or tuners follows the load."""

    least: int
    most: int
    target: float = 0.6  # open edits for each engine, or open tunings for each tuner
    looks_every_s: float = 15.0
    start_s: float = 90.0  # from the wish to a process that takes work
    keeps_s: float = 600.0  # the highest number of this time is kept


@dataclass(frozen=True)
class Setup:
    """What is simulated."""

    costs: Costs
    policy: PolicyName = PolicyName.GATEWAY
    samplers: int = 1
    tuners: int = 0  # 0: every tuning is there already
    engines: int = 1  # of each sampler
    keeps: int = 0  # tunings whose decoded weights each sampler keeps
    gateways: int = 2
    hears_every_s: float = 0.1  # a gateway of the samplers that have changed
    loads_ahead: bool = True  # a sampler loads a tuning's weights before its first edit
    cores: int = 0  # of the one machine that runs everything; 0: everything has its own
    sampler_scaling: Scaling | None = None
    tuner_scaling: Scaling | None = None
    draws_edit_s: Callable[[Random], float] | None = None  # in place of what the costs say


@dataclass
class Result:
    """What came of it. Integrals are over the whole time."""

    visits: int = 0
    began: int = 0  # edits
    ended: int = 0
    began_at_s: list[float] = field(default_factory=list)  # of each edit that ended
    seconds: list[float] = field(default_factory=list)  # of the same, from the request
    refits: list[Refit] = field(default_factory=list)  # of the same
    tuned: int = 0
    tuning_seconds: list[float] = field(default_factory=list)  # from CreateTuning to READY
    open_edit_s: float = 0.0  # integral of the number of open edits
    open: int = 0
    sampler_s: float = 0.0  # integral of the number of samplers
    tuner_s: float = 0.0
    busy_s: float = 0.0  # of all engines
    wall_s: float = 0.0
    series: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def within(self, begin_s: float, end_s: float) -> "Window":
        """The edits that began in a time."""
        places = [place for place, time_s in enumerate(self.began_at_s) if begin_s <= time_s < end_s]
        seconds = sorted(self.seconds[place] for place in places)
        shares = Counter(self.refits[place] for place in places)
        return Window(seconds, {kind: shares[kind] / max(1, len(places)) for kind in Refit})


@dataclass(frozen=True)
class Window:
    """Edits of a time: their seconds, in order, and by how they found their weights."""

    seconds: list[float]
    shares: Mapping[Refit, float]

    def percentile(self, share: float) -> float:
        """Of the seconds."""
        return percentile(self.seconds, share)


class Simulation:
    """One run of a setup."""

    def __init__(self, setup: Setup, seed: int = 0) -> None:
        self._setup, self._draws = setup, Random(f"simulation {seed}")
        self._env = simpy.Environment()
        self._cores = Cores(self._env, setup.cores, setup.costs.crowding) if setup.cores else None
        self._gateways = [
            Gateway(setup.policy.policy(Random(f"gateway {seed} {number}"))) for number in range(setup.gateways)
        ]
        self._all: list[Sampler] = []
        self._samplers: list[Sampler] = []  # that take edits
        self._starting = 0
        self._tuners = Tuners(self._env, setup.tuners, setup.costs.tuning_s)
        self._visiting = 0
        self._counted_s = 0.0
        self.result = Result()
        for _ in range(setup.samplers):
            self._add()
        self._resolve()

    def serve(self, demand: Demand, begin_s: float, end_s: float) -> Result:
        """The visits that begin within a time of the day, to their last edit. The time begins at 0 here."""
        return self._run(self._env.process(self._visits(demand, begin_s, end_s)))

    def replay(self, load: Load) -> Result:
        """The users of a load, to their last edit. Time counts from when their weights are loaded ahead."""
        if self._setup.loads_ahead:
            tunings = sorted({user.tuning for user in load.users})
            self._env.run(until=self._env.process(self._load_ahead(tunings)))
        users = [
            self._env.process(self._user(number, user.tuning, user.pauses_s)) for number, user in enumerate(load.users)
        ]
        return self._run(self._env.all_of(users))

    def _run(self, all_began: simpy.Event) -> Result:
        began_s = self._counted_s = self._env.now
        self._env.process(self._tell_at_intervals())
        if self._setup.sampler_scaling is not None:
            self._env.process(self._scale_samplers(self._setup.sampler_scaling))
        if self._setup.tuner_scaling is not None:
            self._env.process(self._scale_tuners(self._setup.tuner_scaling))
        self._env.run(until=all_began)
        while self._visiting:
            self._env.step()
        self._count()
        self.result.wall_s = self._env.now - began_s
        self.result.busy_s = sum(sampler.busy_s for sampler in self._all)
        return self.result

    # Users.

    def _visits(self, demand: Demand, begin_s: float, end_s: float) -> Steps:
        for time_s in demand.arrivals(begin_s, end_s, self._draws):
            yield self._env.timeout(time_s - begin_s - self._env.now)
            self.result.visits += 1
            self._env.process(self._visit(f"weights-{self.result.visits}", demand))

    def _visit(self, weights: str, demand: Demand) -> Steps:
        self._visiting += 1
        if self._setup.tuners and self._draws.random() < demand.tuned_share:
            began = self._env.now
            yield from self._tuners.tune()
            self.result.tuned += 1
            self.result.tuning_seconds.append(self._env.now - began)
        if self._setup.loads_ahead:
            sampler = self._draws.choice(self._gateways).choose(weights)
            self._env.process(sampler.load(weights))
            yield self._env.timeout(self._draws.expovariate(1 / demand.looks_s))
        for number in range(demand.edits):
            if number:
                yield self._env.timeout(self._draws.expovariate(1 / demand.looks_s))
            yield from self._edit(weights, self._draws.choice(self._gateways))
        self._visiting -= 1

    def _load_ahead(self, tunings: Sequence[int]) -> Steps:
        """One tuning after the other becomes READY."""
        for tuning in tunings:
            yield from self._gateways[0].choose(f"weights-{tuning}").load(f"weights-{tuning}")
            self._resolve()

    def _user(self, number: int, tuning: int, pauses_s: tuple[float, ...]) -> Steps:
        for index, pause_s in enumerate(pauses_s):
            yield self._env.timeout(pause_s)
            yield from self._edit(f"weights-{tuning}", self._gateways[(number + index) % len(self._gateways)])

    def _edit(self, weights: str, gateway: Gateway) -> Steps:
        setup, result = self._setup, self.result
        began_s = self._env.now
        self._count()
        result.open += 1
        result.began += 1
        yield self._env.timeout(setup.costs.overhead_s)
        if self._cores is not None:
            yield from self._cores.compute(setup.costs.serving_cpu_s)
            self._env.process(self._cores.compute(setup.costs.beside_cpu_s))
        sampler = gateway.choose(weights)
        gateway.begin(sampler)
        kind = yield from sampler.edit(weights, self._edit_s())
        gateway.end(sampler)
        self._count()
        result.open -= 1
        result.ended += 1
        result.began_at_s.append(began_s)
        result.seconds.append(self._env.now - began_s)
        result.refits.append(kind)

    def _edit_s(self) -> float:
        """What the next edit takes at its sampler."""
        costs = self._setup.costs
        if self._setup.draws_edit_s is not None:
            return self._setup.draws_edit_s(self._draws)
        return self._draws.choice(costs.edits_s) if costs.edits_s else costs.edit_s

    # What gateways hear.

    def _tell_at_intervals(self) -> Steps:
        while True:
            yield self._env.timeout(self._setup.hears_every_s)
            told = [sampler.told() for sampler in self._samplers if sampler.has_changed]
            for gateway in self._gateways:
                gateway.hear(told)

    def _resolve(self) -> None:
        for gateway in self._gateways:
            gateway.resolve(self._samplers)

    # Scaling.

    def _scale_samplers(self, scaling: Scaling) -> Steps:
        wished: deque[tuple[float, int]] = deque()
        while True:
            yield self._env.timeout(scaling.looks_every_s)
            open_edits = sum(sampler.open for sampler in self._samplers)
            wanted = _wanted(open_edits / (self._setup.engines * scaling.target), scaling, wished, self._env.now)
            for _ in range(wanted - len(self._samplers) - self._starting):
                self._env.process(self._start_sampler(scaling.start_s))
            if wanted < len(self._samplers):
                self._count()
                del self._samplers[wanted:]  # what waits there runs to its end
                self._resolve()
            series: dict[str, Any] = self.result.series
            series["time_s"].append(self._env.now)
            series["samplers"].append(len(self._samplers))
            series["tuners"].append(self._tuners.number)

    def _start_sampler(self, start_s: float) -> Steps:
        self._starting += 1
        yield self._env.timeout(start_s)
        self._starting -= 1
        self._count()
        self._add()
        self._resolve()

    def _scale_tuners(self, scaling: Scaling) -> Steps:
        wished: deque[tuple[float, int]] = deque()
        starting = 0

        def start() -> Steps:
            nonlocal starting
            starting += 1
            yield self._env.timeout(scaling.start_s)
            starting -= 1
            self._count()
            self._tuners.start(1)

        while True:
            yield self._env.timeout(scaling.looks_every_s)
            wanted = _wanted(self._tuners.open / scaling.target, scaling, wished, self._env.now)
            for _ in range(wanted - self._tuners.number - starting):
                self._env.process(start())
            if wanted < self._tuners.number:
                self._count()
                self._tuners.end(self._tuners.number - wanted)

    def _add(self) -> None:
        setup = self._setup
        sampler = Sampler(
            self._env, len(self._all), setup.costs, engines=setup.engines, keeps=setup.keeps, cores=self._cores
        )
        self._all.append(sampler)
        self._samplers.append(sampler)

    def _count(self) -> None:
        """Add up the time since the last change."""
        passed_s = self._env.now - self._counted_s
        self._counted_s = self._env.now
        self.result.open_edit_s += passed_s * self.result.open
        self.result.sampler_s += passed_s * len(self._samplers)
        self.result.tuner_s += passed_s * self._tuners.number


def _wanted(wished: float, scaling: Scaling, before: deque[tuple[float, int]], now_s: float) -> int:
    """The number that is to be there: that of the load, or the highest one of the last time."""
    before.append((now_s, min(max(math.ceil(wished), scaling.least), scaling.most)))
    while before[0][0] < now_s - scaling.keeps_s:
        before.popleft()
    return max(number for _, number in before)
