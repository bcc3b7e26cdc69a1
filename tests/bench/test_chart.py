"""The chart says what the report says: goals met and missed, other units against their goals, and what is missing."""

from pathlib import Path

from PIL import Image

from bench.chart import MET, MISSED, NO_GOAL, bars, draw


def spread(median: float) -> dict[str, float]:
    """A ratio as reports have it."""
    return {"median": median, "smallest": median / 2, "largest": 2 * median}


REPORT = {
    "edit.20_steps.ratio_to_diffusers_eager": spread(0.44),
    "edit.50_steps.ratio_to_diffusers_eager": spread(0.46),
    "edit.50_steps.ratio_to_torch_compile": spread(0.46),
    "edit.50_steps.ratio_to_openvino": {"refused": "not run: openvino is not installed"},
    "refit.denoising_steps": spread(6.0),
    "gateway.overhead_ms": spread(7.5),
}


def test_a_bar_says_whether_its_median_meets_the_goal() -> None:
    """Just below the goal is met and just above is not; what has no goal is neither."""
    by_label = {bar.label: bar for bar in bars(REPORT)[0]}

    assert by_label["edit of 20 steps / diffusers eager"].colour == MET
    assert by_label["edit of 50 steps / diffusers eager"].colour == MISSED
    assert by_label["edit of 50 steps / torch.compile"].colour == NO_GOAL


def test_figures_in_other_units_are_shares_of_their_goals() -> None:
    """Six steps against three are 2, their spread with them; 7.5 ms against 15 are 0.5."""
    refit, overhead = bars(REPORT)[1]

    assert (refit.median, refit.smallest, refit.largest, refit.colour) == (2.0, 1.0, 4.0, MISSED)
    assert (overhead.median, overhead.colour) == (0.5, MET)


def test_what_was_not_measured_is_shown_with_its_reason(tmp_path: Path) -> None:
    """Neither a refused ratio nor an absent one gets a bar of length 0, and the chart is drawn all the same."""
    by_label = {bar.label: bar for bar in bars(REPORT)[0]}

    assert by_label["edit of 50 steps / OpenVINO"].missing == "not run: openvino is not installed"
    assert by_label["tuning / diffusers DreamBooth"].missing == "not measured"
    for number, report in enumerate((REPORT, {})):
        draw(report, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert min(picture.size) > 500
