"""Samplers as the simulation has them: engines that hold weights, decoded weights in memory, a queue."""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Generator
from enum import StrEnum
from typing import Any

import simpy

from bench.scale.costs import Costs
from gateway.sampler_choice import Replica

Steps = Generator[simpy.Event, Any, Any]


class Refit(StrEnum):
    """How an edit found its weights."""

    WARM = "warm"  # in an engine
    KEPT = "kept"  # decoded, in the sampler's memory
    COLD = "cold"  # in the store alone


class Sampler:
    """One replica. Its engines are leased first come, first served, as those of `sampler_svc.engines.pool`."""

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        costs: Costs,
        *,
        engines: int = 1,
        keeps: int = 0,
        cores: "Cores | None" = None,
    ) -> None:
        """`keeps` is of how many tunings it keeps decoded weights. `cores` are those of a machine that it shares."""
        self.address = f"sampler-{number}"
        self.open = 0  # edits that run or wait
        self.busy_s = 0.0
        self.has_changed = False  # since it told last
        self._env, self._costs, self._cores = env, costs, cores
        self._places = simpy.Resource(env, engines)
        self._engines: list[str | None] = [None] * engines
        self._free = list(range(engines))
        self._used = [0.0] * engines
        self._began: dict[int, float] = {}  # when the run of an engine began
        self._needed: Counter[str] = Counter()  # weights, by the runs that are open
        self._keeps = keeps
        self._kept: OrderedDict[str, None] = OrderedDict()

    def told(self) -> Replica:
        """What it tells gateways of itself."""
        self.has_changed = False
        resident = frozenset(weights for weights in self._engines if weights)
        return Replica(
            address=self.address,
            resident=resident,
            loading=frozenset(self._needed) - resident,
            kept=frozenset(self._kept),
            engines=len(self._engines),
            queued_s=self._queued_s(),
            edit_s=self._costs.edit_s,
            refit_s=self._costs.refit_s,
            kept_refit_s=self._costs.kept_refit_s,
        )

    def _queued_s(self) -> float:
        """As `sampler_svc.run_times` estimates it."""
        edit_s, now_s = self._costs.edit_s, self._env.now
        free_in_s = [max(0.0, edit_s - (now_s - began_s)) for began_s in self._began.values()]
        free_in_s += [0.0] * (len(self._engines) - len(free_in_s))
        heapq.heapify(free_in_s)
        for _ in range(self.open - len(self._began)):
            heapq.heapreplace(free_in_s, free_in_s[0] + edit_s)
        return free_in_s[0]

    def edit(self, weights: str, edit_s: float) -> Generator[simpy.Event, Any, Refit]:
        """Wait for an engine, refit it if it must be, and sample; how the weights were found."""
        self.open += 1
        self._need(weights, 1)
        with self._places.request() as place:
            yield place
            began = self._env.now
            engine, kind = yield from self._lease(weights)
            yield from self._compute(edit_s)
            self.busy_s += self._env.now - began
            self.open -= 1
            self._give_back(engine)
            self._need(weights, -1)
        return kind

    def load(self, weights: str) -> Steps:
        """Put weights into an engine before an edit asks for them, if one is free."""
        if self._places.count == self._places.capacity:
            return
        self.open += 1
        self._need(weights, 1)
        with self._places.request() as place:
            yield place
            engine, _ = yield from self._lease(weights)
            self.open -= 1
            self._give_back(engine)
            self._need(weights, -1)

    def _lease(self, weights: str) -> Generator[simpy.Event, Any, tuple[int, Refit]]:
        """The free engine that holds the weights, else the one that was not used for longest, which is refitted."""
        engine = min(self._free, key=lambda engine: (self._engines[engine] != weights, self._used[engine]))
        self._free.remove(engine)
        self._began[engine] = self._env.now
        if self._engines[engine] == weights:
            return engine, Refit.WARM
        kind, seconds = Refit.COLD, self._costs.refit_s
        if weights in self._kept:
            kind, seconds = Refit.KEPT, self._costs.kept_refit_s
        self._engines[engine] = None
        self.has_changed = True
        yield from self._compute(seconds)
        self._engines[engine] = weights
        self.has_changed = True
        self._kept[weights] = None
        self._kept.move_to_end(weights)
        while len(self._kept) > self._keeps:
            self._kept.popitem(last=False)
        return engine, kind

    def _need(self, weights: str, by: int) -> None:
        self.has_changed = True
        self._needed[weights] += by
        if not self._needed[weights]:
            del self._needed[weights]

    def _give_back(self, engine: int) -> None:
        self.has_changed = True
        del self._began[engine]
        self._used[engine] = self._env.now
        self._free.append(engine)

    def _compute(self, seconds: float) -> Steps:
        if self._cores is None:
            yield self._env.timeout(seconds)
        else:
            yield from self._cores.compute(seconds * self._costs.computes, is_edit=True)
            yield self._env.timeout(seconds * (1 - self._costs.computes))


class Cores:
    """The cores of one machine, which all processes on it take in turns, and which share its memory and caches."""

    SLICE_S = 0.01

    def __init__(self, env: simpy.Environment, number: int, crowding: float = 1.0) -> None:
        """`crowding` is how many times as long an edit computes while every core does so, 1 or more."""
        self._env = env
        self._cores = simpy.Resource(env, number)
        self._longer_by = (crowding - 1) / max(1, number - 1)  # for every other core with an edit
        self._edits = 0  # that compute now

    def compute(self, seconds: float, *, is_edit: bool = False) -> Steps:
        """Compute on one core for so long, beside the others; an edit for longer beside other edits."""
        left_s = seconds
        while left_s > 0:
            slice_s = min(left_s, self.SLICE_S)
            with self._cores.request() as core:
                yield core
                longer = 1 + self._longer_by * self._edits * is_edit
                self._edits += is_edit
                yield self._env.timeout(slice_s * longer)
                self._edits -= is_edit
            left_s -= slice_s
