"""What could be wrong in measuring: spread, percentiles, and a ratio claimed for another picture."""

import math

import numpy as np
import pytest

from bench.measure import Measured, Ratio, claimed, in_turns, percentile, psnr_db


def test_a_ratio_is_taken_round_by_round() -> None:
    """The machine's drift from round to round cancels; the spread is that of the rounds' ratios."""
    assert Ratio.divide(Measured((1.0, 10.0, 4.0)), Measured((2.0, 20.0, 4.0))) == Ratio(0.5, 0.5, 1.0)
    with pytest.raises(ValueError):
        Ratio.divide(Measured((1.0,)), Measured((1.0, 2.0)))


def test_percentiles_are_values_that_were_measured() -> None:
    """p95 of twenty is the nineteenth, of few the largest; order does not matter."""
    assert percentile(list(range(20, 0, -1)), 0.95) == 19
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0 and percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    for values, share in (([], 0.5), ([1.0], 0.0), ([1.0], 1.1)):
        with pytest.raises(ValueError):
            percentile(values, share)


def test_psnr_is_that_of_its_definition() -> None:
    """One level off everywhere is 20 log10(255) dB; uint8 does not wrap around; equal pictures are 100."""
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert psnr_db(black, black + 1) == psnr_db(black + 1, black) == pytest.approx(20 * math.log10(255))
    assert psnr_db(black, white) == 0 and psnr_db(black, black) == 100
    with pytest.raises(ValueError):
        psnr_db(black, black[:1])


def test_no_ratio_is_claimed_where_the_pictures_differ() -> None:
    """At 40 dB there is one, below there is a reason in its place, and for what is no number, too."""
    ours, peer = Measured((1.0, 2.0)), Measured((2.0, 4.0))
    assert claimed(ours, peer, 40.0) == {"median": 0.5, "smallest": 0.5, "largest": 0.5}
    for alike_db in (39.9, math.nan):
        assert list(claimed(ours, peer, alike_db)) == ["refused"]


def test_each_round_has_every_work_once_in_turn() -> None:
    """One call of each warms up and is not measured."""
    calls: list[str] = []
    taken = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3 and [len(one.seconds) for one in taken.values()] == [2, 2]
