"""Which sampler gets an edit: the gateway's own choice, and what it is compared with."""

import hashlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from random import Random

from gateway import sampler_choice
from gateway.sampler_choice import Replica

Policy = Callable[[str, Sequence[Replica]], Replica]


class PolicyName(StrEnum):
    """What chooses."""

    RANDOM = "random"
    RENDEZVOUS = "rendezvous"  # a hash of the weights names the sampler
    GATEWAY = "gateway"  # the product's own, `gateway/sampler_choice.py`

    def policy(self, chance: Random) -> Policy:
        """Of one gateway."""
        if self is PolicyName.RANDOM:
            return lambda weights, replicas: chance.choice(replicas)
        if self is PolicyName.RENDEZVOUS:
            return lambda weights, replicas: max(replicas, key=lambda replica: _score(weights, replica.address))
        return lambda weights, replicas: sampler_choice.choose(weights, replicas, chance)


@lru_cache(1 << 20)
def _score(weights: str, address: str) -> bytes:
    return hashlib.blake2b(f"{weights} {address}".encode(), digest_size=8).digest()
