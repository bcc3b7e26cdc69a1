"""Which pictures a base model knows: `known_pictures.safetensors` in its folder, if there is one.

A picture is unknown if one of two distances is too large: the Mahalanobis distance of its CLIP embedding from the mean
of known pictures, or its difference to the autoencoder's round trip. Both are needed. CLIP may put noise and text
anywhere, since it was not trained on them, and the autoencoder can reproduce a blurred photograph.

The file is not part of the base model's digest, since no tuning and no edit depends on it.
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
    distance: float  # largest distance of a known picture from the mean
    round_trip: float  # its largest root mean square difference to the round trip, 0 to 1
    shows: str  # what they show, in words

    def strangeness(self, embedding: Array, round_trip: float) -> float:
        """A picture with a value above 1 is unknown."""
        distance = float(np.linalg.norm(self.whitening @ (embedding - self.mean)))
        return max(distance / self.distance, round_trip / self.round_trip)

    def save(self, folder: Path) -> None:
        """Write the file into a base model's folder."""
        about = {"shows": self.shows, **{name: repr(float(getattr(self, name))) for name in NUMBERS}}
        tensors = {"mean": self.mean, "whitening": np.ascontiguousarray(self.whitening)}
        save_file(tensors, folder / KNOWN_PICTURES_FILE, metadata=about)

    @classmethod
    def load(cls, folder: Path) -> "KnownPictures | None":
        """Read the file of a folder; None without one. Raises ValueError for a damaged file."""
        path = folder / KNOWN_PICTURES_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                about = file.metadata() or {}
                numbers = {name: float(about[name]) for name in NUMBERS}
                found = cls(file.get_tensor("mean"), file.get_tensor("whitening"), shows=about["shows"], **numbers)
        except Exception as error:  # safetensors has its own errors
            raise ValueError(f"{path} does not say which pictures a base model knows: {error}") from error
        width = found.mean.shape
        is_right = found.mean.ndim == 1 and found.whitening.shape == width * 2
        if not is_right or not all(0 < getattr(found, name) < np.inf for name in NUMBERS):
            raise ValueError(f"{path} does not say which pictures a base model knows: shapes or limits are wrong")
        return found
