"""What a tuning tells of the time it still takes: before, within and after its updates."""

from types import SimpleNamespace

import pytest

from tuner_svc import tuning_stages
from tuner_svc.progress_tracker import UpdateProgress
from tuner_svc.tuning_stages import StageTimes, TuningStages


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(tuning_stages, "time", SimpleNamespace(monotonic=lambda: self.now_s))


def run(clock: Clock, times: StageTimes, update_s: float, packing_s: float) -> list[UpdateProgress]:
    """What a tuning of four updates tells."""
    told: list[UpdateProgress] = []
    stages = TuningStages(times, "unitune", 4, told.append)
    for update in (1, 2, 3, 4):
        clock.now_s += update_s
        known = update_s if update > 1 else None
        left_s = None if known is None else known * (4 - update)
        stages.updated(UpdateProgress(update, 4, 0.5, left_s, update_s=known))
    stages.begin("packing")
    clock.now_s += packing_s
    stages.begin("storing")
    stages.end()
    return told


def test_what_is_left_includes_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last update the packing is left: about one update before any was timed, then as long as the last one,
    in updates, so that a machine of half the speed is told of twice the time."""
    clock, times = Clock(monkeypatch), StageTimes()

    first = run(clock, times, update_s=10, packing_s=30)
    second = run(clock, times, update_s=20, packing_s=60)

    stages = ["preparing", "updating", "updating", "updating", "updating", "packing", "storing"]
    assert stages == [one.stage for one in first] == [one.stage for one in second]
    assert [None, None, 30, 20, 10, 10, 0] == [one.left_s for one in first]
    assert [None, None, 100, 80, 60, 60, 0] == [one.left_s for one in second]
    assert (4, 4, 0.5) == (first[-1].update, first[-1].total, first[-1].loss)


def test_another_kind_of_tuning_is_told_nothing_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing all weights says nothing of packing a few."""
    times = StageTimes()
    run(Clock(monkeypatch), times, update_s=1, packing_s=50)

    assert 50 == times.seconds("unitune", "packing")
    assert 1 == times.seconds("imagic", "packing")
