"""Which pictures a base model knows: `known_pictures.safetensors` in its folder, where it says so.

A picture is unknown if it is far from those in either of two ways: its embedding by the filter's CLIP from their mean,
by Mahalanobis' distance, or the picture from what the autoencoder makes of it. The two find different ones: a CLIP
that never saw noise or text may put them anywhere, and the autoencoder can draw a blurred photograph.

The file is no part of the base model's digest, since no tuning and no edit depends on it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

KNOWN_PICTURES_FILE = "known_pictures.safetensors"
NUMBERS = ("distance", "round_trip")  # of the file's metadata

Array = NDArray[np.float32]


@dataclass(frozen=True)
class KnownPictures:
    """The pictures that a base model knows, as a normal distribution of their embeddings."""

    mean: Array  # (d,) of the embeddings, which are of length 1
    whitening: Array  # (d, d): the length of whitening @ (embedding - mean) is the distance
    distance: float  # at most so far from the mean is a known picture
    round_trip: float  # and at most so far from what the autoencoder makes of it, root mean square, 0 to 1
    shows: str  # what they show, for people

    def strangeness(self, embedding: Array, round_trip: float) -> float:
        """Above 1 the picture is unknown."""
        distance = float(np.linalg.norm(self.whitening @ (embedding - self.mean)))
        return max(distance / self.distance, round_trip / self.round_trip)

    def save(self, folder: Path) -> None:
        """Write the file into a base model's folder."""
        about = {"shows": self.shows, **{name: repr(float(getattr(self, name))) for name in NUMBERS}}
        tensors = {"mean": self.mean, "whitening": np.ascontiguousarray(self.whitening)}
        save_file(tensors, folder / KNOWN_PICTURES_FILE, metadata=about)

    @classmethod
    def load(cls, folder: Path) -> "KnownPictures | None":
        """Read the file of a folder; None where there is none. Raises ValueError for another file of that name."""
        path = folder / KNOWN_PICTURES_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                about = file.metadata() or {}
                numbers = {name: float(about[name]) for name in NUMBERS}
                found = cls(file.get_tensor("mean"), file.get_tensor("whitening"), shows=about["shows"], **numbers)
        except Exception as error:  # safetensors has kinds of its own for what it cannot read
            raise ValueError(f"{path} does not say which pictures a base model knows: {error}") from error
        width = found.mean.shape
        is_right = found.mean.ndim == 1 and found.whitening.shape == width * 2
        if not is_right or not all(0 < getattr(found, name) < np.inf for name in NUMBERS):
            raise ValueError(f"{path} does not say which pictures a base model knows: shapes or limits are wrong")
        return found
