"""Tiles: they cover everything, overlap enough, and what agrees comes back without a seam."""

import itertools

import numpy as np
import pytest

from sampler_svc.sampling.masks.shape import Region
from sampler_svc.sampling.tiles import Tiles
from unitune.tile_starts import OVERLAP
from unitune.working_size import enlarged, fit, working_size

SIZES = [((12, 12), (12, 12)), ((12, 13), (12, 12)), ((30, 41), (12, 16)), ((64, 100), (16, 16)), ((23, 12), (12, 12))]


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_tiles_cover_everything_and_overlap(size: tuple[int, int], side: tuple[int, int]) -> None:
    """By a quarter of their side at least, and none lies outside."""
    tiles = Tiles.over(size, side)

    covered = np.zeros(size, int)
    for place in tiles.places:
        assert (place.bottom - place.top, place.right - place.left) == side
        covered[place.slices] += 1
    assert covered.min() >= 1 and covered.sum() == len(tiles.places) * side[0] * side[1]
    for starts, length in ((tiles.tops, side[0]), (tiles.lefts, side[1])):
        for first, second in itertools.pairwise(starts):
            assert first < second and first + length - second >= OVERLAP * length


def test_a_photograph_has_so_many_tiles() -> None:
    """12 megapixels for a model of 512x512: what docs/photographs.md says."""
    size, numbers = (3000, 4000), []
    for scale in (2, 4):
        place = enlarged(size, fit(size, working_size(size, (512, 512), 64)), scale, 64)
        assert place is not None
        numbers.append(len(Tiles.over(place.size, (512, 512)).places))

    assert numbers == [6, 30]


def test_a_tile_that_is_larger_is_refused() -> None:
    """Nothing would be under its edge."""
    with pytest.raises(ValueError, match="a tile of 12 does not fit into 11"):
        Tiles.over((11, 20), (12, 12))


@pytest.mark.parametrize(("size", "side"), SIZES)
@pytest.mark.parametrize("factor", [1, 4])
def test_tiles_that_agree_give_back_what_they_agree_on(
    size: tuple[int, int], side: tuple[int, int], factor: int
) -> None:
    """Pictures to the bit, arrays to rounding."""
    rng, tiles = np.random.default_rng(0), Tiles.over(size, side).scaled(factor)
    pixels = rng.integers(0, 256, (*tiles.size, 3), dtype=np.uint8)
    array = rng.standard_normal((1, 4, *tiles.size), dtype=np.float32)

    np.testing.assert_array_equal(tiles.picture_of(lambda place: place.crop(pixels)), pixels)
    parts = [(place, array[:, :, place.slices[0], place.slices[1]]) for place in tiles.places]
    np.testing.assert_allclose(tiles.mean_of(parts, 4), array, atol=1e-5)
    some = [(place, part) for place, part in parts if place.left == tiles.lefts[0]]
    mean = tiles.mean_of(some, 4)
    np.testing.assert_allclose(mean[..., : tiles.side[1]], array[..., : tiles.side[1]], atol=1e-5)
    assert not mean[..., tiles.side[1] :].any()


def test_tiles_that_disagree_pass_into_each_other() -> None:
    """From a black tile to a white one there is no step above that of a smooth ramp over their overlap."""
    tiles = Tiles.over((16, 28), (16, 16))

    def made(place: Region) -> np.ndarray:
        return np.full((16, 16, 3), 255 * (place.left > 0), np.uint8)

    row = tiles.picture_of(made)[0, :, 0].astype(int)
    common = 16 - tiles.lefts[1]
    assert row[: tiles.lefts[1]].max() == 0 and row[16:].min() == 255
    assert np.diff(row).min() >= 0 and np.diff(row).max() <= 255 * np.pi / 2 / common + 1


def test_tiles_that_a_mask_does_not_touch_are_left_out() -> None:
    """One spot touches the tiles over it, and no others."""
    tiles = Tiles.over((30, 41), (12, 16))
    mask = np.zeros((30, 41), np.float32)
    mask[2, 3] = 0.01

    assert tiles.touching(mask) == [Region(0, 0, 12, 16)]
    assert tiles.touching(np.zeros_like(mask)) == []
    assert tiles.touching(None) == tiles.places
