"""Tuners as the simulation has them: each takes the oldest tuning of the queue, and there are more or fewer of them."""

import simpy

from bench.scale.samplers import Steps


class Tuners:
    """Those that are there now, and the queue."""

    def __init__(self, env: simpy.Environment, number: int, tuning_s: float) -> None:
        self._env, self._tuning_s = env, tuning_s
        self._idle = simpy.Store(env)
        self.number = 0
        self.running = 0
        self.open = 0  # tunings that run or wait
        self.start(number)

    def tune(self) -> Steps:
        """Wait for a tuner, and tune."""
        self.open += 1
        yield self._idle.get()
        self.running += 1
        yield self._env.timeout(self._tuning_s)
        self.running -= 1
        self.open -= 1
        self._idle.put(None)

    def start(self, number: int) -> None:
        """So many more, which take what waits."""
        self.number += number
        for _ in range(number):
            self._idle.put(None)

    def end(self, number: int) -> None:
        """So many fewer, of those that are idle."""
        ended = min(number, len(self._idle.items))
        del self._idle.items[:ended]
        self.number -= ended
