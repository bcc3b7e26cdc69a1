"""The hot path against diffusers' own parts, and the checks of methods that need no trained model."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm, scheduling_tcd

from sampler_svc.engines.engine import BASE, Engine, WeightSet
from sampler_svc.model import Model
from sampler_svc.sampling.edit_steps import EditSteps
from sampler_svc.sampling.events import Done, EditedImage, Step
from sampler_svc.sampling.request import Request, guidance_by_timestep
from sampler_svc.sampling.sample import finish, sample, start
from sampler_svc.sampling.tools import PreparedEdit
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import picture
from tests.sampler_svc.tunings import Tunings
from unitune import images
from unitune.diffusion.schedule import Schedule
from unitune.diffusion.solvers import OWN_TIMESTEPS, SCHEDULERS
from unitune.errors import Cancelled, Internal

REQUEST = Request(
    image=picture(),
    prompt="beikkpic a cat at the beach",
    scheduler="ddim",
    num_inference_steps=8,
    guidance_scale=4.0,
    strength=0.75,
    seeds=(5,),
)


class Passes:
    """An engine's denoiser that counts its passes and remembers what it saw first."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.batches, self.first = engine, [], None

    def __call__(self, latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        self.batches.append(len(latents))
        if self.first is None:
            self.first = latents
        return self.engine.run(latents, timesteps, contexts)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """An engine with the base weights, under a lease."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        yield lease.engine


def run(model: Model, engine: Engine, request: Request) -> list[Step | EditedImage | Done]:
    """All events of a run."""
    return edit_events(request, model.tools(engine.run))


def pictures(model: Model, engine: Engine, request: Request) -> list[bytes]:
    """The results of a run."""
    return [event.png for event in run(model, engine, request) if isinstance(event, EditedImage)]


@torch.no_grad()
def diffusers_picture(folder: Path, request: Request, prediction_type: str) -> np.ndarray:
    """The same edit by torch and diffusers: their image encoder's mode, text encoder, scheduler, UNet and decoder."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    config = {**pipeline.scheduler.config, "clip_sample": False, "prediction_type": prediction_type}
    if request.timestep_spacing:
        config["timestep_spacing"] = request.timestep_spacing
    kinds = {
        "ddim": DDIMScheduler,
        "euler": EulerDiscreteScheduler,
        "dpmpp_2m": DPMSolverMultistepScheduler,
        "lcm": LCMScheduler,
        "euler_ancestral": EulerAncestralDiscreteScheduler,
        "tcd": TCDScheduler,
    }
    scheduler = kinds[request.scheduler].from_config(config)
    scheduler.set_timesteps(request.num_inference_steps)
    first = request.num_inference_steps - int(request.num_inference_steps * request.strength)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]

    def embed(prompt: str) -> torch.Tensor:
        ids = pipeline.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return pipeline.text_encoder(ids).last_hidden_state

    contexts = torch.cat([embed(""), embed(request.prompt)])
    image = torch.from_numpy(images.to_model(images.decode(request.image), (48, 48)))
    latent = pipeline.vae.encode(image).latent_dist.mode() * pipeline.vae.config.scaling_factor
    rng = np.random.default_rng(request.seeds[0])

    def draw(*given: object, **named: object) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(latent.shape[1:], dtype=np.float32)[None])

    noise = draw()
    if len(timesteps):
        latent = scheduler.add_noise(latent, noise, timesteps[:1])
    with pytest.MonkeyPatch.context() as patch:
        for module in (scheduling_lcm, scheduling_euler_ancestral_discrete, scheduling_tcd):
            patch.setattr(module, "randn_tensor", draw)
        for timestep in timesteps:
            seen = scheduler.scale_model_input(torch.cat([latent, latent]), timestep)
            empty, prompt = pipeline.unet(seen, timestep, contexts).sample.chunk(2)
            output = empty + request.guidance_scale * (prompt - empty)
            output = rescale_noise_cfg(output, prompt, request.guidance_rescale)
            latent = scheduler.step(output, timestep, latent).prev_sample
    image = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return images.from_model(image.numpy(), (48, 48))


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_edit_is_that_of_diffusers(
    model: Model, engine: Engine, tiny_model: Path, scheduler: str, strength: float, prediction_type: str
) -> None:
    """From file to pixels, an edit is what diffusers' parts give: no pixel off by more than one level."""
    request = replace(REQUEST, scheduler=scheduler, strength=strength)
    config = {**asdict(model.spec.schedule), "prediction_type": prediction_type}

    (ours,) = (images.decode(png) for png in pictures(replace(model, schedule=Schedule(**config)), engine, request))
    theirs = diffusers_picture(tiny_model, request, prediction_type)

    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert 0.2 < (ours > 0).mean() and (ours < 255).mean() > 0.2  # not saturated, which would hide differences


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "euler", "timestep_spacing": "trailing", "num_inference_steps": 4, "guidance_scale": 1.0},
        {"scheduler": "ddim", "timestep_spacing": "trailing", "num_inference_steps": 2, "guidance_scale": 1.0},
        {"scheduler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0},
        {"scheduler": "lcm", "num_inference_steps": 8, "guidance_scale": 2.0, "strength": 0.5},
        {"scheduler": "tcd", "num_inference_steps": 4, "guidance_scale": 1.0},
        {
            "scheduler": "euler_ancestral",
            "timestep_spacing": "trailing",
            "num_inference_steps": 4,
            "guidance_scale": 1.0,
        },
        {"guidance_rescale": 0.7, "guidance_scale": 9.0},
        {"scheduler": "euler", "timestep_spacing": "linspace", "guidance_rescale": 1.0},
    ],
)
def test_an_edit_of_few_steps_is_that_of_diffusers(
    model: Model, engine: Engine, tiny_model: Path, changes: dict[str, Any]
) -> None:
    """Spacing, steps and rescaled guidance of one run are the request's, whatever the model's file says (M13, M14)."""
    request = replace(REQUEST, **changes)

    (ours,) = (images.decode(png) for png in pictures(model, engine, request))
    theirs = diffusers_picture(tiny_model, request, model.schedule.prediction_type)

    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    others = {} if changes.get("scheduler") in OWN_TIMESTEPS else {"timestep_spacing": "", "guidance_rescale": 0.0}
    (other,) = (images.decode(png) for png in pictures(model, engine, replace(request, **others, scheduler="ddim")))
    assert np.abs(ours.astype(int) - other.astype(int)).max() > 1


def test_tokens_are_those_of_transformers(model: Model, tiny_model: Path) -> None:
    """Prompts short, empty, long and odd are cut and padded to the same ids (check U4)."""
    tokenizer = StableDiffusionPipeline.from_pretrained(tiny_model, local_files_only=True).tokenizer

    for prompt in ("", "a cat", "beikkpic a dog, at NIGHT!", "snow " * 40, "Ünïcode ☃ 123"):
        theirs = tokenizer(prompt, padding="max_length", truncation=True).input_ids
        assert model.graphs.tokens(prompt) == theirs


def test_events_come_in_order(model: Model, engine: Engine) -> None:
    """Steps from 0, one image for each seed in order, and the seconds of the stages last."""
    events = run(model, engine, replace(REQUEST, seeds=(3, 1, 2)))

    assert [event.index for event in events[:6] if isinstance(event, Step)] == list(range(6))
    assert [(event.index, event.seed) for event in events[6:9]] == [(0, 3), (1, 1), (2, 2)]
    assert isinstance(events[9], Done) and len(events) == 10
    assert min(events[9].encode_s, events[9].denoise_s, events[9].decode_s) > 0


def sigmas(model: Model, request: Request) -> np.ndarray:
    """Noise over signal at every step of a run, falling."""
    levels = (
        SCHEDULERS[request.scheduler].run(model.schedule, request.num_inference_steps).late(request.strength).levels
    )
    return np.sqrt((1 - levels) / levels)


def test_a_picture_that_is_not_finite_is_refused(model: Model, engine: Engine) -> None:
    """Latents that are too large for the autoencoder end the edit, rather than a picture of noise."""
    edit = PreparedEdit(REQUEST, model.tools(engine.run))
    terms = guidance_by_timestep(REQUEST, edit.tools.embed, edit.tools.schedule)
    latents = np.full_like(edit.latent, 1e38)

    with pytest.raises(Internal, match="the autoencoder's picture left the range of numbers"):
        finish(latents, 0, REQUEST, edit, terms, EditSteps(edit, REQUEST, lambda event: None))


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize(("first", "last"), [(0, 5), (1, 3), (2, 5), (0, 2)])
def test_a_step_outside_of_the_guidance_interval_is_one_pass(
    model: Model, engine: Engine, scheduler: str, first: int, last: int
) -> None:
    """The interval has its high end in it and not its low one; prompt guidance, too, is inside alone."""
    request = replace(REQUEST, scheduler=scheduler, base_prompt="a cat", prompt_guidance_scale=1.0)
    falling = [*sigmas(model, request), 0.0]
    request = replace(request, guidance_sigma_low=falling[last + 1], guidance_sigma_high=falling[first])
    passes = Passes(engine)

    edit_events(request, model.tools(passes))

    assert passes.batches == [3 if first <= step <= last else 1 for step in range(6)]


def test_outside_of_the_guidance_interval_is_no_guidance(model: Model, engine: Engine) -> None:
    """A run without a step inside is the run of guidance 1, bit for bit; one with all inside is the run as ever."""
    highest, lowest = sigmas(model, REQUEST)[[0, -1]]
    plain, guided = pictures(model, engine, replace(REQUEST, guidance_scale=1.0)), pictures(model, engine, REQUEST)

    above = replace(REQUEST, guidance_sigma_low=highest)
    below = replace(REQUEST, guidance_sigma_high=lowest / 2)
    whole = replace(REQUEST, guidance_sigma_low=lowest / 2, guidance_sigma_high=highest)
    late = replace(REQUEST, guidance_sigma_high=(highest + lowest) / 2)

    assert pictures(model, engine, above) == pictures(model, engine, below) == plain
    assert pictures(model, engine, whole) == guided
    assert pictures(model, engine, late) not in (plain, guided)


def test_guidance_one_is_one_pass(model: Model, engine: Engine) -> None:
    """Without guidance the empty prompt costs nothing; with it both are one call (check S1)."""
    for guidance_scale, batches in ((1.0, [1] * 6), (0.0, [1] * 6), (4.0, [2] * 6)):
        passes = Passes(engine)
        request = replace(REQUEST, guidance_scale=guidance_scale)
        edit_events(request, model.tools(passes))
        assert passes.batches == batches


def test_guidance_zero_does_not_see_the_prompt(model: Model, engine: Engine) -> None:
    """It is bit-equal to the empty prompt (check S2)."""
    unguided = replace(REQUEST, guidance_scale=0.0)

    assert pictures(model, engine, unguided) == pictures(model, engine, replace(unguided, prompt="snow"))
    assert pictures(model, engine, unguided) == pictures(model, engine, replace(REQUEST, guidance_scale=1.0, prompt=""))


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.124])
def test_a_strength_without_steps_is_the_autoencoder_round_trip(model: Model, engine: Engine, strength: float) -> None:
    """One picture for each seed, all alike, and no step: never an empty batch (checks S4 and E1)."""
    events = run(model, engine, replace(REQUEST, strength=strength, seeds=(1, 2)))
    image = images.to_model(images.decode(REQUEST.image), (48, 48))
    round_trip = images.from_model(model.graphs.decode(model.graphs.encode(image)), (48, 48))

    assert [type(event) for event in events] == [EditedImage, EditedImage, Done]
    for event in events[:2]:
        np.testing.assert_array_equal(images.decode(event.png), round_trip)


def test_strength_one_runs_all_steps_from_the_noisiest_level(model: Model, engine: Engine) -> None:
    """It starts at a_T x + s_T e, where a tenth of the picture is still there: not from pure noise (checks S3, E1)."""
    passes = Passes(engine)

    events = edit_events(replace(REQUEST, strength=1.0), model.tools(passes))

    assert sum(isinstance(event, Step) for event in events) == 8
    latent = model.graphs.encode(images.to_model(images.decode(REQUEST.image), (48, 48)))
    noise = np.random.default_rng(5).standard_normal(latent.shape[1:], dtype=np.float32)
    level = model.schedule.alphas_cumprod[7 * 125 + 1]
    np.testing.assert_allclose(passes.first[:1], np.sqrt(level) * latent + np.sqrt(1 - level) * noise, atol=1e-6)


def test_the_start_is_farther_from_the_picture_the_greater_the_strength(model: Model) -> None:
    """Distance grows strictly from strength to strength (check E2)."""
    latent = model.graphs.encode(images.to_model(images.decode(REQUEST.image), (48, 48)))
    whole = SCHEDULERS["ddim"].run(model.schedule, 10)
    noise = np.random.default_rng(5).standard_normal(latent.shape, dtype=np.float32)

    distances = [
        float(np.linalg.norm(start(latent, noise, whole.late(strength)) - latent))
        for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]

    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_strengths_of_the_same_number_of_steps_are_the_same_picture(model: Model, engine: Engine) -> None:
    """int() decides, so 0.75 and 0.87 of 8 steps are both 6 steps, to the bit (check E7)."""
    assert pictures(model, engine, REQUEST) == pictures(model, engine, replace(REQUEST, strength=0.87))
    assert pictures(model, engine, REQUEST) != pictures(model, engine, replace(REQUEST, strength=0.88))


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_the_same_seed_is_the_same_picture(model: Model, engine: Engine, scheduler: str) -> None:
    """Twice alike to the byte, whatever was sampled in between; another seed is another picture (check S6)."""
    request = replace(REQUEST, scheduler=scheduler)

    once = pictures(model, engine, request)
    other = pictures(model, engine, replace(request, seeds=(6,)))

    assert pictures(model, engine, request) == once
    assert other != once


def test_a_picture_does_not_depend_on_its_batch(model: Model, engine: Engine) -> None:
    """A seed's picture is the same alone and among others, except for rounding of one level (check S6)."""
    together = pictures(model, engine, replace(REQUEST, seeds=(9, 5, -1)))
    (alone,) = pictures(model, engine, REQUEST)

    difference = images.decode(together[1]).astype(int) - images.decode(alone).astype(int)
    assert np.abs(difference).max() <= 1


def test_zero_updates_are_sdedit(model: Model, tunings: Tunings) -> None:
    """Tuned weights of no update give the base model's picture for the same prompt, to the byte (checks E5 and U1)."""
    untouched = tunings.weights(1, size=0.0)

    with model.pool.lease(BASE, lambda: model.base) as lease:
        sdedit = pictures(model, lease.engine, REQUEST)
    with model.pool.lease(untouched.id, lambda: untouched) as lease:
        assert not lease.warm
        assert pictures(model, lease.engine, REQUEST) == sdedit
    with model.pool.lease("tuned", lambda: replace(tunings.weights(1), id="tuned")) as lease:
        assert pictures(model, lease.engine, REQUEST) != sdedit


def test_sampling_changes_no_weights_and_writes_nothing(
    model: Model, engine_folder: Path, base: WeightSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine folder and the base weights are bit-equal afterwards, and no file appears (checks E3 and S7)."""
    monkeypatch.chdir(tmp_path)

    def digests() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in engine_folder.iterdir()}

    before = digests()
    with model.pool.lease(BASE, lambda: model.base) as lease:
        pictures(model, lease.engine, REQUEST)

    assert digests() == before
    assert not list(tmp_path.iterdir())
    for name, tensor in model.base.tensors.items():
        np.testing.assert_array_equal(tensor, base.tensors[name])


@pytest.mark.parametrize("size", [(48, 48), (30, 100), (97, 51)])
def test_a_picture_comes_back_as_large_as_it_was(model: Model, engine: Engine, size: tuple[int, int]) -> None:
    """Results have the base image's size, and previews its aspect and the working size at most."""
    events = run(model, engine, replace(REQUEST, image=picture(*size), preview_every=6))

    (result,) = (images.decode(event.png) for event in events if isinstance(event, EditedImage))
    (preview,) = (images.decode(event.preview) for event in events if isinstance(event, Step) and event.preview)
    assert result.shape[:2] == size
    assert max(preview.shape[:2]) == max(model.graphs.working_size(size))
    assert preview.shape[0] / preview.shape[1] == pytest.approx(size[0] / size[1], rel=0.1)


def test_previews_come_as_often_as_asked(model: Model, engine: Engine) -> None:
    """Every other step has one, and they change nothing in the result."""
    events = run(model, engine, replace(REQUEST, preview_every=2))

    assert [bool(event.preview) for event in events if isinstance(event, Step)] == [False, True] * 3
    assert [event.png for event in events if isinstance(event, EditedImage)] == pictures(model, engine, REQUEST)


def test_a_preview_is_the_linear_map_or_else_the_decoder(model: Model) -> None:
    """A latent's preview is its channels times the rows plus the offset; without a map it is the decoded picture."""
    latent = model.graphs.encode(images.to_model(images.decode(REQUEST.image), (48, 48)))
    *rows, offset = np.array(model.spec.latent_to_rgb)

    preview = model.graphs.preview(latent)
    model.graphs.spec = replace(model.spec, latent_to_rgb=())

    expected = sum(latent[0, channel][None] * row[:, None, None] for channel, row in enumerate(rows))
    np.testing.assert_allclose(preview[0], expected + offset[:, None, None], rtol=0, atol=1e-5)
    assert preview.dtype == np.float32
    np.testing.assert_array_equal(model.graphs.preview(latent), model.graphs.decode(latent))


def test_a_cancelled_run_stops_before_its_next_step(model: Model, engine: Engine) -> None:
    """The flag is read before each step; no pass is made after it."""
    passes, events = Passes(engine), []

    with pytest.raises(Cancelled):
        sample(REQUEST, model.tools(passes, cancelled=lambda: len(events) == 2), events.append)

    assert len(events) == len(passes.batches) == 2


def test_the_noisiest_step_is_in_the_widest_interval() -> None:
    """stickerbook's schedule begins at a sigma of 20291, and 10000 is the most that may be asked for."""
    assert replace(REQUEST, guidance_sigma_high=10_000).is_guided_at(20_291.0)
    assert not replace(REQUEST, guidance_sigma_high=9_999).is_guided_at(20_291.0)
