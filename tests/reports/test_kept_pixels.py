"""What must stay stays: pixels outside of a mask, the way up of a photograph, a picture at almost no strength."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.picture_files import file_of
from unitune_client import Client

ORIENTATION = 0x0112  # EXIF's tag
SHORT = {"method": "sdedit", "strength": 0.8, "num_inference_steps": 4}


def corner_mask(size: tuple[int, int]) -> bytes:
    """A PNG of this width and height that is white in its first pixels alone."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:4, :4] = 255
    return file_of(Image.fromarray(mask))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_edited_the_way_up_that_it_is_shown(client: Client, tmp_path: Path, orientation: int) -> None:
    """Each of EXIF's eight orientations is applied: masks fit the picture as viewers show it, and it comes back so."""
    rows = np.linspace(0, 255, 40).astype(np.uint8)[:, None, None]
    pixels = np.broadcast_to(rows, (40, 56, 3)).copy()
    pixels[:20, :28, 0] = 255  # no two of its corners are alike
    file = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(file, quality=95, exif=exif)
    with Image.open(file) as stored:
        shown = ImageOps.exif_transpose(stored).convert("RGB")

    result = client.edit_to_end(file, "a cat", mask=corner_mask(shown.size), **SHORT)

    edited = Image.open(io.BytesIO(result.images[0].png))
    assert shown.size == edited.size
    outside = np.asarray(Image.open(io.BytesIO(corner_mask(shown.size)))) == 0
    np.testing.assert_array_equal(np.asarray(edited)[outside], np.asarray(shown)[outside])


@pytest.mark.parametrize("size", [(60, 44), (333, 97), (48, 48)])
@pytest.mark.parametrize("only_masked", [False, True], ids=["whole", "only masked"])
def test_a_mask_keeps_every_pixel_outside(
    client: Client, tmp_path: Path, size: tuple[int, int], only_masked: bool
) -> None:
    """The largest difference outside of a mask is 0, even of pure noise, at the model's size or another."""
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(photo)
    shown = np.zeros((size[1], size[0]), np.uint8)
    shown[8:30, 10:40] = 255
    Image.fromarray(shown).save(mask)

    result = client.edit_to_end(photo, "a cat", mask=mask, only_masked=only_masked, **SHORT)

    edited = np.asarray(Image.open(io.BytesIO(result.images[0].png))).astype(int)
    difference = np.abs(edited - np.asarray(Image.open(photo)))
    assert 0 == difference[shown == 0].max()
    assert difference[shown != 0].max() > 0


@pytest.mark.parametrize("strength", [0.0, 1e-6, 0.01, 0.02, 1.0])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m"])
def test_very_low_strengths_and_few_steps_give_a_picture(
    client: Client, photo: Path, strength: float, steps: int, scheduler: str
) -> None:
    """No strength and no number of steps is too small; what ran is told, and where nothing ran, seeds do not matter."""
    settings = {"strength": strength, "num_inference_steps": steps, "scheduler": scheduler, "method": "sdedit"}

    result = client.edit_to_end(photo, "a cat", seeds=[1, 2], omit_metadata=True, **settings)

    assert [(60, 44)] * 2 == [Image.open(io.BytesIO(image.png)).size for image in result.images]
    is_same = result.images[0].png == result.images[1].png
    assert is_same == (result.effective_strength == 0)
    assert 0 <= result.effective_strength <= 1
