"""Chooses settings of UniTune by measured edits, without a ground truth.

An edit is measured by two figures that pull against each other: how much likeness to the prompt it gained, which CLIP
sees, and how much of the photograph it kept. A picture that does not show the prompt is no edit, however much it keeps.
So of the settings that gain enough, the one that keeps most is chosen.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple, TypeVar

from PIL import Image, ImageChops, ImageOps, ImageStat

from unitune.picture_file import rgb

COMPARED_SIDE = 512  # pixels, of the longer side: a camera's noise at full size is not what an edit keeps
MOST_DB = 99.0  # of two pictures that are the same
ENOUGH = 0.9  # of the most that any setting gains: likeness levels off where the prompt is shown
SAME_DB = 0.5  # less than this cannot be seen

S = TypeVar("S", bound=Hashable)


class EditFigures(NamedTuple):
    """What is measured of one edited picture."""

    kept_db: float  # PSNR to the photograph
    gained: float | None  # likeness to the prompt, less the photograph's own; None without a CLIP filter


class ChosenSetting(NamedTuple):
    """The chosen setting, and the seeds with which it does not gain enough."""

    number: int
    against: tuple[int, ...]


def kept_db(photo: bytes, edited: bytes) -> float:
    """Peak signal-to-noise ratio of an edit to its photograph, in dB. Raises InvalidArgument for no picture."""
    small, after = _small(photo), rgb(edited, max_bytes=None)
    return psnr_db(small, after.resize(small.size, Image.Resampling.BOX) if after.size != small.size else after)


@lru_cache(maxsize=16)
def _small(photo: bytes) -> Image.Image:
    """A photograph at the size at which it is compared: with every one of its edits."""
    picture = rgb(photo, max_bytes=None)
    return ImageOps.contain(picture, (COMPARED_SIDE, COMPARED_SIDE)) if max(picture.size) > COMPARED_SIDE else picture


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures of one size, in dB, at most MOST_DB."""
    squares = fmean(value**2 for value in ImageStat.Stat(ImageChops.difference(one, other)).rms)
    return min(MOST_DB, 20 * math.log10(255) - 10 * math.log10(squares)) if squares else MOST_DB


def mean(figures: Iterable[EditFigures]) -> EditFigures:
    """The means of both figures."""
    all_kept, gains = zip(*((one.kept_db, one.gained) for one in figures), strict=True)
    return EditFigures(fmean(all_kept), None if None in gains else fmean(gains))


def choose(by_seed: Mapping[int, Sequence[EditFigures]], cost: Sequence[float]) -> ChosenSetting:
    """The setting that keeps most of those that gain enough; of equals the cheapest, then the one that gains most.

    `by_seed` has every seed's means, setting by setting, and `cost` what each setting costs.
    """
    settings = [mean(row) for row in zip(*by_seed.values(), strict=True)]
    enough = gaining_enough(settings)
    kept = max(settings[number].kept_db for number in enough)
    equal = [number for number in enough if settings[number].kept_db >= kept - SAME_DB]
    chosen = min(equal, key=lambda number: (cost[number], -(settings[number].gained or 0.0)))
    against = [seed for seed, figures in by_seed.items() if chosen not in gaining_enough(figures)]
    return ChosenSetting(chosen, tuple(against))


def gaining_enough(settings: Sequence[EditFigures]) -> list[int]:
    """The settings, by number, that gain nearly as much as the one that gains most."""
    gains = [one.gained or 0.0 for one in settings]
    most = max(gains)
    return [number for number, gained in enumerate(gains) if gained >= most - (1 - ENOUGH) * abs(most)]


def cheapest_reconstruction(reconstructed_db: Mapping[S, float], cost: Mapping[S, float]) -> S:
    """The cheapest setting whose reconstruction of the photograph is as good as the best, as far as can be seen."""
    best = max(reconstructed_db.values())
    return min((one for one, db in reconstructed_db.items() if db >= best - SAME_DB), key=lambda one: cost[one])


def undominated(settings: Sequence[EditFigures]) -> list[int]:
    """The settings that no other one beats in both figures, by number."""
    points = [(one.kept_db, one.gained or 0.0) for one in settings]
    return [
        number
        for number, point in enumerate(points)
        if not any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)
    ]
