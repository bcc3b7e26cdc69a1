"""Edits with a base model for inpainting against diffusers' own pipeline, and with tunings, on a tiny random model."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint
from PIL import Image

from sampler_svc import wire
from sampler_svc.build.folder import build
from sampler_svc.engines.engine import BASE
from sampler_svc.engines.weights import tuned_weights
from sampler_svc.model import Model
from sampler_svc.sampling.events import EditedImage
from sampler_svc.sampling.masks.contrast import finder
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.tools import PreparedEdit, Tools
from tests.sampler_svc.edit_events import edit_events
from tests.sampler_svc.pictures import mask, picture
from tests.sampler_svc.untuned_edit import edited_latents
from tuner_svc.base_model import load
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.errors import InvalidField
from unitune.options import put_words
from unitune.v1.sampler_pb2 import SampleRequest
from unitune.weights import unpack

THEIRS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
TOLERANCE = 1e-5  # of the largest latent
BOX = (9, 13, 33, 42)  # not at the latent's places, which are 4 pixels wide
REQUEST = Request(
    image=picture(),
    prompt="a cat at the beach",
    scheduler="ddim",
    num_inference_steps=10,
    guidance_scale=5.0,
    strength=1.0,
    interpolation=1.0,
    seeds=(5,),
    untuned_prompt="a cat at the beach",
)
MASKED = replace(REQUEST, mask_source="given", mask=mask(box=BOX))


@pytest.fixture(scope="module")
def model(tiny_inpainting_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model's engine, loaded."""
    return Model.open(build(tiny_inpainting_graphs, tmp_path_factory.mktemp("engines") / "inpainting"), threads=1)


def pixels(tools: Tools, request: Request) -> np.ndarray:
    """The finished picture."""
    (found,) = (event for event in edit_events(request, tools) if isinstance(event, EditedImage))
    return images.decode(found.png)


@pytest.fixture
def theirs(tiny_inpainting: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Request, bytes], np.ndarray]:
    """The latents of the same edit by diffusers' pipeline. The noise is given to it; encodings are modes, as ours."""

    def run(request: Request, white: bytes) -> np.ndarray:
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(tiny_inpainting, local_files_only=True)
        pipeline.scheduler = THEIRS[request.scheduler].from_config({**pipeline.scheduler.config, "clip_sample": False})
        pipeline.set_progress_bar_config(disable=True)
        noise = np.random.default_rng(request.seeds[0]).standard_normal((1, 4, 12, 12), dtype=np.float32)
        of_pipeline = pipeline_stable_diffusion_inpaint
        monkeypatch.setattr(of_pipeline, "randn_tensor", lambda *_, **__: torch.from_numpy(noise))
        monkeypatch.setattr(of_pipeline, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode())
        with torch.no_grad():
            found = pipeline(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt or None,
                image=Image.open(io.BytesIO(request.image)),
                mask_image=Image.open(io.BytesIO(white)),
                height=48,
                width=48,
                strength=request.strength,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                output_type="latent",
            )
        latents: np.ndarray = found.images.numpy()
        return latents

    return run


@pytest.mark.parametrize("scheduler", sorted(THEIRS))
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_masked_edit_is_that_of_diffusers(
    tools: Tools, theirs: Callable[[Request, bytes], np.ndarray], scheduler: str, strength: float
) -> None:
    """Mask, masked picture and start are those of their inpainting: latents and picture are equal."""
    request = replace(MASKED, scheduler=scheduler, strength=strength)
    latents = theirs(request, request.mask)

    ours = edited_latents(tools, request)

    np.testing.assert_allclose(ours, latents, rtol=0, atol=TOLERANCE * np.abs(latents).max())
    shown, wanted = (images.from_model(tools.graphs.decode(one), (48, 48)).astype(float) for one in (ours, latents))
    assert np.abs(shown - wanted).max() <= 1
    assert np.abs(latents - theirs(request, mask())).max() > 0.01  # the mask matters


def test_without_a_mask_everything_is_edited(tools: Tools, theirs: Callable[[Request, bytes], np.ndarray]) -> None:
    """A mask that is found after the edit, the default, hides the whole picture from the denoiser."""
    request = replace(REQUEST, strength=0.7)
    latents = theirs(request, mask())
    np.testing.assert_allclose(edited_latents(tools, request), latents, rtol=0, atol=TOLERANCE * np.abs(latents).max())


@pytest.mark.parametrize(("height", "width"), [(48, 48), (44, 66), (90, 40)])
def test_pixels_outside_of_the_mask_are_the_photographs_own(tools: Tools, height: int, width: int) -> None:
    """They come back exactly at any size, and inside of the mask another picture is painted."""
    photo = picture(height, width)
    top, left, bottom, right = height // 4, width // 4, height // 2, width // 2
    request = replace(MASKED, image=photo, mask=mask(height, width, box=(top, left, bottom, right)))

    found, before = pixels(tools, request), images.decode(photo)

    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    np.testing.assert_array_equal(found[~inside], before[~inside])
    assert (found[inside] != before[inside]).mean() > 0.5


def test_what_is_hidden_changes_nothing(tools: Tools) -> None:
    """At full strength the painted place does not depend on what the photograph has there."""
    other = images.decode(MASKED.image).copy()
    other[20:30, 20:30] = 255
    painted = replace(MASKED, image=images.encode_png(other))
    assert np.array_equal(edited_latents(tools, MASKED), edited_latents(tools, painted))
    assert not np.array_equal(
        edited_latents(tools, replace(MASKED, strength=0.9)), edited_latents(tools, replace(painted, strength=0.9))
    )


@pytest.mark.parametrize("source", ["diffedit", "word"])
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_that_the_denoiser_finds_work(tools: Tools, source: str, inverted: bool) -> None:
    """To find a mask it sees nothing of the picture but the latents; an edit may begin at the inverted picture."""
    find = finder(tools.graphs, tools.schedule, tools.denoiser, ["cat"], "a dog", lambda: False)
    request = replace(
        REQUEST, mask_source=source, mask_text="cat", base_prompt="a dog", strength=0.6, inverted=inverted
    )
    edit = PreparedEdit(request, replace(tools, find=find))
    assert edit.mask is not None and edit.mask.shape == (48, 48)
    assert np.isfinite(edited_latents(replace(tools, find=find), request)).all()


def test_a_mixture_with_the_base_model_sees_the_same(tools: Tools) -> None:
    """Terms of guidance on the base weights are shown the mask, too: with base weights everywhere it is no mixture."""
    request = replace(MASKED, prompt="a cat", untuned_prompt="a cat")
    mixed = replace(request, base_mixture=0.5)
    np.testing.assert_allclose(edited_latents(tools, mixed), edited_latents(tools, request), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "full"},
        {"mode": "lora"},
        {"method": "dreambooth", "mode": "attn_out", "class_noun": "cat", "num_class_images": 1},
        {"method": "imagic", "mode": "attn_out", "prompt": "a cat", "embedding_updates": 1},
    ],
    ids=lambda fields: fields.get("method", "unitune") + "-" + fields["mode"],
)
def test_a_tuning_edits_within_a_mask(model: Model, tiny_inpainting: Path, fields: dict[str, Any]) -> None:
    """Its probe passes, it changes what is painted, and none of no updates is the base model bit for bit (M20)."""
    base_model = load(tiny_inpainting)
    image = images.to_model(images.decode(picture()), base_model.image_side)
    with model.pool.lease(BASE, lambda: model.base) as lease:
        found = [edited_latents(model.tools(lease.engine.run), MASKED)]
    for updates in (0, 3):
        config = TuningConfig(**{"batch": 2, "learning_rate": 1e-3, "updates": updates, **fields})
        packed = pack_tuned(base_model, tune(base_model, image, config), config, "key", "none")
        weights = tuned_weights(unpack(*packed), model.base, model.spec.digest)
        with model.pool.lease(weights.id, lambda weights=weights: weights) as lease:
            found.append(edited_latents(model.tools(lease.engine.run), MASKED))
    base, none, tuned = found
    assert np.array_equal(none, base)
    assert not np.array_equal(tuned, base) and np.isfinite(tuned).all()


def test_prompt_to_prompt_is_refused_in_one_line(model: Model) -> None:
    """It takes the layout of a whole picture over; the gateway asks the sampler before anything is tuned."""
    request = SampleRequest(prompt="a cat")
    put_words(request.config, {"method": "prompt_to_prompt", "base_prompt": "a dog"})
    with pytest.raises(InvalidField, match="this base model is for inpainting") as refused:
        wire.read_request(request, model, is_run=False)
    assert refused.value.field == "config.method"


def test_a_second_pass_is_refused_in_one_line(model: Model) -> None:
    """Its tiles would be shown the picture of the working size."""
    request = SampleRequest(prompt="a cat")
    put_words(request.config, {"method": "unitune", "second_pass": True})
    with pytest.raises(InvalidField, match="leave it unset: this base model is for inpainting") as refused:
        wire.read_request(request, model, is_run=False)
    assert refused.value.field == "config.second_pass"
