"""How long a run that comes now waits for an engine."""

import time

import pytest

from sampler_svc.run_times import RunTimes


def test_waits_are_estimated_from_the_last_runs() -> None:
    """Nothing is known at first; then each that waits takes the engine that is free first."""
    times = RunTimes()
    now_s = time.monotonic()
    assert times.queued_s(1, [now_s], 5) == 0
    times.edited(2.0)
    assert times.queued_s(1, [], 0) == 0 and times.queued_s(2, [now_s], 0) == 0
    assert times.queued_s(1, [now_s], 0) == pytest.approx(2.0, abs=0.1)
    assert times.queued_s(1, [now_s - 1.5], 0) == pytest.approx(0.5, abs=0.1)
    assert times.queued_s(1, [now_s - 9.0], 0) == 0  # longer than usual: perhaps over at any moment
    assert times.queued_s(1, [now_s], 3) == pytest.approx(8.0, abs=0.1)
    assert times.queued_s(2, [now_s, now_s - 1.0], 3) == pytest.approx(4.0, abs=0.1)


def test_lately_is_a_moving_mean() -> None:
    """One slow run moves it by a part; a kept refit is no refit from the store."""
    times = RunTimes()
    for _ in range(20):
        times.edited(1.0)
    times.edited(2.0)
    assert times.edit_s == pytest.approx(1.3)
    times.refitted(4.0, was_kept=False)
    times.refitted(0.5, was_kept=True)
    assert (times.refit_s, times.kept_refit_s) == (4.0, 0.5)
