"""Several attempts at one edit, of which the CLIP filter chooses: automatic settings, and resampling after a rejection.

Automatic settings are future work in the paper (UniTune, arXiv 2210.09477, limitations): the strength and the guidance
that an edit needs differ from picture to picture. The base model's preset lists a few points. All are tried, and the
CLIP filter takes the picture that it ranks highest. Resampling is different: for each seed it takes the first picture
that passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sampler_svc.sampling.clip_filter import ClipFilter, Scores
from sampler_svc.sampling.events import Done, EditedImage, Event, OnEvent, Step, Warned
from sampler_svc.sampling.request import Request
from unitune import images
from unitune.images import Pixels

SEED_STRIDE = 1_000_003  # between the seeds of two attempts, so that they differ from the caller's other seeds


@dataclass(frozen=True)
class ScoredImage:
    """The picture that the CLIP filter chose for one seed, its scores, and its settings."""

    image: EditedImage
    scores: Scores
    passed: bool
    strength: float
    guidance_scale: float


def attempts_of(request: Request, clip_filter: ClipFilter, *, is_automatic: bool, resamples: int) -> list[Request]:
    """The attempts: the preset's points, or the same settings with other seeds."""
    if is_automatic:
        return [replace(request, strength=s, guidance_scale=g) for s, g in clip_filter.automatic_points]
    return [
        replace(request, seeds=tuple(seed + attempt * SEED_STRIDE for seed in request.seeds))
        for attempt in range(1 + resamples)
    ]


class BestPictures:
    """The best picture of each seed among the attempts so far, and the seconds of all attempts."""

    def __init__(self, clip_filter: ClipFilter, base_image: Pixels, prompt: str, *, tries_all: bool) -> None:
        self._clip_filter, self._tries_all = clip_filter, tries_all
        self._score = clip_filter.scorer(base_image, prompt)
        self._best: dict[int, ScoredImage] = {}
        self._attempts: dict[int, tuple[int, Request]] = {}  # of the best ones: number, from 1, and request
        self._seconds = np.zeros(4)

    def open_seeds(self, seeds: int) -> list[int]:
        """The indices, of `seeds` many, that need another attempt."""
        return [
            index
            for index in range(seeds)
            if self._tries_all or index not in self._best or not self._best[index].passed
        ]

    def take(self, attempt: Request, number: int, seeds: Sequence[int], image: EditedImage) -> None:
        """Keep a picture of an attempt, which has this number, if it is the best of its seed so far. `seeds` are the
        indices, among all, of the seeds that the attempt has."""
        image = replace(image, index=seeds[image.index])
        scores = self._score(images.decode(image.png, max_bytes=None))
        found = ScoredImage(image, scores, self._clip_filter.passes(scores), attempt.strength, attempt.guidance_scale)
        if image.index not in self._best or self._value(found) > self._value(self._best[image.index]):
            self._best[image.index], self._attempts[image.index] = found, (number, attempt)

    def chosen(self) -> list[tuple[int, int, Request]]:
        """Of the best picture of each seed: the seed's index, the attempt's number, and the request for it alone."""
        found = [(index, *self._attempts[index]) for index in sorted(self._best)]
        return [
            (index, number, replace(attempt, seeds=(self._best[index].image.seed,))) for index, number, attempt in found
        ]

    def finish(self, index: int, image: EditedImage) -> None:
        """Put a picture in the place of the best one of a seed, of which it is the finished form."""
        self._best[index] = replace(self._best[index], image=replace(image, index=index))

    def add_seconds(self, done: Done) -> None:
        """Add the seconds of an attempt."""
        self._seconds += (done.encode_s, done.denoise_s, done.decode_s, done.super_resolution_s)

    def results(self) -> list[ScoredImage | Done]:
        """The best picture of each seed in order, and the sums of the seconds."""
        seconds = (float(seconds) for seconds in self._seconds)
        return [*(self._best[index] for index in sorted(self._best)), Done(*seconds)]

    def _value(self, found: ScoredImage) -> tuple[bool, float]:
        # When resampling, a picture that passes is best; among the points of automatic settings the rank decides.
        return not self._tries_all and found.passed, self._clip_filter.rank(found.scores)


def sample_filtered(
    sample_once: Callable[[Request, OnEvent], None],
    clip_filter: ClipFilter,
    base_image: Pixels,
    prompt: str,
    attempts: Sequence[Request],
    on_event: Callable[[Event | ScoredImage], None],
    *,
    tries_all: bool,
    finish: Callable[[Request, OnEvent], None] | None = None,
) -> None:
    """All attempts, or only until each seed has a picture that passes; then the best picture of each seed.

    `base_image` is the whole picture, `prompt` is without rare tokens. `on_event` is called with the steps and warnings
    of all attempts, then with a ScoredImage for each seed, and with Done at the end. What is chosen is sampled again by
    `finish`, if that is given: with super-resolution, which costs more than an attempt. Raises what these two raise.
    """
    best = BestPictures(clip_filter, base_image, prompt, tries_all=tries_all)

    def emit(number: int, take: Callable[[EditedImage], None], event: Event) -> None:
        match event:
            case Step():
                # The steps count within the attempt: points differ in strength and so in steps, and the number of
                # attempts is not known yet.
                on_event(replace(event, attempt=number, attempts=len(attempts)))
            case Warned():
                on_event(event)
            case EditedImage():
                take(event)
            case Done():
                best.add_seconds(event)

    for number, attempt in enumerate(attempts, start=1):
        open_seeds = best.open_seeds(len(attempt.seeds))
        if not open_seeds:
            break
        wanted = replace(attempt, seeds=tuple(attempt.seeds[index] for index in open_seeds))
        sample_once(wanted, partial(emit, number, partial(best.take, attempt, number, open_seeds)))
    if finish is not None:
        for index, number, wanted in best.chosen():
            finish(wanted, partial(emit, number, partial(best.finish, index)))
    for result in best.results():
        on_event(result)
