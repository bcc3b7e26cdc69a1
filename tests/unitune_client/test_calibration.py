"""The choice of settings by measured edits."""

import io

import numpy as np
import pytest
from PIL import Image

from unitune_client.cli.calibration import (
    MOST_DB,
    EditFigures,
    cheapest_reconstruction,
    choose,
    kept_db,
    undominated,
)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_what_was_kept_is_the_peak_signal_to_noise_ratio() -> None:
    """It is that of the mean square over pixels and colours; the same picture has the most."""
    random = np.random.default_rng(0)
    photo, edited = (random.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(2))
    squares = ((photo.astype(float) - edited.astype(float)) ** 2).mean()

    assert kept_db(png(photo), png(edited)) == pytest.approx(20 * np.log10(255) - 10 * np.log10(squares), abs=1e-6)
    assert kept_db(png(photo), png(photo)) == MOST_DB


def test_a_photograph_is_compared_at_a_smaller_size() -> None:
    """Noise that only the full size has hardly counts, and an enlarged result may have another size."""
    random = np.random.default_rng(0)
    plain = np.full((1024, 2048, 3), 128, dtype=np.uint8)
    noisy = np.clip(plain + random.normal(0, 20, plain.shape), 0, 255).astype(np.uint8)

    assert kept_db(png(plain), png(noisy)) > kept_db(png(plain[:256, :512]), png(noisy[:256, :512])) + 6
    assert kept_db(png(plain[:256, :512]), png(plain[:512, :1024])) == MOST_DB


def test_an_edit_that_gains_too_little_is_none() -> None:
    """Of the settings that gain nine tenths of the most, the one that keeps most is chosen."""
    curve = [EditFigures(30.0, 0.00), EditFigures(28.0, 0.08), EditFigures(20.0, 0.095), EditFigures(12.0, 0.10)]

    choice = choose({0: curve, 1: curve}, [0.0] * 4)

    assert (choice.number, choice.against) == (2, ())


def test_of_settings_that_keep_the_same_the_cheapest_is_chosen() -> None:
    """Less than half a decibel cannot be seen; of equals in cost the one that gains most is chosen."""
    settings = [EditFigures(18.7, 0.31), EditFigures(19.6, 0.30), EditFigures(20.0, 0.29), EditFigures(20.0, 0.31)]

    assert choose({0: settings}, [64, 128, 192, 192]).number == 1
    assert choose({0: settings}, [0, 0, 0, 0]).number == 3


def test_a_seed_with_which_the_choice_gains_too_little_is_told() -> None:
    """The means choose; every seed must gain enough alone."""
    sure = [EditFigures(30.0, 0.0), EditFigures(28.0, 0.098), EditFigures(12.0, 0.10)]
    other = [EditFigures(30.0, 0.0), EditFigures(27.0, 0.08), EditFigures(13.0, 0.09)]

    choice = choose({0: sure, 1: sure, 7: other}, [0.0] * 3)

    assert (choice.number, choice.against) == (1, (7,))


def test_where_all_edits_lose_likeness_the_smallest_loss_is_chosen() -> None:
    """What keeps more is not enough then, either."""
    choice = choose({0: [EditFigures(30.0, -0.2), EditFigures(20.0, -0.1)]}, [0.0] * 2)

    assert (choice.number, choice.against) == (1, ())


def test_points_that_another_beats_are_left_out() -> None:
    """A point stays if no other one is at least as good in both figures; of two that are the same both stay."""
    points = [
        EditFigures(30.0, 0.0),
        EditFigures(20.0, 0.2),
        EditFigures(19.0, 0.2),
        EditFigures(10.0, 0.3),
        EditFigures(10.0, 0.3),
    ]

    assert undominated(points) == [0, 1, 3, 4]


def test_without_clip_the_cheapest_good_reconstruction_is_taken() -> None:
    """Less than half a decibel cannot be seen, so it is not worth twice the updates."""
    assert cheapest_reconstruction({"64": 24.8, "128": 25.1, "256": 25.2}, {"64": 64, "128": 128, "256": 256}) == "64"
    assert cheapest_reconstruction({"64": 24.1, "128": 25.1}, {"64": 64, "128": 128}) == "128"
