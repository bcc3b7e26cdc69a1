"""Chooses settings of UniTune by measured edits, without a ground truth.

An edit is measured by two figures that pull against each other: how much likeness to the prompt it gained, which CLIP
sees, and how much of the photograph it kept. A setting that does nothing keeps all and gains nothing. So each figure
is put on a scale from the worst setting, 0, to the best, 1, and the setting nearest to (1, 1) is chosen.
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
# A choice must be this near to the best with every seed alone, on the scale of 0 to 1.
SEEDS_AGREE = 0.15
SAME_DB = 0.5  # of a reconstruction: less than this cannot be seen

S = TypeVar("S", bound=Hashable)


class EditFigures(NamedTuple):
    """What is measured of one edited picture."""

    kept_db: float  # PSNR to the photograph
    gained: float | None  # likeness to the prompt, less the photograph's own; None without a CLIP filter


class ChosenSetting(NamedTuple):
    """The chosen setting, and the seeds that speak against it."""

    number: int
    distances: tuple[float, ...]  # of every setting to the best of both figures
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


def distances(settings: Sequence[EditFigures]) -> tuple[float, ...]:
    """The distance of every setting to the best of both figures, each on its scale from the worst to the best."""
    scales = [_scaled([one.kept_db for one in settings]), _scaled([one.gained or 0.0 for one in settings])]
    return tuple(math.hypot(*(1 - value for value in pair)) for pair in zip(*scales, strict=True))


def choose(by_seed: Mapping[int, Sequence[EditFigures]]) -> ChosenSetting:
    """The setting that is nearest to the best of both figures. `by_seed` has every seed's means, setting by setting."""
    of_all = distances([mean(row) for row in zip(*by_seed.values(), strict=True)])
    number = of_all.index(min(of_all))
    against = []
    for seed, figures in by_seed.items():
        own = distances(figures)
        if own[number] > min(own) + SEEDS_AGREE:
            against.append(seed)
    return ChosenSetting(number, of_all, tuple(against))


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


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]
