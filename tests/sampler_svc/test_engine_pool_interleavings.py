"""What holds for leases, failing refits, cancelled runs and evictions in any order, from many threads at once.

The engines are real ones of a denoiser so small that thousands of refits take a second: two numbers, a * latent + b.
"""

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.engines.engine import BASE, Engine, EngineSpec, Probe, Tensors, WeightSet
from sampler_svc.engines.pool import EnginePool
from unitune.base_model import TensorSpec
from unitune.errors import Cancelled, DataLoss
from unitune.weights import probe_input

SPEC = EngineSpec((1, 2, 2), (1, 1), {"a": TensorSpec((1,)), "b": TensorSpec((1,))})
LATENTS = probe_input(0, 1, (2, 2), (1, 1))["sample"]
PATIENCE_S = 30.0


class LinearEngine(Engine):
    """a * latent + b. It notices when two threads are in it, and lets others run in the middle of everything."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self._inside = threading.Lock()
        self._a = self._b = np.zeros(1, np.float32)

    def close(self) -> None:
        self.weights = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises AssertionError when somebody else is inside."""
        assert self._inside.acquire(blocking=False), "two threads are in one engine"
        try:
            time.sleep(0)
            yield
        finally:
            self._inside.release()

    def _write(self, tensors: Tensors) -> None:
        with self.alone():
            self._a = np.array(tensors["a"])
            time.sleep(0)
            self._b = np.array(tensors["b"])

    def _compute(self, latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        with self.alone():
            scaled = self._a * latents
            time.sleep(0)
            return scaled + self._b


def answer(number: int) -> np.ndarray:
    """What the engine says to LATENTS with the weights of that number; 0 is the base."""
    return (1 + number) * LATENTS + np.float32(number)


def weights_of(number: int) -> WeightSet:
    """The weights of that number."""
    tensors = {"a": np.array([1 + number], np.float32), "b": np.array([number], np.float32)}
    return WeightSet(f"w{number}" if number else BASE, tensors, Probe(0, answer(number), answer(0)))


def wrong(number: int) -> WeightSet:
    """Weights under that number's name whose values are others, as after a write that went wrong."""
    right = weights_of(number)
    return WeightSet(right.id, {**right.tensors, "b": right.tensors["b"] + 1}, right.probe)


def unreadable() -> WeightSet:
    """Weights that are gone."""
    raise DataLoss("gone", reason="WEIGHTS_MISSING")


def run(engine: Engine) -> np.ndarray:
    """One denoising step."""
    return engine.run(LATENTS, np.zeros(2, np.int64), np.zeros((2, 1, 1), np.float32))


def act(pool: EnginePool, kind: str, number: int) -> None:
    """One thing that a caller does. Raises AssertionError when it meets foreign weights."""
    weights = weights_of(number)
    if kind == "evict":
        pool.evict(weights.id)
    elif kind == "look":
        pool.is_free()
        pool.resident()
    elif kind in ("wrong", "unreadable"):
        with (
            suppress(DataLoss, MemoryError),
            pool.lease(weights.id, unreadable if kind == "unreadable" else lambda: wrong(number)) as lease,
        ):
            np.testing.assert_array_equal(run(lease.engine), answer(number))  # it was there already
    else:
        with suppress(Cancelled, MemoryError), pool.lease(weights.id, lambda: weights) as lease:
            for step in range(3):
                assert lease.engine.weights == weights.id
                np.testing.assert_array_equal(run(lease.engine), answer(number))
                if kind == "cancelled" and step == 1:
                    raise Cancelled("the edit was cancelled", reason="EDIT_CANCELLED")


KINDS = ("run", "run", "cancelled", "wrong", "unreadable", "evict", "look")
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    callers=st.lists(ACTIONS, min_size=2, max_size=5),
    size=st.integers(1, 3),
    failing_opens=st.sets(st.integers(0, 12), max_size=4),
)
def test_no_interleaving_runs_foreign_weights_or_stands_still(
    callers: list[list[tuple[str, int]]], size: int, failing_opens: set[int]
) -> None:
    """Every run sees its own weights, alone; all callers come to their end; and the pool is whole afterwards."""
    opened = 0
    is_failing = False

    def open_engine() -> Engine:
        nonlocal opened
        opened += 1
        if is_failing and opened in failing_opens:
            raise MemoryError("no room for an engine")
        return LinearEngine()

    pool = EnginePool(open_engine, weights_of(0), size)
    opened, is_failing = 0, True
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(callers)) as threads:
            told = [threads.submit(lambda mine=mine: [act(pool, *action) for action in mine]) for mine in callers]
            for one in told:
                one.result(timeout=PATIENCE_S)
    finally:
        sys.setswitchinterval(before)

    is_failing = False
    assert pool.is_free()
    for number in (0, 1, 2, 3):
        act(pool, "run", number)
        pool.evict(weights_of(number).id)
    assert pool.resident() == []


def test_who_comes_first_is_served_first() -> None:
    """Nobody starves: whoever asks waits behind those who asked before, whichever weights are warm."""
    pool = EnginePool(LinearEngine, weights_of(0))
    served: list[int] = []

    def wait_in_line(number: int) -> None:
        with pool.lease(f"w{number}", lambda: weights_of(number)) as lease:
            served.append(number)
            run(lease.engine)

    line = [1, 2, 1, 3, 2, 1]
    with ThreadPoolExecutor(len(line)) as threads:
        with pool.lease("w1", lambda: weights_of(1)):
            assert not pool.is_free()
            told = []
            for place, number in enumerate(line, 1):
                told.append(threads.submit(wait_in_line, number))
                while len(pool._waiting) < place:
                    time.sleep(0.001)
        for one in told:
            one.result(timeout=PATIENCE_S)

    assert served == line


def test_evicting_what_a_failed_lease_left_in_place_forgets_it() -> None:
    """Weights evicted while their engine was leased for others are gone, though the others could not be read."""
    pool = EnginePool(LinearEngine, weights_of(0))
    act(pool, "run", 1)

    def evicted_meanwhile() -> WeightSet:
        pool.evict("w1")
        return unreadable()

    with pytest.raises(DataLoss), pool.lease("w2", evicted_meanwhile):
        raise AssertionError("a lease was given")

    assert pool.resident() == []


def test_an_eviction_during_a_refit_to_others_leaves_these() -> None:
    """The weights that were evicted are overwritten, and the ones put in are kept warm."""
    pool = EnginePool(LinearEngine, weights_of(0))
    act(pool, "run", 1)

    def evicted_meanwhile() -> WeightSet:
        pool.evict("w1")
        return weights_of(2)

    with pool.lease("w2", evicted_meanwhile) as lease:
        np.testing.assert_array_equal(run(lease.engine), answer(2))

    assert pool.resident() == ["w2"]
