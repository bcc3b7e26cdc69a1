"""Pictures that are no squares: sampled at a size of their own aspect, by the same engine and the same weights."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.engines.engine import BASE, Engine, EngineSpec, WeightSet
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.refit_modes import ENGINES
from sampler_svc.model import Model
from sampler_svc.sampling.events import EditedImage, Step
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.request import Request
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import mask, picture
from unitune import images
from unitune.base_model import BaseModelSpec

PORTRAIT, LANDSCAPE, PANORAMA = (66, 44), (50, 75), (40, 160)
WORKING = {PORTRAIT: (56, 40), LANDSCAPE: (40, 56), PANORAMA: (32, 72)}
REQUEST = Request(
    image=picture(*LANDSCAPE),
    prompt="beikkpic a cat at the beach",
    scheduler="ddim",
    num_inference_steps=4,
    guidance_scale=3.0,
    strength=0.75,
    seeds=(5,),
    preview_every=1,
)


def inputs(spec: BaseModelSpec, batch: int, side: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random latents of a height and a width, timesteps and contexts."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((batch, spec.latent_channels, *side), dtype=np.float32),
        np.full(batch, 500, dtype=np.int64),
        rng.standard_normal((batch, spec.context_tokens, spec.context_width), dtype=np.float32),
    )


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """An engine with the base weights, under a lease."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        yield lease.engine


def opened(mode: str, folder: Path, spec: BaseModelSpec, base: WeightSet) -> Engine:
    """A fresh engine with the base weights."""
    engine_spec = EngineSpec.from_model(spec)
    engine = ENGINES[mode](folder, engine_spec, threads=1, layout=GraphLayout(engine_spec, base.tensors))
    engine.refit(base)
    return engine


@pytest.mark.parametrize("mode", ENGINES)
def test_two_sizes_in_turn_are_answered_as_by_fresh_engines(
    mode: str, engine_folder: Path, spec: BaseModelSpec, base: WeightSet
) -> None:
    """Bit-equal: nothing of a size is left for the next one (M27)."""
    engine = opened(mode, engine_folder, spec, base)
    for side in ((12, 12), (10, 14), (12, 12), (14, 10), (10, 14)):
        fresh = opened(mode, engine_folder, spec, base)
        asked = inputs(spec, 2, side)
        np.testing.assert_array_equal(engine.run(*asked), fresh.run(*asked))
        fresh.close()
    engine.close()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_memory_is_bounded_by_the_largest_size(engine_folder: Path, spec: BaseModelSpec, base: WeightSet) -> None:
    """After the largest size, twenty smaller ones take no more (M27)."""
    engine = opened("new_session", engine_folder, spec, base)
    engine.run(*inputs(spec, 2, (64, 64)))
    before = anonymous_bytes()

    for side in [(height, width) for height in range(24, 64, 8) for width in range(32, 64, 8)]:
        engine.run(*inputs(spec, 2, side))

    assert anonymous_bytes() - before < 24 << 20  # a plan of memory for each of them would be 100 MB and more
    engine.close()


def anonymous_bytes() -> int:
    """The private memory of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous"))


@pytest.mark.parametrize("side", [(11, 12), (12, 13), (0, 12)])
def test_a_size_that_does_not_fit_is_refused_by_name(
    engine: Engine, spec: BaseModelSpec, side: tuple[int, int]
) -> None:
    """The message has the size and the step that it must be a multiple of (M23)."""
    with pytest.raises(ValueError, match=rf"\[4, {side[0]}, {side[1]}\] .*multiples of 2"):
        engine.run(*inputs(spec, 1, side))


def test_an_engine_of_one_size_refuses_others_by_name(spec: BaseModelSpec) -> None:
    """As those for a GPU are; the sampler fills pictures up to that size."""
    fixed = EngineSpec.from_model(replace(spec, size_step=0))
    fixed.check_latents(np.zeros((1, 4, 12, 12), np.float32))
    with pytest.raises(ValueError, match=r"\[4, 10, 14\] .*12x12"):
        fixed.check_latents(np.zeros((1, 4, 10, 14), np.float32))


@pytest.mark.parametrize("size", WORKING)
def test_an_edit_is_sampled_at_its_own_aspect(model: Model, engine: Engine, size: tuple[int, int]) -> None:
    """What the denoiser sees has the picture's aspect; the result has its size, and previews its aspect (M24, M29)."""
    seen = set()

    def denoiser(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        seen.add(latents.shape[2:])
        return engine.run(latents, timesteps, contexts)

    events = edit_events(replace(REQUEST, image=picture(*size)), model.tools(denoiser))

    height, width = WORKING[size]
    assert {(height // 4, width // 4)} == seen
    (result,) = [event for event in events if isinstance(event, EditedImage)]
    assert (*size, 3) == images.decode(result.png).shape
    assert WORKING[size] == result.working_size
    previews = [images.decode(event.preview) for event in events if isinstance(event, Step)]
    for preview in previews:
        assert abs(preview.shape[1] / preview.shape[0] / (size[1] / size[0]) - 1) < 0.03


@pytest.mark.parametrize("size", WORKING)
def test_without_a_step_it_is_the_round_trip_in_the_pictures_own_size(
    model: Model, engine: Engine, size: tuple[int, int]
) -> None:
    """Scaled, filled up, encoded, decoded, cut off and scaled back (M24)."""
    request = replace(REQUEST, image=picture(*size), strength=0.0)
    place = model.graphs.fit(size)

    (result,) = [e for e in edit_events(request, model.tools(engine.run)) if isinstance(e, EditedImage)]

    image = model.graphs.decode(model.graphs.encode(place.to_model(images.decode(request.image))))
    np.testing.assert_array_equal(images.decode(result.png), place.from_model(image, size))


@pytest.mark.parametrize("size", WORKING)
@pytest.mark.parametrize("only_masked", [False, True])
def test_outside_of_a_mask_every_pixel_is_kept(
    model: Model, engine: Engine, size: tuple[int, int], only_masked: bool
) -> None:
    """To the byte, also where the region has an aspect of its own; inside it is edited (M26)."""
    given = mask(*size, box=(8, 12, 28, 32))
    request = replace(
        REQUEST,
        image=picture(*size),
        mask_source="given",
        mask=given,
        interpolation=1.0,
        only_masked=only_masked,
        mask_padding=4,
    )

    (result,) = [e for e in edit_events(request, model.tools(engine.run)) if isinstance(e, EditedImage)]

    edited, whole = images.decode(result.png), images.decode(request.image)
    inside = images.decode_mask(given, size) == 1
    np.testing.assert_array_equal(edited[~inside], whole[~inside])
    assert (edited[inside] != whole[inside]).mean() > 0.5


def test_prompt_to_prompt_edits_at_the_pictures_size(model: Model) -> None:
    """Its maps, of which local blend makes a mask, have the latent's height and width (M28)."""
    seen = []
    with model.controlled.lease(BASE, lambda: model.base) as lease:

        def controlled(*asked: np.ndarray) -> object:
            found = lease.engine.run_controlled(*asked)
            seen.append(found.maps.shape[2:])
            return found

        attention = AttentionEdit(blend_words=("cat",))
        request = replace(REQUEST, base_prompt="a dog at the beach", prompt="a cat at the beach", attention=attention)
        events = edit_events(request, model.tools(lease.engine.run, controlled=controlled))

    (result,) = [event for event in events if isinstance(event, EditedImage)]
    assert {(10, 14)} == set(seen)
    assert (*LANDSCAPE, 3) == images.decode(result.png).shape


def test_a_square_picture_is_sampled_at_the_models_own_size(model: Model, engine: Engine) -> None:
    """Whatever its own size is."""
    for side in (48, 97):
        request = replace(REQUEST, image=picture(side, side))
        (result,) = [e for e in edit_events(request, model.tools(engine.run)) if isinstance(e, EditedImage)]
        assert (48, 48) == result.working_size
