"""The hot path with masks, repeats, and guidance of more than two rows."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from sampler_svc.engines.engine import BASE, Engine
from sampler_svc.model import Model
from sampler_svc.sampling.events import EditedImage, Step
from sampler_svc.sampling.masks.shape import region_around, softened
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import sample
from tests.deep_pngs import deep_png, deep_values
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import mask, picture
from tests.sampler_svc.tunings import Tunings
from unitune import images
from unitune.diffusion.solvers import SCHEDULERS
from unitune.errors import Cancelled, InvalidArgument

REQUEST = Request(
    image=picture(),
    prompt="beikkpic a cat at the beach",
    scheduler="ddim",
    num_inference_steps=8,
    guidance_scale=4.0,
    strength=0.75,
    seeds=(5,),
    interpolation=1.0,
    untuned_prompt="a cat at the beach",
)
GIVEN = replace(REQUEST, mask_source="given")
BASE_IMAGE = images.decode(REQUEST.image)
LEFT = (0, 0, 48, 24)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """An engine with the base weights, under a lease."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        yield lease.engine


def results(model: Model, engine: Engine, request: Request) -> list[EditedImage]:
    """The results of a run, which may ask for the base weights, too."""
    events = edit_events(request, model.tools(engine.run, base_denoiser=model.pool.run_base))
    return [event for event in events if isinstance(event, EditedImage)]


def pixels(model: Model, engine: Engine, request: Request) -> np.ndarray:
    """The pixels of the first result."""
    return images.decode(results(model, engine, request)[0].png)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_a_mask_of_zeros_is_the_base_image(model: Model, engine: Engine, scheduler: str) -> None:
    """Every pixel is kept exactly, whatever the solver remembers (checks S5 and E4)."""
    request = replace(GIVEN, mask=mask(box=(0, 0, 0, 0)), scheduler=scheduler)

    np.testing.assert_array_equal(pixels(model, engine, request), BASE_IMAGE)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("mask_blur", [0.0, 3.0])
def test_a_mask_of_ones_is_the_edit_without_a_mask(
    model: Model, engine: Engine, scheduler: str, mask_blur: float
) -> None:
    """Bit-equal, with a soft edge too, since there is no edge (checks S5 and E4)."""
    request = replace(GIVEN, mask=mask(), scheduler=scheduler, mask_blur=mask_blur)
    unmasked = replace(REQUEST, interpolation=0.0, scheduler=scheduler)

    np.testing.assert_array_equal(pixels(model, engine, request), pixels(model, engine, unmasked))


def test_a_half_mask_keeps_the_other_half_exactly(model: Model, engine: Engine) -> None:
    """Kept pixels are the base image's own, for every seed; the others are edited (check S5)."""
    request = replace(GIVEN, mask=mask(box=LEFT), seeds=(5, 6))

    for result in results(model, engine, request):
        edited = images.decode(result.png)
        np.testing.assert_array_equal(edited[:, 24:], BASE_IMAGE[:, 24:])
        assert (edited[:, :24] != BASE_IMAGE[:, :24]).mean() > 0.5


@pytest.mark.parametrize("only_masked", [False, True])
def test_a_picture_of_sixteen_bits_keeps_them_outside(model: Model, engine: Engine, only_masked: bool) -> None:
    """Pixels that the mask keeps have all of their bits, and edited ones those of an edit with 8. Without a mask in
    force there is nothing to keep, and the result has 8."""
    low = np.random.default_rng(2).integers(0, 256, BASE_IMAGE.shape).astype(np.uint16)
    values = BASE_IMAGE.astype(np.uint16) << 8 | low
    asked = replace(GIVEN, mask=mask(box=(8, 8, 40, 24)), only_masked=only_masked)

    (found,) = results(model, engine, replace(asked, image=deep_png(values)))
    (of_eight,) = results(model, engine, asked)

    inside, edited = np.zeros((48, 48), bool), images.decode(of_eight.png)
    inside[8:40, 8:24] = True
    np.testing.assert_array_equal(deep_values(found.png)[~inside], values[~inside])
    np.testing.assert_array_equal(deep_values(found.png)[inside], edited[inside].astype(np.uint16) * 257)
    (half,) = results(model, engine, replace(asked, image=deep_png(values), interpolation=0.5))
    assert np.abs(deep_values(half.png)[~inside].astype(int) - values[~inside]).max() > 257
    (plain,) = results(model, engine, replace(REQUEST, image=deep_png(values), interpolation=0.0))
    assert 8 == plain.png[24]


def test_every_step_keeps_the_base_image_outside(model: Model, engine: Engine) -> None:
    """What the network sees there is the noised base image with one fixed noise, at every step's own level."""
    request = replace(GIVEN, mask=mask(box=LEFT))
    seen: list[np.ndarray] = []

    def run(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        seen.append(latents[0])
        return engine.run(latents, timesteps, contexts)

    edit_events(request, model.tools(run))

    latent = model.graphs.encode(images.to_model(BASE_IMAGE, (48, 48)))[0]
    noise = np.random.default_rng(5).standard_normal(latent.shape, dtype=np.float32)
    levels = SCHEDULERS["ddim"].run(model.schedule, 8).late(0.75).levels
    assert len(seen) == len(levels) == 6
    for latents, level in zip(seen, levels, strict=True):
        kept = np.sqrt(level) * latent + np.sqrt(1 - level) * noise
        np.testing.assert_allclose(latents[:, :, 6:], kept[:, :, 6:], rtol=0, atol=1e-5)
    assert np.abs(seen[-1][:, :, :6] - kept[:, :, :6]).max() > 0.1


def test_interpolation_says_how_much_comes_back_outside_of_a_given_mask(model: Model, engine: Engine) -> None:
    """0 leaves there what was sampled, 1 the base image, and a half is between them (check U8)."""
    request = replace(GIVEN, mask=mask(box=LEFT))

    none, half, whole = (
        pixels(model, engine, replace(request, interpolation=weight))[:, 24:].astype(int) for weight in (0, 0.5, 1)
    )

    kept = BASE_IMAGE[:, 24:].astype(int)
    assert (none != kept).any()
    np.testing.assert_array_equal(whole, kept)
    assert np.abs(half - (none + kept) / 2).max() <= 0.5


def test_a_soft_edge_mixes_at_the_edge_and_nowhere_else(model: Model, engine: Engine) -> None:
    """Pixels far outside stay exact, those at the edge lie between base image and edit."""
    request = replace(GIVEN, mask=mask(box=LEFT), mask_blur=2.0)

    (result,) = results(model, engine, request)

    soft = images.decode_mask(result.mask, (48, 48))
    edited = images.decode(result.png)
    np.testing.assert_array_equal(edited[soft == 0], BASE_IMAGE[soft == 0])
    assert 0.3 < (soft == 0).mean() < 0.5 and ((soft > 0) & (soft < 1)).any()
    np.testing.assert_array_equal(soft, softened(images.decode_mask(request.mask, (48, 48)), 2.0))


def test_a_mask_of_sdedits_own_polarity_keeps_what_is_white(model: Model, engine: Engine) -> None:
    """It is the same edit as by the mask turned region_around (check E4)."""
    theirs = replace(GIVEN, mask=mask(box=(0, 24, 48, 48)), mask_keeps=True)
    ours = replace(GIVEN, mask=mask(box=LEFT))

    np.testing.assert_array_equal(pixels(model, engine, theirs), pixels(model, engine, ours))


def test_the_mask_that_was_used_comes_with_the_result(model: Model, engine: Engine) -> None:
    """The given one as it is, the estimated ones as large as the picture, none where none was used."""
    size = (30, 100)
    request = replace(REQUEST, image=picture(*size), base_prompt="beikkpic a dog")
    box = (3, 4, 20, 60)

    given = results(model, engine, replace(request, mask_source="given", mask=mask(*size, box=box)))[0]
    diffedit = results(model, engine, replace(request, mask_source="diffedit", seeds=(1, 2)))
    difference = results(model, engine, request)[0]
    none = results(model, engine, replace(request, interpolation=0.0))[0]

    np.testing.assert_array_equal(images.decode_mask(given.mask, size), images.decode_mask(mask(*size, box=box), size))
    assert diffedit[0].mask == diffedit[1].mask
    assert 0 < images.decode_mask(diffedit[0].mask, size).mean() < 1
    assert images.decode_mask(difference.mask, size).shape == size
    assert none.mask == b""


def test_an_estimated_mask_keeps_what_is_outside_exactly(model: Model, engine: Engine) -> None:
    """DiffEdit's mask works as a given one does; equal prompts edit nothing (checks S5 and S8)."""
    request = replace(REQUEST, mask_source="diffedit", base_prompt="beikkpic a dog")

    (result,) = results(model, engine, request)
    nothing = pixels(model, engine, replace(request, base_prompt=request.prompt))

    outside = images.decode_mask(result.mask, (48, 48)) == 0
    edited = images.decode(result.png)
    np.testing.assert_array_equal(edited[outside], BASE_IMAGE[outside])
    assert outside.any() and (edited[~outside] != BASE_IMAGE[~outside]).any()
    np.testing.assert_array_equal(nothing, BASE_IMAGE)


def test_a_mask_of_another_size_is_refused(model: Model, engine: Engine) -> None:
    """The sampler holds to it by itself."""
    with pytest.raises(InvalidArgument) as refusal:
        results(model, engine, replace(GIVEN, mask=mask(48, 47)))

    assert (refusal.value.field, refusal.value.metadata["value"]) == ("mask", "47x48 pixels")


def test_estimating_a_mask_can_be_cancelled(model: Model, engine: Engine) -> None:
    """The flag is read before each of its passes, too."""
    passes: list[int] = []

    def run(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        passes.append(len(latents))
        return engine.run(latents, timesteps, contexts)

    request = replace(REQUEST, mask_source="diffedit")
    with pytest.raises(Cancelled):
        edit_events(request, model.tools(run, cancelled=lambda: len(passes) == 3))

    assert passes == [2, 2, 2]


def test_an_edit_that_runs_on_the_base_weights_alone_can_be_cancelled(model: Model, engine: Engine) -> None:
    """Guidance 0 with the base model's empty prompt never asks the edit's own weights; the flag is still read."""
    request, seen = replace(REQUEST, guidance_scale=0.0, unconditional_on_base=True), []

    tools = model.tools(engine.run, base_denoiser=model.pool.run_base, cancelled=lambda: len(seen) == 2)
    with pytest.raises(Cancelled):
        sample(request, tools, seen.append)

    assert len(seen) == 2


def test_only_masked_edits_a_crop_and_pastes_it(model: Model, engine: Engine) -> None:
    """Outside of the crop and of the mask every pixel is exact; inside is the edit of the crop alone."""
    size, box = (97, 151), (20, 100, 40, 130)
    request = replace(
        GIVEN, image=picture(*size), mask=mask(*size, box=box), only_masked=True, mask_padding=6, seeds=(5, 6)
    )

    found = results(model, engine, request)

    whole, given = images.decode(request.image), images.decode_mask(request.mask, size)
    region = region_around(given, 6, model.graphs.working_size)
    cut = replace(
        GIVEN,
        image=images.encode_png(region.crop(whole)),
        mask=images.encode_mask(region.crop(given)),
        seeds=(5, 6),
    )
    for result, alone in zip(found, results(model, engine, cut), strict=True):
        edited = images.decode(result.png)
        assert edited.shape == whole.shape
        np.testing.assert_array_equal(edited[given == 0], whole[given == 0])
        np.testing.assert_array_equal(region.crop(edited), images.decode(alone.png))
        assert (edited[given == 1] != whole[given == 1]).mean() > 0.5
        np.testing.assert_array_equal(images.decode_mask(result.mask, size), given)


def test_only_masked_sees_more_with_more_padding(model: Model, engine: Engine) -> None:
    """Another padding is another crop and so another edit, still exact outside."""
    size, box = (97, 151), (20, 100, 40, 130)
    request = replace(GIVEN, image=picture(*size), mask=mask(*size, box=box), only_masked=True, mask_padding=0)

    tight, wide = (pixels(model, engine, replace(request, mask_padding=padding)) for padding in (0, 30))

    given = images.decode_mask(request.mask, size)
    assert (tight != wide).any()
    np.testing.assert_array_equal(tight[given == 0], wide[given == 0])


def test_one_repeat_is_the_plain_run(model: Model, engine: Engine) -> None:
    """More of them are other pictures, with so many times the steps, counted through (check E8)."""
    events = edit_events(replace(REQUEST, repeats=3, interpolation=0), model.tools(engine.run))

    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.index, step.total) for step in steps] == [(index, 18) for index in range(18)]
    plain = results(model, engine, replace(REQUEST, interpolation=0))[0].png
    assert results(model, engine, replace(REQUEST, interpolation=0, repeats=1))[0].png == plain
    assert next(event.png for event in events if isinstance(event, EditedImage)) != plain


def test_a_repeat_begins_from_the_last_ones_picture_with_fresh_noise(model: Model, engine: Engine) -> None:
    """Its first latents are the last result noised with the seed's next draw, the base image's outside (check E8)."""
    starts: list[np.ndarray] = []

    def run(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        starts.append(latents[:1])
        return engine.run(latents, timesteps, contexts)

    request = replace(GIVEN, mask=mask(box=LEFT), repeats=2)
    edit_events(request, model.tools(run))

    latent = model.graphs.encode(images.to_model(BASE_IMAGE, (48, 48)))
    rng = np.random.default_rng(5)
    first, second = (rng.standard_normal(latent.shape[1:], dtype=np.float32)[None] for _ in range(2))
    level = SCHEDULERS["ddim"].run(model.schedule, 8).late(0.75).levels[0]
    signal, noise = np.sqrt(level), np.sqrt(1 - level)
    np.testing.assert_allclose(starts[0], signal * latent + noise * first, rtol=0, atol=1e-5)
    again = (starts[6] - noise * second) / signal
    np.testing.assert_allclose(again[..., 6:], latent[..., 6:], rtol=0, atol=1e-4)
    assert np.abs(again[..., :6] - latent[..., :6]).max() > 0.1


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_repeats_keep_what_is_outside(model: Model, engine: Engine, repeats: int) -> None:
    """For any number of them the kept pixels are exact (check E8)."""
    edited = pixels(model, engine, replace(GIVEN, mask=mask(box=LEFT), repeats=repeats))

    np.testing.assert_array_equal(edited[:, 24:], BASE_IMAGE[:, 24:])


def test_a_strength_without_steps_still_keeps_what_is_outside(model: Model, engine: Engine) -> None:
    """Inside of the mask is what the autoencoder makes of the picture (check S4)."""
    edited = pixels(model, engine, replace(GIVEN, mask=mask(box=LEFT), strength=0.0))
    unmasked = pixels(model, engine, replace(REQUEST, strength=0.0))

    np.testing.assert_array_equal(edited[:, 24:], BASE_IMAGE[:, 24:])
    np.testing.assert_array_equal(edited[:, :24], unmasked[:, :24])


def test_a_negative_prompt_takes_the_place_of_the_empty_one(model: Model, engine: Engine) -> None:
    """At guidance 0 it alone is followed; at guidance 1 it is not seen."""
    plain = replace(REQUEST, interpolation=0.0)

    only_it = pixels(model, engine, replace(plain, guidance_scale=0.0, negative_prompt="snow"))
    unseen = pixels(model, engine, replace(plain, guidance_scale=1.0, negative_prompt="snow"))

    np.testing.assert_array_equal(only_it, pixels(model, engine, replace(plain, guidance_scale=1.0, prompt="snow")))
    np.testing.assert_array_equal(unseen, pixels(model, engine, replace(plain, guidance_scale=1.0)))
    assert (pixels(model, engine, replace(plain, negative_prompt="snow")) != pixels(model, engine, plain)).any()


def test_prompt_guidance_from_the_same_prompt_changes_nothing(model: Model, engine: Engine) -> None:
    """Off by rounding at most; from another prompt it is another picture, for one pass more a step (check U9)."""
    batches: list[int] = []

    def run(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        batches.append(len(latents))
        return engine.run(latents, timesteps, contexts)

    plain = replace(REQUEST, interpolation=0.0)
    guided = replace(plain, prompt_guidance_scale=2.0, base_prompt=plain.prompt)
    edit_events(guided, model.tools(run))

    without = pixels(model, engine, plain)
    assert np.abs(pixels(model, engine, guided).astype(int) - without).max() <= 1
    assert (pixels(model, engine, replace(guided, base_prompt="beikkpic snow")) != without).any()
    assert batches == [3] * 6


def test_base_weights_that_are_the_tuned_ones_mix_to_the_same_picture(model: Model, tunings: Tunings) -> None:
    """With a tuning of no update every mixture is the plain edit, up to a level of rounding."""
    untouched = tunings.weights(1, size=0.0)
    plain = replace(REQUEST, interpolation=0.0, untuned_prompt=REQUEST.prompt)

    with model.pool.lease(untouched.id, lambda: untouched) as lease:
        expected = pixels(model, lease.engine, plain).astype(int)
        for change in ({"unconditional_on_base": True}, {"base_mixture": 0.4}, {"base_mixture": 1.0}):
            assert np.abs(pixels(model, lease.engine, replace(plain, **change)) - expected).max() <= 1


def test_mixtures_run_on_the_weights_that_they_name(model: Model, tunings: Tunings) -> None:
    """The base model hears the plain prompt in the noisier half of the schedule, and the empty one at every step."""
    weights = tunings.weights(1)
    embed = model.graphs.embed
    calls: dict[str, list[tuple[int, list[str]]]] = {"tuned": [], "base": []}
    prompts = {embed(text).tobytes(): text for text in (REQUEST.prompt, REQUEST.untuned_prompt, "")}

    def noted(name: str, run: object) -> object:
        def denoiser(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
            calls[name].append((int(timesteps[0]), [prompts[context.tobytes()] for context in contexts]))
            return run(latents, timesteps, contexts)

        return denoiser

    request = replace(REQUEST, strength=1.0, base_mixture=0.4, unconditional_on_base=True)
    with model.pool.lease(weights.id, lambda: weights) as lease:
        tuned, base = noted("tuned", lease.engine.run), noted("base", model.pool.run_base)
        edit_events(request, model.tools(tuned, base_denoiser=base))

    timesteps = SCHEDULERS["ddim"].run(model.schedule, 8).timesteps.tolist()
    plain = REQUEST.untuned_prompt
    assert calls["tuned"] == [(timestep, [REQUEST.prompt]) for timestep in timesteps]
    assert calls["base"] == [(timestep, [plain, ""] if timestep >= 500 else [""]) for timestep in timesteps]
    assert 0 < sum(timestep >= 500 for timestep in timesteps) < 8


def test_a_whole_mixture_without_guidance_is_the_base_model_in_the_noisier_half(model: Model, tunings: Tunings) -> None:
    """Shares between are other pictures than either end."""
    weights = tunings.weights(1)
    request = replace(REQUEST, guidance_scale=1.0, interpolation=0.0)

    with model.pool.lease(weights.id, lambda: weights) as lease:
        tuned, part, whole = (
            pixels(model, lease.engine, replace(request, base_mixture=share)) for share in (0.0, 0.5, 1.0)
        )
        calls: list[int] = []

        def switched(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
            calls.append(int(timesteps[0]))
            if timesteps[0] >= 500:
                contexts = np.stack([model.graphs.embed(request.untuned_prompt)] * len(contexts))
                return model.pool.run_base(latents, timesteps, contexts)
            return lease.engine.run(latents, timesteps, contexts)

        events = edit_events(request, model.tools(switched))
        by_hand = next(images.decode(event.png) for event in events if isinstance(event, EditedImage))

    np.testing.assert_array_equal(whole, by_hand)
    assert (part != tuned).any() and (part != whole).any()
