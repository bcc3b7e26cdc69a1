"""Gateways as the simulation has them: what each knows of all samplers, which is a moment old."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from bench.scale.policies import Policy
from bench.scale.samplers import Sampler
from gateway.sampler_choice import Replica


class Gateway:
    """One gateway."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._in_flight: Counter[str] = Counter()  # edits of this gateway, by sampler
        self._known: list[Replica] = []
        self._places: dict[str, int] = {}
        self._samplers: Sequence[Sampler] = ()

    def resolve(self, samplers: Sequence[Sampler]) -> None:
        """Learn which samplers there are."""
        self._samplers = list(samplers)
        self._places = {sampler.address: place for place, sampler in enumerate(samplers)}
        self._known = [self._heard(sampler.told()) for sampler in samplers]

    def hear(self, told: Sequence[Replica]) -> None:
        """Learn what some of them tell now."""
        for one in told:
            self._known[self._places[one.address]] = self._heard(one)

    def choose(self, weights: str) -> Sampler:
        """The sampler for an edit with these weights."""
        return self._samplers[self._places[self._policy(weights, self._known).address]]

    def begin(self, sampler: Sampler) -> None:
        """Send an edit there, of which the sampler has not told yet."""
        self._in_flight[sampler.address] += 1
        self._change(sampler, unacknowledged=1)

    def end(self, sampler: Sampler) -> None:
        """One of its edits there has ended."""
        self._in_flight[sampler.address] -= 1
        self._change(sampler)

    def _heard(self, told: Replica) -> Replica:
        in_flight = self._in_flight[told.address]
        return replace(told, in_flight=in_flight) if in_flight else told

    def _change(self, sampler: Sampler, unacknowledged: int = 0) -> None:
        place = self._places.get(sampler.address)
        if place is not None:
            known = self._known[place]
            self._known[place] = replace(
                known,
                in_flight=self._in_flight[sampler.address],
                unacknowledged=known.unacknowledged + unacknowledged,
            )
