"""Leases: who gets which engine, when it is refitted, and what a failed refit leaves behind."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.engine import BASE, TOO_SMALL, Engine, EngineSpec, WeightSet
from sampler_svc.engines.pool import EnginePool
from sampler_svc.engines.weights import tuned_weights
from tests.sampler_svc.tunings import PROBE_SEED, Tunings, answers, lying, question
from unitune.base_model import BaseModelSpec
from unitune.codecs import decode, encode
from unitune.errors import DataLoss, FailedPrecondition
from unitune.weights import pack, unpack


@pytest.fixture
def open_engine(engine_folder: Path, spec: BaseModelSpec) -> Callable[[], Engine]:
    """Opens engines."""
    return lambda: OrtEngine(engine_folder, EngineSpec.from_model(spec), threads=1)


@pytest.fixture
def pool(open_engine: Callable[[], Engine], base: WeightSet) -> Iterator[EnginePool]:
    """A pool of one engine."""
    pool = EnginePool(open_engine, base)
    yield pool
    pool.close()


@pytest.fixture
def two(open_engine: Callable[[], Engine], base: WeightSet) -> Iterator[EnginePool]:
    """A pool of two engines."""
    pool = EnginePool(open_engine, base, 2)
    yield pool
    pool.close()


def said(pool: EnginePool, weights: WeightSet) -> np.ndarray:
    """What an engine with these weights answers."""
    with pool.lease(weights.id, lambda: weights) as lease:
        assert lease.engine.weights == weights.id
        return answers(lease.engine)


def never() -> WeightSet:
    """For leases that must not read weights."""
    raise AssertionError("the weights were read")


def test_a_miss_refits_and_a_hit_does_not(pool: EnginePool, tunings: Tunings) -> None:
    """The second lease of the same weights is warm, reads nothing, and tells the ratio of the refit."""
    weights = tunings.weights(1)

    with pool.lease(weights.id, lambda: weights) as first:
        assert not first.warm and first.refit_s > 0 and 0 <= first.probe_ratio < 1e-3
    with pool.lease(weights.id, never) as second:
        assert second.warm and second.refit_s == 0 and second.probe_ratio == first.probe_ratio
    assert pool.resident() == [weights.id]


def test_the_base_weights_are_there_from_the_start(pool: EnginePool, base: WeightSet) -> None:
    """A fresh engine holds the base weights, which are not counted as resident."""
    with pool.lease(BASE, never) as lease:
        assert lease.warm and lease.probe_ratio == TOO_SMALL
    assert pool.resident() == []


def test_weights_take_turns_in_one_engine(pool: EnginePool, base: WeightSet, tunings: Tunings) -> None:
    """A, B, base, A: each answers as it did, to the bit."""
    first, second = tunings.weights(1), tunings.weights(2)

    once = [said(pool, weights) for weights in (first, second, base)]
    again = [said(pool, weights) for weights in (second, base, first)]

    np.testing.assert_array_equal(once[0], again[2])
    np.testing.assert_array_equal(once[1], again[0])
    np.testing.assert_array_equal(once[2], again[1])


def test_the_weights_unused_for_longest_make_room(two: EnginePool, tunings: Tunings) -> None:
    """With two engines, the third set replaces the one that was leased longest ago."""
    first, second, third = (tunings.weights(seed) for seed in (1, 2, 3))

    for weights in (first, second, first, third):
        said(two, weights)

    assert two.resident() == sorted([first.id, third.id])


def test_the_engine_that_holds_the_weights_is_chosen_whichever_is_longest_unused(
    two: EnginePool, tunings: Tunings
) -> None:
    """A lease of what was used last is warm, though another engine waits longer."""
    first, second = tunings.weights(1), tunings.weights(2)
    for weights in (first, second):
        said(two, weights)

    for weights in (second, second, first, first):
        with two.lease(weights.id, never) as lease:
            assert lease.warm


def test_weights_that_fail_the_probe_leave_a_working_engine(
    pool: EnginePool, base: WeightSet, tunings: Tunings
) -> None:
    """The error reaches the caller; the engine is replaced by one with the base weights, and the next lease works."""
    weights = tunings.weights(1)
    before = said(pool, base)

    with pytest.raises(DataLoss), pool.lease(weights.id, lambda: lying(weights, **base.tensors)):
        raise AssertionError("a lease was given")

    assert pool.resident() == []
    np.testing.assert_array_equal(said(pool, base), before)
    said(pool, weights)
    assert pool.resident() == [weights.id]


def test_weights_that_cannot_be_read_leave_the_engine_as_it_was(pool: EnginePool, tunings: Tunings) -> None:
    """Nothing was written, so the weights before are still there and proven."""
    weights = tunings.weights(1)
    said(pool, weights)

    def missing() -> WeightSet:
        raise DataLoss("gone", reason="WEIGHTS_MISSING")

    with pytest.raises(DataLoss), pool.lease("other", missing):
        raise AssertionError("a lease was given")

    with pool.lease(weights.id, never) as lease:
        assert lease.warm


def test_an_engine_that_cannot_be_opened_again_is_tried_at_the_next_lease(
    open_engine: Callable[[], Engine], base: WeightSet, tunings: Tunings
) -> None:
    """A pool never hands out a broken engine and never loses one for good."""
    is_broken = False

    def open_sometimes() -> Engine:
        if is_broken:
            raise MemoryError("no room for an engine")
        return open_engine()

    pool, weights = EnginePool(open_sometimes, base), tunings.weights(1)
    is_broken = True
    with pytest.raises(DataLoss), pool.lease(weights.id, lambda: lying(weights, **base.tensors)):
        raise AssertionError("a lease was given")
    with pytest.raises(MemoryError), pool.lease(BASE, lambda: base):
        raise AssertionError("a lease was given")
    is_broken = False

    said(pool, weights)
    assert pool.resident() == [weights.id]


def test_an_error_in_the_sampling_gives_the_engine_back(pool: EnginePool, tunings: Tunings) -> None:
    """A lease ends however its block ends."""
    weights = tunings.weights(1)

    with pytest.raises(ZeroDivisionError), pool.lease(weights.id, lambda: weights):
        raise ZeroDivisionError

    with pool.lease(weights.id, never) as lease:
        assert lease.warm


def test_one_engine_is_leased_to_one_at_a_time(pool: EnginePool, tunings: Tunings) -> None:
    """Runs and refits of many threads never overlap, and every one sees its own weights."""
    sets = [tunings.weights(seed) for seed in (1, 2, 3)]
    expected = {weights.id: said(pool, weights) for weights in sets}
    inside: list[int] = []

    def work(weights: WeightSet) -> None:
        with pool.lease(weights.id, lambda: weights) as lease:
            inside.append(1)
            assert len(inside) == 1
            np.testing.assert_array_equal(answers(lease.engine), expected[weights.id])
            inside.pop()

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, sets[index % 3]) for index in range(18)]:
            done.result(timeout=60)


def test_one_refit_serves_all_who_wait_for_the_same_weights(two: EnginePool, tunings: Tunings) -> None:
    """While a first lease refits, others of the same weights wait for it and then read nothing."""
    weights, reads, goes_on = tunings.weights(1), [], threading.Event()

    def read() -> WeightSet:
        reads.append(1)
        goes_on.wait(10)
        return weights

    def work() -> bool:
        with two.lease(weights.id, read) as lease:
            return lease.warm

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(work)
        while not (reads or first.done()):
            time.sleep(0.001)
        others = [threads.submit(work) for _ in range(2)]
        time.sleep(0.05)
        assert len(reads) == 1 and not any(other.done() for other in others)
        goes_on.set()
        assert first.result(timeout=30) is False
        assert [other.result(timeout=30) for other in others].count(True) >= 1


def test_two_engines_serve_two_sets_at_once(two: EnginePool, tunings: Tunings) -> None:
    """A lease of other weights does not wait for one that is running."""
    first, second = tunings.weights(1), tunings.weights(2)

    with two.lease(first.id, lambda: first) as one, two.lease(second.id, lambda: second) as other:
        assert one.engine is not other.engine
        assert two.resident() == sorted([first.id, second.id])


def test_the_base_weights_run_beside_a_lease_of_others(
    open_engine: Callable[[], Engine], base: WeightSet, tunings: Tunings
) -> None:
    """One engine more is opened when they are first needed, once; the lease's own engine is left alone."""
    opened: list[Engine] = []

    def open_and_count() -> Engine:
        opened.append(open_engine())
        return opened[-1]

    pool, weights = EnginePool(open_and_count, base), tunings.weights(1)
    with pool.lease(BASE, never) as lease:
        expected = answers(lease.engine)
    with pool.lease(weights.id, lambda: weights) as lease:
        before = answers(lease.engine)
        assert len(opened) == 1
        for _ in range(2):
            np.testing.assert_array_equal(pool.run_base(*question(lease.engine.spec)), expected)
        np.testing.assert_array_equal(answers(lease.engine), before)
        assert len(opened) == 2 and lease.engine.weights == weights.id

    assert pool.resident() == [weights.id]
    pool.close()


def test_leases_that_need_base_weights_too_never_wait_for_each_other_forever(
    two: EnginePool, base: WeightSet, tunings: Tunings
) -> None:
    """Many at once, on more sets than engines, all end, each with its own answers and the base's."""
    sets = [tunings.weights(seed) for seed in (1, 2, 3)]
    expected = {weights.id: said(two, weights) for weights in sets}
    base_said = said(two, base)

    def work(weights: WeightSet) -> None:
        with two.lease(weights.id, lambda: weights) as lease:
            for _ in range(3):
                np.testing.assert_array_equal(two.run_base(*question(lease.engine.spec)), base_said)
                np.testing.assert_array_equal(answers(lease.engine), expected[weights.id])

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, sets[index % 3]) for index in range(12)]:
            done.result(timeout=60)


def test_an_engine_for_the_base_weights_that_cannot_be_opened_is_tried_again(
    open_engine: Callable[[], Engine], base: WeightSet, tunings: Tunings
) -> None:
    """The error reaches the caller; the next pass opens it."""
    broken = [False, True, False]

    def open_maybe() -> Engine:
        if broken.pop(0):
            raise OSError("no memory")
        return open_engine()

    pool = EnginePool(open_maybe, base)
    with pool.lease(BASE, never) as lease:
        with pytest.raises(OSError, match="no memory"):
            pool.run_base(*question(lease.engine.spec))
        np.testing.assert_array_equal(pool.run_base(*question(lease.engine.spec)), answers(lease.engine))
    pool.close()


def test_evicted_weights_are_gone(pool: EnginePool, base: WeightSet, tunings: Tunings) -> None:
    """The engine is back at the base weights; a later lease reads them anew."""
    weights = tunings.weights(1)
    before = said(pool, base)
    said(pool, weights)

    pool.evict(weights.id)

    assert pool.resident() == []
    np.testing.assert_array_equal(said(pool, base), before)
    with pool.lease(weights.id, lambda: weights) as lease:
        assert not lease.warm


def test_eviction_waits_for_the_lease_that_is_running(pool: EnginePool, tunings: Tunings) -> None:
    """The run goes on undisturbed, and the weights are forgotten at its end."""
    weights = tunings.weights(1)
    before = said(pool, weights)

    with pool.lease(weights.id, never) as lease:
        pool.evict(weights.id)
        np.testing.assert_array_equal(answers(lease.engine), before)
        assert pool.resident() == [weights.id]

    assert pool.resident() == []


def test_evicting_what_is_not_there_changes_nothing(pool: EnginePool, tunings: Tunings) -> None:
    """Unknown digests and the base weights are fine."""
    weights = tunings.weights(1)
    said(pool, weights)

    pool.evict("unknown")
    pool.evict(BASE)

    assert pool.resident() == [weights.id]


def test_weights_of_another_base_model_never_reach_an_engine(tunings: Tunings, base: WeightSet) -> None:
    """They are refused by the digest of their base model."""
    tuned = unpack(*tunings.file(1))

    with pytest.raises(FailedPrecondition) as refusal:
        tuned_weights(tuned, base, "00" * 32)
    with pytest.raises(DataLoss, match="'zip'"):
        coded = replace(tuned, manifest=replace(tuned.manifest, codec="zip"))
        tuned_weights(coded, base, tunings.spec.digest)

    assert refusal.value.reason == "BASE_MODEL_MISMATCH"


@pytest.mark.parametrize("codec", ["int8", "int4", "sign", "lora"])
def test_coded_weights_are_decoded_over_the_base(
    pool: EnginePool, base: WeightSet, tunings: Tunings, codec: str
) -> None:
    """An engine gets base plus delta, and the base's own arrays for the rest; the answer of just that proves it."""
    name = max(sorted(base.tensors), key=lambda name: base.tensors[name].size)
    tuned = tunings.weights(1).tensors[name]
    stored = encode({name: tuned}, base.tensors, codec)
    decoded = decode(stored, base.tensors, codec)[name]
    data, manifest = pack(
        stored,
        probe_tuned=tunings.reference.answer({**base.tensors, name: decoded}),
        probe_base=tunings.reference.answer(dict(base.tensors)),
        key="key",
        base_model=tunings.spec.digest,
        method="unitune",
        rare_tokens="beikkpic",
        updates=1,
        probe_seed=PROBE_SEED,
        codec=codec,
    )

    weights = tuned_weights(unpack(data, manifest), base, tunings.spec.digest)

    with pool.lease(weights.id, lambda: weights) as lease:
        assert 0 <= lease.probe_ratio < 1e-3
    assert [other for other in base.tensors if weights.tensors[other] is not base.tensors[other]] == [name]
    assert np.abs(decoded - tuned).max() < np.abs(base.tensors[name] - tuned).max()


class RestingEngine(OrtEngine):
    """Counts how often it rested, and may fail at it."""

    rests = 0
    is_broken = False

    def rest(self) -> None:
        """As OrtEngine's."""
        self.rests += 1
        super().rest()
        if self.is_broken:
            raise RuntimeError("no rest")


def test_an_engine_rests_when_nobody_waits_for_it(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is opened and at the end of a lease, but not between two leases that follow each other; its answers stay
    the same to the bit, and a rest that fails ends nothing."""
    monkeypatch.setattr("sampler_svc.engines.cpu.is_large", lambda size: True)
    weights = tunings.weights(1)
    pool = EnginePool(lambda: RestingEngine(engine_folder, EngineSpec.from_model(spec), threads=1), base)
    with ThreadPoolExecutor(1) as other:
        with pool.lease(weights.id, lambda: weights) as lease:
            engine = lease.engine
            assert isinstance(engine, RestingEngine) and 1 == engine.rests
            found = [answers(engine)]
            waiting = other.submit(said, pool, weights)
            while not pool._waiting:
                time.sleep(0.01)
        found.append(waiting.result(60))
    assert 2 == engine.rests
    engine.is_broken = True
    found += [said(pool, weights), said(pool, weights)]
    assert 4 == engine.rests
    pool.close()

    assert all(np.array_equal(found[0], each) for each in found)
