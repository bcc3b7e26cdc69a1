"""Masks of what a text names: by contrast, the refinement of coarse maps; and the inverted base image."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from sampler_svc.engines.engine import BASE, Engine
from sampler_svc.model import Model
from sampler_svc.sampling.events import EditedImage
from sampler_svc.sampling.masks.contrast import finder, others
from sampler_svc.sampling.masks.refine import refined
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import mask
from tests.sampler_svc.test_masked_sample import BASE_IMAGE, GIVEN, LEFT, REQUEST
from unitune import images
from unitune.diffusion.solvers import SCHEDULERS
from unitune.errors import Cancelled


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """An engine with the base weights, under a lease."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        yield lease.engine


def test_a_coarse_map_gets_the_borders_of_the_picture() -> None:
    """A square of one colour, hinted at by four by four values, is found to nearly its own pixels."""
    picture = np.full((64, 64, 3), 40, np.uint8)
    picture[14:43, 18:47] = (200, 60, 30)
    square = (picture[..., 0] == 200).astype(np.float32)
    coarse = np.zeros((4, 4), np.float32)
    coarse[1:3, 1:3] = 1

    found = refined(coarse, picture)

    assert (found * square).sum() / np.maximum(found, square).sum() > 0.9
    assert refined(np.full((4, 4), 0.3, np.float32), picture).max() == 0


def test_what_is_found_is_where_the_word_alone_changes_the_prediction(model: Model) -> None:
    """A denoiser that hears one word in one corner, and every word everywhere else, gives a mask of that corner."""
    cat = model.graphs.embed("cat")
    picture = np.full((48, 48, 3), 90, np.uint8)
    picture[30:, 30:] = (200, 60, 30)

    def corner(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        is_cat = np.array([np.array_equal(context, cat) for context in contexts])
        output = np.tanh(latents) + is_cat[:, None, None, None] * 0.1
        output[:, :, 7:, 7:] += is_cat[:, None, None, None]
        return output.astype(np.float32)

    found = finder(model.graphs, model.schedule, corner, ["cat"], "a dog", lambda: False)(picture)

    np.testing.assert_array_equal(found, picture[..., 0] == 200)


def test_contrasts_are_spread_over_the_vocabulary_and_never_what_is_meant() -> None:
    """A closed vocabulary gives its own words, an open one common things, and none at all the empty prompt."""
    vocabulary = ["bus", "car", "cat", "dog", "fox", "frog", "owl"]

    assert others(vocabulary, ["cat", "a Dog on a bus"]) == ["car", "frog", "owl"]
    assert others(["cat", "dog"], ["cat", "two dogs"]) == ["dog"]
    assert others(["cat"], ["the cat"]) == [""]
    common = others([], ["house", "a person"])
    assert len(common) == len({*common} - {"house", "person", ""}) == 3


def test_a_cancelled_search_ends_before_its_next_pass(model: Model, engine: Engine) -> None:
    """Told after the first pass, it makes no second one."""
    passes: list[int] = []

    def run(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        passes.append(len(latents))
        return engine.run(latents, timesteps, contexts)

    with pytest.raises(Cancelled):
        finder(model.graphs, model.schedule, run, ["cat", "dog"], "a cow", lambda: bool(passes))(BASE_IMAGE)
    assert len(passes) == 1


@pytest.mark.parametrize("source", ["word", "attention"])
def test_a_mask_by_word_is_told_and_keeps_what_is_outside(model: Model, engine: Engine, source: str) -> None:
    """The same mask every time, with the result, and pixels outside of it are the base image's own."""
    request = replace(REQUEST, mask_source=source, mask_text="the cat")
    find = finder(model.graphs, model.schedule, engine.run, ["cat"], REQUEST.prompt, lambda: False)
    events = edit_events(request, model.tools(engine.run, find=find))
    result = next(event for event in events if isinstance(event, EditedImage))

    used = images.decode_mask(result.mask, (48, 48))
    assert 0 < used.mean() < 1
    edited = images.decode(result.png)
    np.testing.assert_array_equal(edited[used == 0], BASE_IMAGE[used == 0])
    base_mask = find(BASE_IMAGE)
    expected = base_mask if source == "word" else np.maximum(base_mask, used)
    np.testing.assert_array_equal(used, expected)


def test_every_step_of_an_inverted_edit_keeps_the_inversions_latents_outside(model: Model, engine: Engine) -> None:
    """Outside of the mask the network sees what the inversion went through (DiffEdit, step 3)."""
    request = replace(GIVEN, mask=mask(box=LEFT), inverted=True)
    seen: list[np.ndarray] = []

    def run(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        seen.append(latents[0])
        return engine.run(latents, timesteps, contexts)

    def png(seed: int) -> bytes:
        events = edit_events(replace(request, seeds=(seed,)), model.tools(run))
        return next(event.png for event in events if isinstance(event, EditedImage))

    first = png(5)
    steps = len(SCHEDULERS["ddim"].run(model.schedule, 8).late(0.75))
    up, down = seen[:steps], seen[steps : 2 * steps]
    for step in range(1, steps):  # going down, step k has the level that the way up reached before its call steps - k
        np.testing.assert_allclose(down[step][:, :, 6:], up[steps - step][:, :, 6:], rtol=0, atol=1e-5)
    assert np.abs(down[-1][:, :, :6] - up[1][:, :, :6]).max() > 0.01
    assert png(6) == first
