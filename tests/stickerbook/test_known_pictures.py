"""Which pictures stickerbook takes for its own, by the limits in this repository."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stickerbook.known_pictures import Eye, held_out
from stickerbook.save_model import MODEL
from unitune.known_pictures import KnownPictures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def eye() -> Eye:
    """The filter's CLIP and the autoencoder of this repository."""
    return Eye(MODEL)


@pytest.fixture(scope="module")
def known() -> KnownPictures:
    """The limits of this repository."""
    found = KnownPictures.load(MODEL)
    assert found is not None
    return found


def test_pictures_of_the_world_are_known(eye: Eye, known: KnownPictures) -> None:
    """Renders that training never drew, resized, compressed and noisy, and the demo's pictures (the end of N25)."""
    demo = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((ROOT / "demo").glob("*.png"))]
    assert len(demo) >= 3

    strange = eye.look([*held_out(120), *demo]).strangeness(known) > 1

    assert strange.sum() <= 2 and not strange[-len(demo) :].any()


def test_photographs_are_not(eye: Eye, known: KnownPictures) -> None:
    """Colour photographs, noise and text are told from them (the end of N25)."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    photographs = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)

    assert (eye.look([*photographs, noise]).strangeness(known) > 1).all()
