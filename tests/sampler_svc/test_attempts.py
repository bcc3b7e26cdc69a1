"""Several attempts at one edit: which are made, which picture is chosen, what it costs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sampler_svc.sampling.attempts import SEED_STRIDE, ScoredImage, attempts_of, sample_filtered
from sampler_svc.sampling.clip_filter import Scores
from sampler_svc.sampling.events import Done, EditedImage, Event, OnEvent, Step
from sampler_svc.sampling.request import Request
from unitune import images
from unitune.base_model import Preset

STEPS = 4


class BrightnessFilter:
    """Takes a picture's brightness for its likeness to the prompt, so that a test can say what passes; a real CLIP's
    scores (test_clip_filter.py) could not be chosen."""

    automatic_points = Preset().automatic_points

    def scorer(self, base: np.ndarray, prompt: str) -> Callable[[np.ndarray], Scores]:
        return lambda edited: Scores(edited.mean() / 255, base.mean() / 255, 1.0, 0.0, 1.0, 0.0)

    def passes(self, scores: Scores) -> bool:
        return scores.prompt >= 0.5

    def rank(self, scores: Scores) -> float:
        return scores.prompt


def picture(brightness: float) -> bytes:
    return images.encode_png(np.full((8, 8, 3), round(255 * brightness), np.uint8))


def request(*seeds: int) -> Request:
    return Request(picture(0.1), "a cat", "ddim", STEPS, 5.0, 0.9, seeds)


class Sampler:
    """Samples pictures of a given brightness, and remembers what it was asked for."""

    def __init__(self, brightness: Callable[[Request, int], float]) -> None:
        self.asked: list[Request] = []
        self._brightness = brightness

    def __call__(self, wanted: Request, on_event: OnEvent) -> None:
        self.asked.append(wanted)
        for index in range(STEPS):
            on_event(Step(index, STEPS))
        for index, seed in enumerate(wanted.seeds):
            on_event(EditedImage(index, seed, picture(self._brightness(wanted, seed))))
        on_event(Done(1.0, 2.0, 3.0))


def run(
    sampler: Sampler,
    attempts: list[Request],
    *,
    tries_all: bool = False,
    clip_filter: BrightnessFilter | None = None,
    finish: Sampler | None = None,
) -> list[Step | ScoredImage | Done]:
    events: list[Step | ScoredImage | Done] = []
    base = images.decode(attempts[0].image)
    chooses = clip_filter or BrightnessFilter()
    sample_filtered(sampler, chooses, base, "a cat", attempts, events.append, tries_all=tries_all, finish=finish)
    return events


def test_automatic_takes_the_point_that_the_clip_filter_ranks_highest():
    """All points are tried once, and the best picture is the answer, though an earlier one passed."""
    sampler = Sampler(lambda wanted, _: 0.9 if wanted.strength == 0.85 else 0.6)
    attempts = attempts_of(request(0), BrightnessFilter(), is_automatic=True, resamples=0)
    events = run(sampler, attempts, tries_all=True)
    (found,) = (event for event in events if isinstance(event, ScoredImage))

    assert [(r.strength, r.guidance_scale) for r in sampler.asked] == list(Preset().automatic_points)
    assert found.passed and found.strength == 0.85


def test_automatic_tells_when_no_point_passes():
    """The best picture is the answer all the same, marked as not passed."""
    sampler = Sampler(lambda wanted, _: 0.4 if wanted.strength == 0.85 else 0.2)
    attempts = attempts_of(request(0), BrightnessFilter(), is_automatic=True, resamples=0)
    (found,) = (event for event in run(sampler, attempts, tries_all=True) if isinstance(event, ScoredImage))

    assert not found.passed and found.strength == 0.85


def test_what_passes_is_preferred_to_what_ranks_higher():
    """Of other seeds, one that passes is taken even where the CLIP filter's thresholds and its rank disagree."""

    class Contrary(BrightnessFilter):
        def rank(self, scores: Scores) -> float:
            return -scores.prompt

    sampler = Sampler(lambda _, seed: 0.2 if seed == 5 else 0.9)
    attempts = attempts_of(request(5), Contrary(), is_automatic=False, resamples=1)
    events = run(sampler, attempts, clip_filter=Contrary())
    (found,) = (event for event in events if isinstance(event, ScoredImage))

    assert found.passed and found.image.seed == 5 + SEED_STRIDE


def test_the_clip_filter_tries_other_seeds_only_for_what_did_not_pass():
    """A seed that passed is left alone; the others get new seeds, far from the caller's own."""
    sampler = Sampler(lambda _, seed: 0.9 if seed in (1, 2 + 2 * SEED_STRIDE) else 0.2)
    events = run(sampler, attempts_of(request(1, 2), BrightnessFilter(), is_automatic=False, resamples=3))
    found = [event for event in events if isinstance(event, ScoredImage)]

    assert [r.seeds for r in sampler.asked] == [(1, 2), (2 + SEED_STRIDE,), (2 + 2 * SEED_STRIDE,)]
    assert [(f.image.index, f.image.seed, f.passed) for f in found] == [(0, 1, True), (1, 2 + 2 * SEED_STRIDE, True)]


def test_resampling_is_bounded_and_returns_the_best():
    """With nothing that passes there are 1 + resamples attempts, and the best of them is returned."""
    sampler = Sampler(lambda _, seed: 0.4 if seed == 5 + SEED_STRIDE else 0.3)
    events = run(sampler, attempts_of(request(5), BrightnessFilter(), is_automatic=False, resamples=2))
    (found,) = (event for event in events if isinstance(event, ScoredImage))

    assert len(sampler.asked) == 3
    assert (found.image.seed, found.passed) == (5 + SEED_STRIDE, False)


def test_no_resamples_score_and_change_nothing():
    """The CLIP filter without resamples gives the picture of the plain edit, with its scores."""
    sampler = Sampler(lambda _, __: 0.2)
    unfiltered: list[Event] = []
    Sampler(lambda _, __: 0.2)(request(7), unfiltered.append)
    plain = [event for event in unfiltered if isinstance(event, EditedImage)]
    events = run(sampler, attempts_of(request(7), BrightnessFilter(), is_automatic=False, resamples=0))
    (found,) = (event for event in events if isinstance(event, ScoredImage))

    assert found.image == plain[0]
    assert found.scores.prompt == pytest.approx(0.2, abs=0.01)


def test_each_attempt_counts_its_own_steps_and_seconds_add_up():
    """A total of steps is right from an attempt's first step on; the stages' seconds are those of all (N25)."""
    sampler = Sampler(lambda _, __: 0.2)
    events = run(sampler, attempts_of(replace(request(0)), BrightnessFilter(), is_automatic=False, resamples=1))
    steps = [event for event in events if isinstance(event, Step)]

    assert [step.index for step in steps] == [*range(STEPS)] * 2
    assert [step.total for step in steps] == [STEPS] * 2 * STEPS
    assert [(step.attempt, step.attempts) for step in steps] == [(1, 2)] * STEPS + [(2, 2)] * STEPS
    assert events[-1] == Done(2.0, 4.0, 6.0)


def test_only_what_is_chosen_is_enlarged():
    """Attempts are made without super-resolution; then the best one of each seed is sampled again with it, at its own
    settings, and is the answer with the scores that it was chosen by."""
    sampler = Sampler(lambda wanted, seed: 0.9 if (wanted.strength == 0.85) == (seed == 1) else 0.2)
    larger = Sampler(lambda _, __: 0.7)
    attempts = attempts_of(request(1, 2), BrightnessFilter(), is_automatic=True, resamples=0)
    events = run(sampler, attempts, tries_all=True, finish=larger)
    found = [event for event in events if isinstance(event, ScoredImage)]

    assert [(wanted.seeds, wanted.strength) for wanted in larger.asked] == [((1,), 0.85), ((2,), 0.7)]
    assert [(one.image.index, one.image.seed, one.image.png) for one in found] == [
        (0, 1, picture(0.7)),
        (1, 2, picture(0.7)),
    ]
    assert all(one.scores.prompt == pytest.approx(0.9, abs=0.01) for one in found)
    assert events[-1] == Done(5.0, 10.0, 15.0)
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.attempt for step in steps[-2 * STEPS :]] == [2] * STEPS + [1] * STEPS
