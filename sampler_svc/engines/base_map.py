"""The base weights in memory that is this process's own where it is written to, and the file's everywhere else.

A refit writes a tuning's tensors over the base model's. The memory of those pages is private from then on. A page that
is dropped is the file's again, so the base weights come back without being read or copied.
"""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unitune.tensor_file import read_places


class BaseMap:
    """A copy-on-write map of a file of weights."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and ValueError for a damaged file."""
        self._places = read_places(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)

    def tensor(self, name: str) -> NDArray[np.generic]:
        """A tensor in the file's dtype and shape, to be read and written."""
        place = self._places[name]
        part = self._bytes[place.offset : place.offset + place.size_bytes]
        return part.view(place.dtype).reshape(place.shape)

    def restore(self, name: str, base: NDArray[np.generic]) -> None:
        """Give a tensor its values in the file back; `base` has them.

        Pages that it fills are dropped. At its ends it shares pages with other tensors: there it is copied.
        """
        place = self._places[name]
        begin, end = place.offset, place.offset + place.size_bytes
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        values = np.ascontiguousarray(base).reshape(-1).view(np.uint8)
        if first >= last or not hasattr(mmap, "MADV_DONTNEED"):
            self._bytes[begin:end] = values
            return
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._bytes[begin:first] = values[: first - begin]
        self._bytes[last:end] = values[last - begin :]
