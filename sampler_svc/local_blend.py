"""Where words look, as a mask over latents: what Prompt-to-Prompt's local blend edits (arXiv 2208.01626, 3.2)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engine import Array
from unitune.diffusion.schedule import Latents

THRESHOLD = 0.3  # of the largest value; as this and the 3 x 3 maximum in the authors' code
STARTS_AFTER = 0.2  # of the steps: before, attention has no shape yet


class LocalBlend:
    """The attention of words, summed over the steps so far."""

    def __init__(self, base_columns: Sequence[int], edited_columns: Sequence[int], steps: int) -> None:
        """Columns of the words in the base prompt and in the edit prompt; at least one in all."""
        self._columns = list(base_columns), list(edited_columns)
        self._first = int(STARTS_AFTER * steps)
        self._sums: list[Array] = []

    def mask(self, step: int, maps: Array, side: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Where to edit, (h, w) of `side`, by the maps (2, tokens, h, w) of base and edit at this step and before.

        The union of where either prompt's words look; None while it is too early.
        """
        seen = [own[columns].mean(axis=0) for own, columns in zip(maps, self._columns, strict=True) if columns]
        self._sums = [before + now for before, now in zip(self._sums, seen, strict=True)] if self._sums else seen
        if step < self._first:
            return None
        found = [widened(one) > THRESHOLD * widened(one).max() for one in self._sums]
        return np.logical_or.reduce([enlarged(one, side) for one in found])


def blended(base: Latents, edited: Latents, mask: NDArray[np.bool_]) -> Latents:
    """The edited latents where the mask (h, w) is, the base's everywhere else, bit for bit."""
    return np.where(mask, edited, base)


def widened(values: Array) -> Array:
    """The maximum over each place's 3 x 3 neighbours."""
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    return np.max([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def enlarged(mask: NDArray[np.bool_], side: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask over `side` (h, w): each place has the value of the nearest."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(side, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]
