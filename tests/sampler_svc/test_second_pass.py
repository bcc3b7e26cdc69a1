"""The second pass: edited places of a large picture are sampled once more at a larger size, in tiles."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from sampler_svc.engines.engine import BASE, Engine
from sampler_svc.model import Model
from sampler_svc.sampling.events import EditedImage, Step, Warned
from sampler_svc.sampling.request import Request, SecondPass
from sampler_svc.sampling.tools import PreparedEdit
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import mask, picture
from unitune import images
from unitune.errors import Cancelled

SIZE = (144, 200)
PLAIN = Request(
    image=picture(*SIZE),
    prompt="beikkpic a cat at the beach",
    scheduler="ddim",
    num_inference_steps=10,
    guidance_scale=3.0,
    strength=0.5,
    seeds=(5,),
)
REQUEST = replace(PLAIN, second_pass=SecondPass(strength=0.3, scale=2.0))
BOX = (10, 10, 60, 60)
MASKED = replace(REQUEST, mask_source="given", mask=mask(*SIZE, box=BOX), interpolation=1.0)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """An engine with the base weights, under a lease."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        yield lease.engine


def pixels_of(events: list[object]) -> np.ndarray:
    """The pixels of the only result."""
    (result,) = (event for event in events if isinstance(event, EditedImage))
    return images.decode(result.png)


def test_no_network_sees_more_than_a_tile_of_the_models_own_size(model: Model, engine: Engine) -> None:
    """The first pass has the picture's working size, and every tile of the second is the model's square."""
    seen = []

    def denoiser(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        seen.append(latents.shape[2:])
        return engine.run(latents, timesteps, contexts)

    events = edit_events(REQUEST, model.tools(denoiser))

    edit = PreparedEdit(REQUEST, model.tools(engine.run))
    assert edit.enlarged is not None and edit.tiles is not None
    assert edit.enlarged.size == tuple(2 * side for side in edit.fit.size)
    assert seen == [tuple(side // 4 for side in edit.fit.size)] * 5 + [(12, 12)] * 3 * len(edit.tiles.places)
    assert pixels_of(events).shape == (*SIZE, 3)


@pytest.mark.parametrize("second", [SecondPass(0.0, 2.0), SecondPass(0.05, 2.0)])
def test_a_strength_that_leaves_no_step_gives_the_enlarged_edit(
    model: Model, engine: Engine, second: SecondPass
) -> None:
    """To the bit, and without a step more (M30)."""
    with_it = edit_events(replace(REQUEST, second_pass=second), model.tools(engine.run))
    without = edit_events(PLAIN, model.tools(engine.run))

    np.testing.assert_array_equal(pixels_of(with_it), pixels_of(without))
    assert len([event for event in with_it if isinstance(event, Step)]) == 5


def test_it_changes_what_was_edited_and_nothing_outside_of_the_mask(model: Model, engine: Engine) -> None:
    """Pixels outside are the picture's own to the bit; inside, the second pass makes a difference."""
    found = pixels_of(edit_events(MASKED, model.tools(engine.run)))
    once = pixels_of(edit_events(replace(MASKED, second_pass=None), model.tools(engine.run)))

    inside, whole = images.decode_mask(MASKED.mask, SIZE) > 0, images.decode(MASKED.image)
    np.testing.assert_array_equal(found[~inside], whole[~inside])
    assert (found[inside] != once[inside]).mean() > 0.5


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST,
        MASKED,
        replace(MASKED, only_masked=True, mask_padding=4),
        replace(PLAIN, interpolation=1.0, second_pass=REQUEST.second_pass),
    ],
)
def test_its_steps_are_counted(model: Model, engine: Engine, request_: Request) -> None:
    """One for each tile and level; the last one is the total, also where the mask is known only later."""
    steps = [event for event in edit_events(request_, model.tools(engine.run)) if isinstance(event, Step)]

    assert [step.index for step in steps] == list(range(len(steps)))
    assert steps[-1].total == len(steps) and len(steps) > 5
    assert all(step.total >= len(steps) for step in steps)


def test_tiles_outside_of_the_mask_cost_nothing(model: Model, engine: Engine) -> None:
    """A mask in one corner is sampled in fewer tiles than the whole picture, and its steps are known from the first."""
    whole, corner = (
        [event for event in edit_events(request, model.tools(engine.run)) if isinstance(event, Step)]
        for request in (REQUEST, MASKED)
    )

    assert len(corner) < len(whole)
    assert {step.total for step in corner} == {len(corner)}


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_no_seam_shows_where_tiles_meet(model: Model, scale: float) -> None:
    """With predictions that do not depend on the tile, a step across a border is no larger than one beside it (M30)."""

    def denoiser(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        return 0.5 * latents

    request = replace(REQUEST, second_pass=SecondPass(0.3, scale), num_inference_steps=10, strength=0.0)
    tools = model.tools(denoiser)
    edit = PreparedEdit(request, tools)
    assert edit.tiles is not None and edit.enlarged is not None
    found = pixels_of(edit_events(request, tools)).astype(float)

    steps = np.abs(np.diff(found, axis=1)).mean(axis=(0, 2))
    side, wide = edit.tiles.side[1], edit.enlarged.size[1]
    borders = {left for left in edit.tiles.lefts if left} | {left + side for left in edit.tiles.lefts[:-1]}
    places = [round((4 * border - edit.enlarged.left) * SIZE[1] / edit.enlarged.width) for border in borders]
    assert len(places) >= 2 and wide == edit.enlarged.size[1]
    across = max(steps[max(place - 2, 0) : place + 2].max() for place in places)
    beside = np.delete(steps, [at for place in places for at in range(place - 2, place + 2)])
    assert across <= beside.max()


def test_the_same_seed_gives_the_same_picture(model: Model, engine: Engine) -> None:
    """And another seed another one."""
    first, again, other = (
        pixels_of(edit_events(replace(MASKED, seeds=(seed,)), model.tools(engine.run))) for seed in (5, 5, 6)
    )

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_it_is_cancelled_between_two_tiles(model: Model, engine: Engine) -> None:
    """Not only before it begins."""
    calls = []

    def denoiser(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        calls.append(latents.shape)
        return engine.run(latents, timesteps, contexts)

    with pytest.raises(Cancelled):
        edit_events(REQUEST, model.tools(denoiser, cancelled=lambda: len(calls) == 7))
    assert len(calls) == 7


def test_a_picture_that_is_no_larger_has_none(model: Model, engine: Engine) -> None:
    """The result is that of one pass; of a region the sampler warns, since nobody else knows its size."""
    request = replace(REQUEST, image=picture(40, 50))
    small = edit_events(request, model.tools(engine.run))
    once = edit_events(replace(request, second_pass=None), model.tools(engine.run))
    region = edit_events(
        replace(MASKED, mask=mask(*SIZE, box=(10, 10, 20, 20)), only_masked=True, mask_padding=2),
        model.tools(engine.run),
    )

    np.testing.assert_array_equal(pixels_of(small), pixels_of(once))
    assert ["there is no second pass" in event.text for event in region if isinstance(event, Warned)] == [True]
