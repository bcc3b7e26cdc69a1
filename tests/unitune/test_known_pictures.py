"""The file that says which pictures a base model knows."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from unitune.known_pictures import KNOWN_PICTURES_FILE, KnownPictures

KNOWN = KnownPictures(
    mean=np.array([1, 0], np.float32),
    whitening=np.array([[2, 0], [0, 10]], np.float32),
    distance=2.0,
    round_trip=0.05,
    shows="squares",
)


def test_a_picture_is_strange_by_either_figure() -> None:
    """The larger of both shares of their limits counts: distance in the directions that vary, and round trip (N25)."""
    assert KNOWN.strangeness(np.array([1, 0], np.float32), 0.05) == pytest.approx(1)
    assert KNOWN.strangeness(np.array([0, 0], np.float32), 0.01) == pytest.approx(1)
    assert KNOWN.strangeness(np.array([1, 0.4], np.float32), 0.01) == pytest.approx(2)
    assert KNOWN.strangeness(np.array([1, 0], np.float32), 0.2) == pytest.approx(4)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A folder without the file knows nothing, one with it what was saved (N25)."""
    assert KnownPictures.load(tmp_path) is None
    KNOWN.save(tmp_path)
    found = KnownPictures.load(tmp_path)

    assert found is not None
    assert (found.distance, found.round_trip, found.shows) == (2.0, 0.05, "squares")
    np.testing.assert_array_equal(found.whitening, KNOWN.whitening)


@pytest.mark.parametrize("damage", ["cut", "foreign", "shape", "limit"])
def test_another_file_is_refused_by_its_name(tmp_path: Path, damage: str) -> None:
    """A file that is cut short, or says something else, is not taken for limits (N25)."""
    path = tmp_path / KNOWN_PICTURES_FILE
    if damage == "shape":
        KnownPictures(KNOWN.mean, KNOWN.whitening[:1], 2.0, 0.05, "squares").save(tmp_path)
    elif damage == "limit":
        KnownPictures(KNOWN.mean, KNOWN.whitening, float("nan"), 0.05, "squares").save(tmp_path)
    elif damage == "foreign":
        save_file({"mean": KNOWN.mean}, path)
    else:
        KNOWN.save(tmp_path)
        path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(ValueError, match=KNOWN_PICTURES_FILE):
        KnownPictures.load(tmp_path)
