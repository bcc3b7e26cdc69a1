"""Which sampler gets an edit: the one where it is predicted to begin soonest, with its weights in an engine. Other
weights that it would drive out of their engine count as their next edit's refit: without that, two tunings of one
sampler would be refitted in turn, although another sampler had an engine free.

Looking at all of a thousand samplers would be no better than looking at few: those that have the weights, two that a
rendezvous hash of the weights names (Thaler and Ravishankar, 1998), so that all gateways think of the same, and two by
chance.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HASHED, BY_CHANCE = 2, 2  # candidates beside those that have the weights
FEW = 2  # edits of one gateway at one sampler
TIE_S = 0.05  # predictions that differ by less are equal
UNKNOWN_S = 1.0  # of an edit or a refit, while no sampler has made one

WARM, HALF_WAY, FREE_ENGINE, COLD = range(4)


@dataclass(frozen=True)
class Replica:
    """A sampler, as a gateway knows it now. Weights are digests; seconds are 0 where they are not known yet."""

    address: str
    resident: frozenset[str] = frozenset()  # in its engines
    loading: frozenset[str] = frozenset()  # into its engines
    kept: frozenset[str] = frozenset()  # decoded, in its memory
    engines: int = 1
    runs: int = 0  # with an engine, and waiting for one
    queued_s: float = 0.0  # until a run that comes now has an engine; 0 while `edit_s` is, however many wait
    edit_s: float = 0.0  # of an edit, without waiting and refit
    refit_s: float = 0.0  # of a refit from the store
    kept_refit_s: float = 0.0  # of a refit with kept weights
    in_flight: int = 0  # edits that this gateway has there
    unacknowledged: int = 0  # those of them that are not in its other figures yet

    def step(self, weights: str) -> int:
        """What is left to do before an edit with these weights, the base model's own if that is empty, can begin."""
        if weights in self.resident or (not weights and self.has_free_engine()):
            return WARM
        if weights in self.loading or weights in self.kept:
            return HALF_WAY
        return FREE_ENGINE if self.has_free_engine() else COLD

    def has_free_engine(self) -> bool:
        """Whether an engine holds, and is to hold, no tuning's weights."""
        return len(self.resident | self.loading) < self.engines

    def drives_out(self, weights: str) -> bool:
        """Whether these weights would take the engine of others."""
        return weights not in self.resident | self.loading and not self.has_free_engine()


def choose(weights: str, replicas: Sequence[Replica], chance: random.Random) -> Replica:
    """The replica for an edit with these weights, of at least one."""
    # One more edit is at most twice the mean and one: weights that everybody wants do not fill one sampler.
    # A few are no crowd: else, at low load, a second edit would leave the sampler that has its weights.
    most_in_flight = max(FEW, 2 * (1 + sum(replica.in_flight for replica in replicas)) / len(replicas))
    allowed = [replica for replica in replicas if replica.in_flight <= most_in_flight]
    ranked = sorted(allowed, key=lambda replica: _rendezvous(weights, replica.address), reverse=True)
    candidates = {replica.address for replica in ranked if replica.step(weights) in (WARM, HALF_WAY)}
    candidates |= {replica.address for replica in ranked[:HASHED]}
    others = [replica.address for replica in ranked if replica.address not in candidates]
    candidates |= set(chance.sample(others, min(BY_CHANCE, len(others))))

    edit_s = _mean(replica.edit_s for replica in replicas)
    refit_s = _mean(replica.refit_s for replica in replicas)
    kept_refit_s = _mean((replica.kept_refit_s for replica in replicas), refit_s / 2)

    def predicted_s(replica: Replica) -> float:
        wait_s = replica.queued_s
        if not replica.edit_s:
            wait_s = max(0, 1 + replica.runs - replica.engines) * edit_s / replica.engines
        wait_s += replica.unacknowledged * (replica.edit_s or edit_s) / replica.engines
        wait_s += refit_s * replica.drives_out(weights)
        if weights in replica.kept and weights not in replica.resident:
            return wait_s + kept_refit_s
        return wait_s + {WARM: 0.0, HALF_WAY: refit_s / 2}.get(replica.step(weights), refit_s)

    predictions = [(predicted_s(replica), replica) for replica in ranked if replica.address in candidates]
    soonest_s = min(seconds for seconds, _ in predictions)
    equal = [replica for seconds, replica in predictions if seconds <= soonest_s + TIE_S]
    return min(equal, key=lambda replica: replica.step(weights))  # the first of several: as the hash ranks them


def _rendezvous(weights: str, address: str) -> bytes:
    return hashlib.blake2b(f"{weights} {address}".encode(), digest_size=8).digest()


def _mean(seconds: Iterable[float], unknown_s: float = UNKNOWN_S) -> float:
    """Of those that are known. All samplers have one base model, and one mean is steadier than each one's own."""
    known = [one for one in seconds if one > 0]
    return sum(known) / len(known) if known else unknown_s
