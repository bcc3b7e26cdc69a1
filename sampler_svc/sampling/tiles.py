"""Overlapping tiles of one size over a larger array, and how what is made of each becomes one array again.

Where tiles overlap, each counts by a weight that falls smoothly to nearly 0 at its border. The weights of all tiles at
one place sum to 1, so tiles that agree give back what they agree on, and no border shows (after Mixture of Diffusers,
arXiv 2302.02412).
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sampler_svc.sampling.masks.shape import Region
from unitune.images import Pixels
from unitune.tile_starts import tile_starts
from unitune.working_size import Size

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Tiles:
    """Tiles of `side` over an array of `size`, both rows and columns, which begin at each of `tops` and `lefts`."""

    size: Size
    side: Size
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def over(cls, size: Size, side: Size) -> "Tiles":
        """As few as overlap enough, evenly spread. Raises ValueError for a side that is longer than the array."""
        return cls(size, side, tile_starts(size[0], side[0]), tile_starts(size[1], side[1]))

    def scaled(self, factor: int) -> "Tiles":
        """The same tiles over an array that is `factor` times as large."""

        def larger(numbers: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(factor * number for number in numbers)

        rows, columns = self.size
        down, across = self.side
        sizes = (factor * rows, factor * columns), (factor * down, factor * across)
        return Tiles(*sizes, larger(self.tops), larger(self.lefts))

    @property
    def places(self) -> list[Region]:
        """All tiles, row by row."""
        return [self._place(top, left) for top in self.tops for left in self.lefts]

    def touching(self, mask: Floats | None) -> list[Region]:
        """The tiles in which a mask (rows, columns) is not 0 everywhere; all of them without a mask."""
        return [place for place in self.places if mask is None or place.crop(mask).any()]

    def mean_of(self, made: Iterable[tuple[Region, Floats]], channels: int, batch: int = 1) -> Floats:
        """What was made of some tiles, each (batch, channels, rows, columns), as one array; 0 where none of them is."""
        total = np.zeros((batch, channels, *self.size), np.float32)
        weight = np.zeros(self.size, np.float32)
        for place, tile in made:
            rows, columns = place.slices
            total[:, :, rows, columns] += self._weights(place) * tile
            weight[rows, columns] += self._weights(place)
        return np.divide(total, weight, out=total, where=weight > 0)

    def picture_of(self, made: Callable[[Region], Pixels]) -> Pixels:
        """What `made` makes of every tile as one picture. Only one row of tiles is held in floats at a time."""
        picture = np.empty((*self.size, 3), np.uint8)
        band = np.zeros((self.side[0], self.size[1], 3), np.float32)
        for top, following in zip(self.tops, (*self.tops[1:], self.size[0]), strict=True):
            for left in self.lefts:
                place = self._place(top, left)
                band[:, place.slices[1]] += self._weights(place)[..., None] * made(place)
            done = following - top
            picture[top:following] = band[:done].round()
            band = np.concatenate([band[done:], np.zeros_like(band[:done])])
        return picture

    def _place(self, top: int, left: int) -> Region:
        return Region(top, left, top + self.side[0], left + self.side[1])

    def _weights(self, place: Region) -> Floats:
        """A tile's weights (rows, columns)."""
        return np.outer(self._down[place.top], self._across[place.left])

    @cached_property
    def _down(self) -> dict[int, Floats]:
        return _weights_along(self.size[0], self.side[0], self.tops)

    @cached_property
    def _across(self) -> dict[int, Floats]:
        return _weights_along(self.size[1], self.side[1], self.lefts)


def _weights_along(length: int, side: int, starts: tuple[int, ...]) -> dict[int, Floats]:
    """The weights (side,) of the tile at each start: squared sines over the overlaps, which sum to 1."""
    weights = {start: np.ones(side) for start in starts}
    for first, second in itertools.pairwise(starts):
        common = first + side - second
        rising = np.sin(np.pi / 2 * (np.arange(common) + 0.5) / common) ** 2
        weights[second][:common] *= rising
        weights[first][-common:] *= rising[::-1]
    total = np.zeros(length)
    for start, own in weights.items():
        total[start : start + side] += own
    return {start: (own / total[start : start + side]).astype(np.float32) for start, own in weights.items()}
