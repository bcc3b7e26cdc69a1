"""Interpolation outside of a mask, and the mask that is estimated from the difference."""

from itertools import pairwise

import numpy as np
import pytest

from sampler_svc.sampling.interpolation import mix
from sampler_svc.sampling.masks.difference import changed


def interpolate(edited: np.ndarray, base: np.ndarray, weight: float) -> np.ndarray:
    """With the mask of the difference."""
    return mix(edited, base, weight, changed(edited, base))


@pytest.fixture
def base() -> np.ndarray:
    """A smooth picture."""
    ramp = np.linspace(40, 200, 64)
    return np.stack([np.tile(ramp, (64, 1))] * 3, axis=2).astype(np.uint8)


@pytest.fixture
def edited(base: np.ndarray) -> np.ndarray:
    """The picture with a red square in it, and everything else off by two levels."""
    picture = base + 2
    picture[20:40, 24:44] = (230, 20, 20)
    return picture


def test_weight_0_leaves_the_edit_alone(base: np.ndarray, edited: np.ndarray) -> None:
    """Without interpolation the edit is bit-equal to what was sampled (check U8)."""
    assert np.array_equal(interpolate(edited, base, 0.0), edited)


def test_weight_1_restores_what_did_not_change_exactly(base: np.ndarray, edited: np.ndarray) -> None:
    """Far from the square the base image's own pixels return; the square itself stays as it was edited."""
    result = interpolate(edited, base, 1.0)

    assert np.array_equal(result[:10], base[:10]) and np.array_equal(result[:, :12], base[:, :12])
    assert np.array_equal(result[24:36, 28:40], edited[24:36, 28:40])


def test_mask_0_and_weight_1_is_the_base_image(base: np.ndarray, edited: np.ndarray) -> None:
    """And a mask of 1 is the edit, whatever the weight (check U8)."""
    assert np.array_equal(mix(edited, base, 1.0, np.zeros((64, 64), np.float32)), base)
    assert np.array_equal(mix(edited, base, 1.0, np.ones((64, 64), np.float32)), edited)


def test_the_result_is_monotone_in_the_weight(base: np.ndarray, edited: np.ndarray) -> None:
    """Every pixel moves from the edit towards the base image as the weight grows (check U8)."""
    steps = [interpolate(edited, base, weight).astype(int) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)]
    distances = [np.abs(step - base.astype(int)) for step in steps]

    assert all((later <= earlier).all() for earlier, later in pairwise(distances))


def test_a_picture_that_changed_everywhere_is_left_alone(base: np.ndarray) -> None:
    """Day to night: the mask is 1 everywhere, so nothing of the day comes back."""
    night = (base * 0.2).astype(np.uint8)

    assert changed(night, base).min() == 1.0
    assert np.array_equal(interpolate(night, base, 1.0), night)


def test_a_faint_difference_counts_only_where_it_reaches_a_strong_one(base: np.ndarray, edited: np.ndarray) -> None:
    """A shade of 20 levels around the square belongs to the change; the same shade alone is an accident."""
    edited[18:46, 22:50] += ((edited[18:46, 22:50] < 200) * 20).astype(np.uint8)  # around the square, and touching it
    edited[2:12, 2:12] += 20

    mask = changed(edited, base)

    assert 1.0 == mask[43, 30] and 1.0 == mask[30, 30]
    assert 0.0 == mask[2:12, 2:12].max()


def test_equal_pictures_have_an_empty_mask(base: np.ndarray) -> None:
    """No change, no mask, and no division by nothing."""
    assert changed(base, base).max() == 0.0


def test_a_faint_change_counts_where_there_is_no_stronger_one(base: np.ndarray) -> None:
    """A thing drawn in the dark: 24 levels, which beside a strong change are an accident."""
    edited = base.copy()
    edited[10:40, 10:40] = np.clip(base[10:40, 10:40].astype(int) + 24, 0, 255)

    mask = changed(edited, base)

    assert mask[25, 25] == 1.0 and mask[60, 60] == 0.0


def test_what_the_autoencoder_alters_alone_is_no_change(base: np.ndarray) -> None:
    """However little the edit did: 6 levels everywhere bring the base image back, exactly."""
    edited = (base // 2 + 64).astype(np.uint8)
    faint = edited + np.uint8(6)

    assert changed(faint, edited).max() == 0.0
    assert np.array_equal(interpolate(faint, edited, 1.0), edited)


def test_a_small_region_beside_a_large_one_is_an_accident(base: np.ndarray) -> None:
    """As many pixels as a twentieth of the other's go; as many as a fifth stay."""
    dark = (base // 2).astype(np.uint8)
    edited = dark.copy()
    edited[4:44, 4:44] += 100
    small, fifth = edited.copy(), edited.copy()
    small[50:59, 50:59] += 100
    fifth[46:62, 40:62] += 100

    assert changed(small, dark)[54, 54] == 0.0 and changed(small, dark)[20, 20] == 1.0
    assert changed(fifth, dark)[54, 54] == 1.0
