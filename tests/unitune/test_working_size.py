"""The working size of a picture, and how it lies in it."""

import math

import numpy as np
import pytest

from unitune import images
from unitune.working_size import MOST_AREA, MOST_ASPECT, enlarged, fit, size_of, warnings_of, working_size

STABLE_DIFFUSION, STICKERBOOK = ((512, 512), 64), ((64, 64), 16)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((3024, 4032), (448, 576)),
        ((4032, 3024), (576, 448)),
        ((1080, 1920), (384, 640)),
        ((4000, 6000), (384, 576)),
        ((1000, 5000), (320, 768)),
        ((512, 512), (512, 512)),
        ((2000, 1980), (512, 512)),
    ],
)
def test_photographs_have_a_working_size_of_their_own_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The sizes of common photographs for Stable Diffusion 1.5 (M24)."""
    assert expected == working_size(size, *STABLE_DIFFUSION)


@pytest.mark.parametrize(("image_side", "step"), [STABLE_DIFFUSION, STICKERBOOK, ((1024, 1024), 32), ((48, 48), 8)])
def test_every_working_size_can_be_computed(image_side: tuple[int, int], step: int) -> None:
    """Sides are multiples of the step, the area is at most 1.02 of the model's, the aspect at most 2.5 and near the
    picture's; a square has the model's own size, and a picture on its side the same size on its side (M24)."""
    area = image_side[0] * image_side[1]
    for height in range(100, 1000, 37):
        size = height, 1000 - height // 2
        found = working_size(size, image_side, step)
        assert found[0] % step == 0 == found[1] % step
        assert found[0] * found[1] <= MOST_AREA * area
        assert max(found) / min(found) <= MOST_ASPECT
        wanted = min(max(size[0] / size[1], 1 / MOST_ASPECT), MOST_ASPECT)
        # Never further from the picture's aspect than the square is, which costs no area.
        assert abs(math.log(found[0] / found[1] / wanted)) <= abs(math.log(wanted)) + 1e-9
        assert (found[1], found[0]) == working_size((size[1], size[0]), image_side, step)
        assert image_side == working_size((height, height), image_side, step)


def test_a_step_of_0_leaves_the_models_own_size() -> None:
    """An engine of one size fills other pictures up."""
    assert (512, 512) == working_size((100, 300), (512, 512), 0)


@pytest.mark.parametrize("size", [(60, 44), (300, 200), (97, 151), (40, 400), (1, 7), (64, 64), (65, 64), (900, 31)])
def test_what_is_padded_is_cut_off_again(size: tuple[int, int]) -> None:
    """A picture comes back in its own size; one of the scaled size comes back to the bit (M24)."""
    place = fit(size, working_size(size, *STICKERBOOK))
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    image = place.to_model(picture)

    assert image.shape == (1, 3, *place.size)
    assert place.from_model(image, size).shape == picture.shape
    scaled = rng.integers(0, 256, (place.height, place.width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(place.from_model(place.to_model(scaled), size_of(scaled)), scaled)


def test_a_picture_is_not_squeezed() -> None:
    """Both of its sides are scaled alike, to half a pixel."""
    for size in ((300, 200), (3024, 4032), (97, 151), (1000, 4000)):
        place = fit(size, working_size(size, *STABLE_DIFFUSION))
        scale = max(place.height / size[0], place.width / size[1])
        assert abs(place.height - scale * size[0]) <= 0.5 and abs(place.width - scale * size[1]) <= 0.5
        assert place.height == place.size[0] or place.width == place.size[1]


def test_a_square_picture_is_computed_as_ever() -> None:
    """Its model image is that of `images.to_model`, to the bit."""
    picture = np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    place = fit((90, 90), working_size((90, 90), *STICKERBOOK))

    assert not place.is_padded
    np.testing.assert_array_equal(place.to_model(picture), images.to_model(picture, (64, 64)))
    image = np.random.default_rng(2).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    np.testing.assert_array_equal(place.from_model(image, (90, 90)), images.from_model(image, (90, 90)))


def test_what_is_left_is_the_pictures_reflection() -> None:
    """The middle is the picture, and what lies beyond its edge is its mirror image."""
    place = fit((4, 8), (8, 8))
    values = np.arange(32, dtype=np.float32).reshape(4, 8)

    padded = place.padded(values)

    np.testing.assert_array_equal(padded[2:6], values)
    np.testing.assert_array_equal(padded[:2], values[1::-1])
    np.testing.assert_array_equal(padded[6:], values[:1:-1])


def test_super_resolutions_size_holds_the_picture_at_the_same_place() -> None:
    """Twice the working size has the picture at twice the place."""
    place = fit((100, 390), (64, 160))

    assert place.scaled((128, 320)) == ((128, 320), *(2 * side for side in place[1:]))


def test_a_picture_that_is_too_long_is_told() -> None:
    """Only one beyond every working size."""
    assert [] == warnings_of((1000, 2500)) == warnings_of((2500, 1000))
    (warning,) = warnings_of((100, 400))
    assert "4.0 times as long" in warning and "only_masked" in warning


def test_a_second_passes_size_is_a_multiple_of_the_working_size_and_at_most_the_pictures() -> None:
    """In the model's step; a picture that is no larger than its working size has none."""
    size = (3000, 4000)
    place = fit(size, (448, 576))

    sizes = [found.size if (found := enlarged(size, place, scale, 64)) else None for scale in (2.0, 4.0, 16.0)]
    assert sizes == [(896, 1152), (1792, 2304), (3136, 4032)]
    assert enlarged((430, 576), fit((430, 576), (448, 576)), 2.0, 64) is None
    assert enlarged((500, 600), fit((500, 600), (448, 576)), 8.0, 64) is not None
