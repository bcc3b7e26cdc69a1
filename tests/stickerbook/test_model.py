"""The weights in the repository: they load where Stable Diffusion loads, and they know the world."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from stickerbook.captions import caption
from stickerbook.judge import FIRST_VALIDATION_SEED, Judge, any_scene
from stickerbook.pictures import pictures
from stickerbook.render import render
from stickerbook.samples import sample
from stickerbook.save_model import MODEL, vocabulary
from stickerbook.train_autoencoder import psnr_db
from stickerbook.world import ATTRIBUTES, FIRST_HELD_OUT_SEED, draw_scene
from unitune.working_size import fit, working_size


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def test_diffusers_samples_from_the_folder(pipeline):
    """The stock pipeline makes a 64x64 picture from a prompt."""
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a cat on a beach by day", num_inference_steps=3, guidance_scale=4.0, output_type="np").images[0]

    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all() and picture.std() > 0.02


def test_the_autoencoder_keeps_the_picture(pipeline):
    """At least 30 dB on scenes that training never drew."""
    assert psnr_db(pipeline.vae, pictures(range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 24), "held_out")) >= 30


@pytest.mark.parametrize("size", [(400, 600), (600, 400), (300, 720), (480, 500)])
def test_a_circle_in_a_photograph_stays_a_circle(pipeline, size):
    """Its width is its height within 1 %, after the autoencoder at the photograph's working size (M25)."""
    rows, columns = np.indices(size)
    inside = (rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 < 110**2
    picture = np.where(inside[..., None], np.uint8(40), np.uint8(220)).repeat(3, axis=2)
    place = fit(size, working_size(size, (64, 64), 16))

    with torch.no_grad():
        latent = pipeline.vae.encode(torch.from_numpy(place.to_model(picture))).latent_dist.mode()
        image = pipeline.vae.decode(latent).sample.numpy()
    edited = place.from_model(image, size)

    dark = edited.mean(axis=2) < 130
    height, width = rows[dark].std(), columns[dark].std()
    assert abs(width / height - 1) < 0.01
    assert abs(height / rows[inside].std() - 1) < 0.05


def test_the_judge_reads_renders_it_never_saw(judge):
    """At least 94 in 100 renders are read right, attribute by attribute."""
    scenes = [any_scene(FIRST_VALIDATION_SEED + 5000 + index) for index in range(200)]
    seen = judge.read(np.stack([render(scene) for scene in scenes]))

    for attribute in ATTRIBUTES:
        right = np.mean([getattr(s, attribute) == got[attribute] for s, got in zip(scenes, seen, strict=True)])
        assert right >= 0.94, attribute


def test_samples_show_what_the_held_out_caption_says(pipeline, judge):
    """On 24 held-out captions most objects and nearly all places are right (the full figures: stickerbook.evaluate)."""
    scenes = [draw_scene(FIRST_HELD_OUT_SEED + 10_000 + index, "held_out") for index in range(24)]
    images = sample(
        pipeline.unet,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.vae,
        pipeline.scheduler,
        [caption(scene) for scene in scenes],
        steps=15,
    )
    seen = judge.read(images)

    assert sum(s.object == got["object"] for s, got in zip(scenes, seen, strict=True)) >= 15
    assert sum(s.place == got["place"] for s, got in zip(scenes, seen, strict=True)) >= 19


def test_vocabulary_file_is_the_world():
    """The list of known words beside the weights is the one of the code."""
    assert json.loads((MODEL / "vocabulary.json").read_text()) == vocabulary()


def test_weights_are_small_and_without_pickle():
    """The folder stays below 43 MB and holds nothing that could execute."""
    files = [path for path in MODEL.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) < 43e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".gz", ".txt"}
