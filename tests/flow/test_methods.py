"""Each method that tunes, through gateway, tuner and sampler: real processes on the tiny base model."""

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

from unitune_client import Client, EditAccepted, EditDone, EditEvent, EditLoading, EditStep, InvalidField, TuningReady
from unitune_client.cli.main import main
from unitune_client.local.services import LocalServices

SETTINGS = {"num_inference_steps": 4, "guidance_scale": 3.0, "seeds": [1]}


def picture(seed: int) -> bytes:
    """A PNG of smooth random colours."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((60, 44), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def weights_file(services: LocalServices, tuning: str) -> Path:
    """The file that a tuning made."""
    (path,) = (services._home.store / "tunings" / "default" / tuning.rpartition("/")[2]).rglob("*.safetensors")
    return path


def names_in(path: Path) -> set[str]:
    """The tensors of a file."""
    with safe_open(path, "numpy") as file:
        return set(file.keys())


def is_loaded(events: list[EditEvent]) -> bool:
    """Whether weights were put into an engine."""
    return any(isinstance(event, EditLoading) for event in events)


def test_imagic(client: Client, services: LocalServices) -> None:
    """One call tunes for its prompt and edits; eta moves the picture; another prompt is another tuning (I6)."""
    options = {"updates": 2, "embedding_updates": 2, "learning_rate": 1e-3, "embedding_learning_rate": 0.01}
    events = list(client.edit(picture(0), "a cat at night", method="imagic", eta=0.0, **options, **SETTINGS))

    assert is_loaded(events) and any(isinstance(event, TuningReady) for event in events)
    (done,) = [event for event in events if isinstance(event, EditDone)]
    assert {"extra.prompt", "extra.optimized", "probe.tuned"} < names_in(weights_file(services, done.tuning))
    zero, one, again = (
        client.edit_to_end(done.tuning, "a cat at night", eta=eta, **SETTINGS).images[0].png for eta in (0.0, 1.0, 0.0)
    )
    assert zero == again != one
    other = client.edit_to_end(picture(0), "a dog at night", method="imagic", **options, **SETTINGS)
    assert other.tuning != done.tuning


def test_dreambooth(client: Client, services: LocalServices) -> None:
    """Two pictures and class images are tuned on; edits need token and class noun (D7)."""
    tuning = client.tune(
        picture(0),
        further_images=[picture(1)],
        method="dreambooth",
        class_noun="cat",
        mode="lora",
        updates=2,
        num_class_images=1,
    )
    events = list(client.edit(tuning, "a beikkpic cat on the beach", **SETTINGS))

    assert is_loaded(events) and isinstance(events[-1], EditDone)
    assert ("dreambooth", "cat", 1, 1) == (
        tuning.config.method,
        tuning.config.class_noun,
        tuning.config.num_class_images,
        len(tuning.images),
    )
    with pytest.raises(InvalidField) as refused:
        client.edit_to_end(tuning, "a cat on the beach", **SETTINGS)
    assert refused.value.field == "prompt"
    alone = client.tune(picture(0), method="dreambooth", class_noun="cat", mode="lora", updates=2, prior_weight=0.0)
    assert alone.weights != tuning.weights


def test_textual_inversion(client: Client, services: LocalServices) -> None:
    """A file of a few hundred bytes edits without a refit, the same picture every time; words are checked (T3, T4)."""
    options = {"method": "textual_inversion", "initial_word": "cat", "updates": 3, "num_vectors": 2}
    tuning = client.tune(picture(0), **options)
    path = weights_file(services, tuning.name)
    events = list(client.edit(tuning, "a beikkpic on the beach", **SETTINGS))
    first, second = (client.edit_to_end(tuning, "a beikkpic on the beach", **SETTINGS) for _ in range(2))

    assert names_in(path) == {"extra.vectors", "probe.base", "probe.tuned"} and path.stat().st_size < 1024
    assert not is_loaded(events) and isinstance(events[-1], EditDone)
    assert first.images[0].png == second.images[0].png
    for change, field in (
        ({"rare_tokens": "dog"}, "config.rare_tokens"),
        ({"initial_word": "zebra"}, "config.initial_word"),
    ):
        with pytest.raises(InvalidField) as refused:
            client.create_tuning(picture(0), **{**options, **change})
        assert refused.value.field == field


def test_prompt_to_prompt(client: Client) -> None:
    """A picture is edited without a tuning, the same whatever the seed; each option has its effect (P8)."""
    options = {"method": "prompt_to_prompt", "base_prompt": "a cat on the beach", **SETTINGS, "seeds": [1, 2]}
    words = {"blend_words": ["cat", "dog"], "word_weights": {"dog": 1.5}}
    events = list(client.edit(picture(0), "a dog on the beach", **options, **words))
    edited = client.edit_to_end(picture(0), "a dog on the beach", omit_metadata=True, **options)
    steps = [event.total for event in events if isinstance(event, EditStep)]

    assert isinstance(events[-1], EditDone) and events[-1].tuning == "" and set(steps) == {8}
    assert edited.images[0].png == edited.images[1].png
    (accepted,) = [event for event in events if isinstance(event, EditAccepted)]
    assert ("direct", ("cat", "dog"), {"dog": 1.5}) == (
        accepted.config.inversion,
        accepted.config.blend_words,
        accepted.config.word_weights,
    )
    ordinary, weighted, drifting, other = (
        client.edit_to_end(picture(0), "a dog on the beach", **{**options, **change}).images[0].png
        for change in (
            {"cross_replace": 0.0, "self_replace": 0.0},
            {"word_weights": {"dog": 3.0}},
            {"inversion": "ddim", "base_prompt": "a cow on the beach"},
            {"base_prompt": "a cat on the snow", "alignment": "refine"},
        )
    )
    assert len({edited.images[0].png, ordinary, weighted, drifting, other}) == 5
    for bad, field in (
        ({"n_cross_replace": 0.4}, "n_cross_replace"),
        ({"eta": 0.5}, "config.eta"),
        ({"blend_words": ["zebra"]}, "config.prompt_to_prompt.blend_words[0]"),
    ):
        with pytest.raises(InvalidField) as refused:
            client.edit_to_end(picture(0), "a dog on the beach", **{**options, **bad})
        assert refused.value.field == field and refused.value.metadata["remedy"]


def test_null_text(client: Client, services: LocalServices, tmp_path: Path) -> None:
    """The command's edit makes the tuning; the same edit finds it, and so does one that names it alone; without
    updates it is DDIM inversion to the last level of a pixel (P9), and a setting that it is not for is refused."""
    (tmp_path / "photo.png").write_bytes(picture(0))
    options = ["--method=prompt_to_prompt", "--base-prompt=a cat on the beach", "--steps=4", "--guidance=3"]
    arguments = ["edit", tmp_path / "photo.png", "a dog on the beach", *options, "--inversion=null_text", "--updates=2"]
    done = CliRunner().invoke(main, [*map(str, arguments), "-o", str(tmp_path), "--address", services.address])
    assert done.exit_code == 0, done.output
    assert "tuning: 1/8" in done.stderr
    (path,) = tmp_path.glob("photo--a-dog-*--seed0.png")

    config = {"method": "prompt_to_prompt", "base_prompt": "a cat on the beach", **SETTINGS}
    null_text = {**config, "inversion": "null_text"}
    events = list(client.edit(picture(0), "a dog on the beach", **null_text, updates=2))
    assert not is_loaded(events) and not any(isinstance(event, TuningReady) for event in events)
    tuning = events[-1].tuning
    assert names_in(weights_file(services, tuning)) == {"extra.nulls", "probe.base", "probe.tuned"}
    named = client.edit_to_end(tuning, "a dog on the beach").images[0].png
    np.testing.assert_array_equal(*(np.asarray(Image.open(io.BytesIO(png))) for png in (named, path.read_bytes())))

    zero = client.edit_to_end(picture(0), "a dog on the beach", **null_text, updates=0)
    ddim = client.edit_to_end(picture(0), "a dog on the beach", **config, inversion="ddim")
    ours, plain = (np.asarray(Image.open(io.BytesIO(one.images[0].png))).astype(int) for one in (zero, ddim))
    np.testing.assert_allclose(ours, plain, atol=1)
    assert zero.tuning not in ("", tuning) and ddim.tuning == ""
    with pytest.raises(InvalidField) as refused:
        client.edit_to_end(tuning, "a dog on the beach", num_inference_steps=5)
    assert refused.value.field == "config.num_inference_steps"


def test_a_mask_by_word(client: Client, services: LocalServices, tmp_path: Path) -> None:
    """The command's --mask-text is found in the picture, and what is outside of it keeps its pixels."""
    (tmp_path / "photo.png").write_bytes(picture(0))
    options = ["--method=sdedit", "--steps=4", "--guidance=3", "--strength=0.8", "--inverted"]
    arguments = ["edit", tmp_path / "photo.png", "a dog", "--mask-text=the cat", "--mask-blur=0", *options]
    done = CliRunner().invoke(main, [*map(str, arguments), "-o", str(tmp_path), "--address", services.address])
    config = {"method": "sdedit", "num_inference_steps": 4, "guidance_scale": 3.0, "strength": 0.8, "inverted": True}
    image = client.edit_to_end(picture(0), "a dog", mask_text="the cat", seeds=[0], **config).images[0]

    assert done.exit_code == 0, done.output
    before, after = (np.asarray(Image.open(io.BytesIO(png))) for png in (picture(0), image.png))
    mask = np.asarray(Image.open(io.BytesIO(image.mask)))
    assert 0 < (mask == 0).mean() < 1
    np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
    assert (after[mask > 0] != before[mask > 0]).any()
    (path,) = tmp_path.glob("photo--a-dog--*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), after)


def test_the_server_tells_each_methods_defaults(client: Client) -> None:
    """Published values where the base model's preset says nothing, by method."""
    info = client.server_info()

    assert ("imagic", 1000, 500, 1e-3) == (
        (imagic := info.method_tuning_defaults["imagic"]).method,
        imagic.updates,
        imagic.embedding_updates,
        imagic.embedding_learning_rate,
    )
    assert (0.7, 1.0) == (info.method_sampling_defaults["imagic"].eta, info.method_sampling_defaults["imagic"].strength)
    assert 200 == info.method_tuning_defaults["dreambooth"].num_class_images
    assert info.method_tuning_defaults["textual_inversion"].scale_learning_rate
    assert info.method_tuning_defaults["unitune"] == info.tuning_defaults
