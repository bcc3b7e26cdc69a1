"""Sources and geometry of masks."""

import numpy as np
import pytest

from sampler_svc.engines.engine import BASE
from sampler_svc.model import Model
from sampler_svc.sampling.masks import AFTER, BEFORE, MaskInputs
from sampler_svc.sampling.masks.diffedit import differing_predictions
from sampler_svc.sampling.masks.given import from_sdedit
from sampler_svc.sampling.masks.shape import Region, region_around, softened, to_latent
from tests.sampler_svc.pictures import picture
from unitune import images
from unitune.choices import MASK_SOURCES
from unitune.working_size import fit

SIDE = (48, 48)


def box(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """A mask that is 1 in a box."""
    mask = np.zeros(size, np.float32)
    mask[top:bottom, left:right] = 1
    return mask


def estimated(model: Model, prompt: str, base_prompt: str, size: tuple[int, int] = SIDE) -> np.ndarray:
    """DiffEdit's mask of the tiny base model."""
    graphs = model.graphs
    latent = graphs.encode(graphs.fit(size).to_model(images.decode(picture(*size))))
    contexts = graphs.embed(prompt), graphs.embed(base_prompt)
    with model.pool.lease(BASE, lambda: model.base) as lease:
        return differing_predictions(
            MaskInputs(size, None, latent, model.schedule, lease.engine.run, *contexts, graphs.fit(size))
        )


def test_every_source_that_can_be_asked_for_has_a_room() -> None:
    """The table and the contract's choices are the same names."""
    assert sorted(MASK_SOURCES) == sorted({**BEFORE, **AFTER})


def test_equal_prompts_estimate_an_empty_mask(model: Model) -> None:
    """Not one of numbers that are none, nor all ones (check S8)."""
    mask = estimated(model, "a cat", "a cat")

    np.testing.assert_array_equal(mask, np.zeros(SIDE))


def test_prompts_that_differ_by_rounding_alone_estimate_an_empty_mask(model: Model) -> None:
    """Contexts a millionth apart are no edit; their difference is not blown up to one."""
    latent = model.graphs.encode(images.to_model(images.decode(picture()), SIDE))
    context = model.graphs.embed("a cat")
    with model.pool.lease(BASE, lambda: model.base) as lease:
        inputs = MaskInputs(
            SIDE,
            None,
            latent,
            model.schedule,
            lease.engine.run,
            context,
            context * np.float32(1 + 1e-6),
            fit(SIDE, SIDE),
        )
        mask = differing_predictions(inputs)

    assert mask.max() == 0


@pytest.mark.parametrize("size", [SIDE, (30, 100)])
def test_different_prompts_estimate_a_part_of_the_picture(model: Model, size: tuple[int, int]) -> None:
    """Something is edited and something is kept, the same every time, as large as the picture (check S8)."""
    mask = estimated(model, "a dog at night", "a cat", size)

    assert mask.shape == size and mask.dtype == np.float32
    assert 0 == mask.min() and mask.max() == 1
    assert 0.02 < mask.mean() < 0.9
    np.testing.assert_array_equal(mask, estimated(model, "a dog at night", "a cat", size))


def test_the_estimated_mask_is_where_the_predictions_differ(model: Model) -> None:
    """A denoiser that hears the prompt in one corner alone gives a mask of that corner."""
    prompt, base_prompt = model.graphs.embed("a dog"), model.graphs.embed("a cat")

    def corner(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        output = np.tanh(latents)
        output[:, :, 6:, 6:] += contexts.mean(axis=(1, 2))[:, None, None, None]
        return output

    latent = model.graphs.encode(images.to_model(images.decode(picture()), SIDE))
    mask = differing_predictions(
        MaskInputs(SIDE, None, latent, model.schedule, corner, prompt, base_prompt, fit(SIDE, SIDE))
    )

    assert mask[28:, 28:].min() == 1
    assert mask[:20].max() == 0 and mask[:, :20].max() == 0


def test_a_mask_of_sdedit_is_turned_around() -> None:
    """There 1 is kept; ours edits what theirs did not keep, and twice turned is the same (check E4)."""
    theirs = box((4, 4), 0, 0, 4, 2)  # the left half is kept

    np.testing.assert_array_equal(from_sdedit(theirs), box((4, 4), 0, 2, 4, 4))
    np.testing.assert_array_equal(from_sdedit(from_sdedit(theirs)), theirs)


def test_a_latent_mask_is_the_mean_over_its_area() -> None:
    """Halves and quarters stay halves and quarters; whole ones and zeros are exact, whatever the sizes."""
    mask = box((8, 8), 0, 0, 4, 6)

    latent = to_latent(mask, (2, 2), fit(SIDE, SIDE))[0, 0]

    np.testing.assert_array_equal(latent, [[1, 0.5], [0, 0]])
    for size in ((48, 48), (97, 51), (5, 7)):
        for value in (np.ones, np.zeros):
            found = to_latent(value(size, np.float32), (12, 12), fit(size, SIDE))
            np.testing.assert_array_equal(found, value((1, 1, 12, 12)))


def test_a_soft_edge_leaves_what_is_far_from_it() -> None:
    """It falls from 1 to 0 across the edge; all ones, all zeros and a radius of 0 are as they were."""
    mask = box((40, 40), 0, 0, 40, 20)

    soft = softened(mask, 2.0)

    across = soft[20]
    assert (np.diff(across) <= 0).all() and 0.4 < across[19] < 0.8 and across[19] > across[20] > 0
    np.testing.assert_array_equal(soft[:, :10], mask[:, :10])
    np.testing.assert_array_equal(soft[:, 30:], mask[:, 30:])
    for plain in (np.ones((9, 9), np.float32), np.zeros((9, 9), np.float32)):
        np.testing.assert_array_equal(softened(plain, 5.0), plain)
    assert softened(mask, 0) is mask


@pytest.mark.parametrize(
    ("mask", "padding", "side", "expected"),
    [
        (box((100, 100), 40, 40, 60, 60), 10, (48, 48), Region(30, 30, 70, 70)),
        (box((100, 100), 40, 20, 60, 80), 0, (48, 48), Region(20, 20, 80, 80)),  # grown to the working size's aspect
        (box((100, 100), 40, 40, 60, 60), 0, (48, 96), Region(40, 30, 60, 70)),
        (box((100, 100), 0, 0, 10, 30), 5, (48, 48), Region(0, 0, 35, 35)),  # moved inwards at the border
        (box((100, 100), 90, 50, 100, 90), 0, (48, 48), Region(60, 50, 100, 90)),
        (box((20, 100), 5, 10, 15, 90), 0, (48, 48), Region(0, 10, 20, 90)),  # as large as the picture lets it be
        (np.zeros((20, 30), np.float32), 5, (48, 48), Region(0, 0, 20, 30)),
    ],
)
def test_the_region_holds_the_mask_with_its_padding_in_the_working_sizes_aspect(
    mask: np.ndarray, padding: int, side: tuple[int, int], expected: Region
) -> None:
    """It grows on both sides, moves inwards at the border, and never leaves the picture."""
    assert region_around(mask, padding, lambda size: side) == expected
