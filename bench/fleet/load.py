"""What users do: edit after edit of a tuning, with a pause before each. Real clients and the simulation read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

LOOKS_S = 1.0  # mean time that a user looks at a picture before the next edit of the visit
AWAY_S = 4.0  # and between two visits


@dataclass(frozen=True)
class User:
    """One user. `pauses_s` has the seconds before each edit, from the answer to the one before."""

    tuning: int
    pauses_s: tuple[float, ...]


@dataclass(frozen=True)
class Load:
    """What all users do together."""

    users: tuple[User, ...]

    @property
    def edits(self) -> int:
        """The number of edits."""
        return sum(len(user.pauses_s) for user in self.users)


def visits(tunings: int, visits_each: int, edits_each: int, seed: int) -> Load:
    """A user for each tuning, who visits it some times, each time for some edits."""
    draws = Random(f"visits {seed}")

    def pauses() -> Sequence[float]:
        looks = (draws.expovariate(1 / LOOKS_S) for _ in range(edits_each - 1))
        return [draws.expovariate(1 / AWAY_S), *looks]

    return Load(
        tuple(User(one, tuple(pause for _ in range(visits_each) for pause in pauses())) for one in range(tunings))
    )


def rush(tunings: int, users: int, edits_each: int) -> Load:
    """Users who send their next edit after each answer, without a pause."""
    return Load(tuple(User(number % tunings, (0.0,) * edits_each) for number in range(users)))
