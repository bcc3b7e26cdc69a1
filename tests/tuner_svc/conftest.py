"""The tiny base model in memory, a picture to tune on, and short tunings."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuner_svc.base_model import BaseModel, load
from unitune import images


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> BaseModel:
    """The tiny base model. Every test leaves it as it was, which test_tune checks."""
    return load(tiny_model)


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A PNG file of a few soft blotches of colour, not of the model's size."""
    rng = np.random.default_rng(0)
    blotches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    blotches.resize((80, 60), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def image(picture: bytes, model: BaseModel) -> images.ModelImage:
    """The picture as the model takes it."""
    return images.to_model(images.decode(picture), model.image_side)
