"""Textual Inversion on a tiny random model: only the vectors learn, and words that cannot be tokens are refused."""

from dataclasses import replace

import pytest
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.denoising import Noising, denoising_loss, draw
from tuner_svc.methods.textual_inversion import TEMPLATES, initial_vectors, placeholder_ids
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import UpdateProgress, check, tune
from tuner_svc.tuning_config import TuningConfig
from unitune.errors import InvalidField
from unitune.images import ModelImage

SHORT = TuningConfig(
    method="textual_inversion", initial_word="cat", rare_tokens="S*", updates=4, batch=2, learning_rate=5e-3
)


def test_only_the_vectors_change(model: BaseModel, image: ModelImage) -> None:
    """Every row of the embedding table, the text transformer, the UNet and the autoencoder are bit-equal (T1)."""
    parts = (model.text_encoder, model.image_encoder, model.image_decoder, model.denoiser)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]

    result = tune(model, image, SHORT)

    assert {} == result.tensors and ["vectors"] == list(result.extras)
    assert not torch.equal(initial_vectors(model, SHORT), result.extras["vectors"])
    for part, kept in zip(parts, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in part.state_dict().items())


def test_zero_updates_say_the_initial_word(model: BaseModel, image: ModelImage) -> None:
    """Without an update "a photo of S*" is embedded bit for bit as "a photo of cat" (T2)."""
    vectors = tune(model, image, replace(SHORT, updates=0)).extras["vectors"]

    with torch.no_grad():
        placed = model.text_encoder(placeholder_ids(model, "a photo of S*", SHORT), vectors)

    assert torch.equal(model.encode_prompt("a photo of cat"), placed)
    assert not torch.equal(model.encode_prompt("a photo of dog"), placed)


def test_the_text_encoder_is_clips_own(model: BaseModel) -> None:
    """Without vectors it gives the bits of transformers' CLIPTextModel."""
    ids = model.input_ids(["", "a cat on a beach", "zqx at night"])

    with torch.no_grad():
        expected = model.text_encoder.clip(ids).last_hidden_state
        found = model.text_encoder(ids, model.text_encoder.no_vectors())

    assert torch.equal(expected, found)


@pytest.mark.parametrize("number", [1, 3])
def test_the_file_holds_the_vectors_alone(model: BaseModel, image: ModelImage, number: int) -> None:
    """num_vectors times the width of the text embedding, in a file of a few kilobytes without UNet tensors (T3)."""
    config = replace(SHORT, num_vectors=number, updates=1)
    result = tune(model, image, config)

    data, manifest = pack_tuned(model, result, config, "key")

    assert (number, model.context_width) == tuple(result.extras["vectors"].shape)
    assert ((), ("vectors",), "textual_inversion") == (manifest.tensors, manifest.extras, manifest.method)
    assert len(data) < 4 * number * model.context_width + 1024


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"rare_tokens": "dog"}, "config.rare_tokens", "vocabulary has this word already"),
        ({"rare_tokens": "Beach"}, "config.rare_tokens", "vocabulary has this word already"),
        ({"rare_tokens": "two words"}, "config.rare_tokens", "must be one word"),
        ({"initial_word": "sticker"}, "config.initial_word", "must be one token"),
        ({"initial_word": "cat dog"}, "config.initial_word", "must be one token"),
        ({"initial_word": "<|endoftext|>"}, "config.initial_word", "must be one token"),
    ],
)
def test_words_that_cannot_be_tokens_are_refused(
    model: BaseModel, image: ModelImage, change: dict, field: str, remedy: str
) -> None:
    """A placeholder of the vocabulary and an initial word of several tokens are refused, before anything runs (T4)."""
    with pytest.raises(InvalidField, match=remedy) as refused:
        tune(model, image, replace(SHORT, **change))

    assert field == refused.value.field
    check(model, SHORT)


def test_the_loss_falls(model: BaseModel, image: ModelImage) -> None:
    """On draws that no update has seen it falls, and no parameter of the model has a gradient (T5)."""
    config = replace(SHORT, updates=60, batch=4, rare_tokens="zqx")
    latent, noising = model.encode_image(image), Noising(model.schedule, model.device)
    draws = draw(64, latent, 1000, torch.Generator().manual_seed(99))

    def loss(vectors: torch.Tensor) -> float:
        with torch.no_grad():
            context = model.text_encoder(placeholder_ids(model, "a photo of zqx", config), vectors)
            return denoising_loss(model, {}, latent, context, noising, draws).item()

    learnt = tune(model, image, config).extras["vectors"]

    assert loss(learnt) < loss(initial_vectors(model, config))
    parts = (model.text_encoder, model.image_encoder, model.image_decoder, model.denoiser)
    assert all(parameter.grad is None for part in parts for parameter in part.parameters())


@pytest.mark.parametrize(("is_scaled", "rate"), [(True, 0.04), (False, 0.005)])
def test_the_rate_in_force_is_reported(model: BaseModel, image: ModelImage, is_scaled: bool, rate: float) -> None:
    """Scaled, the paper's 0.005 is 0.04 at a batch of eight, and progress says so; Adam uses it (T6)."""
    told: list[UpdateProgress] = []
    config = replace(SHORT, updates=1, batch=8, learning_rate=0.005, scale_learning_rate=is_scaled)

    vectors = tune(model, image, config, on_progress=told.append).extras["vectors"]

    assert told[0].learning_rate == pytest.approx(rate)
    # Adam's first step is the learning rate itself, whatever the gradient's size.
    moved = (vectors - initial_vectors(model, config)).abs().median().item()
    assert moved == pytest.approx(rate, rel=1e-2)


def test_the_picture_is_not_mirrored(model: BaseModel, image: ModelImage) -> None:
    """Every update's loss is that of the picture as it is; mirrored it would be another (T7)."""
    latent, noising = model.encode_image(image), Noising(model.schedule, model.device)
    generator = torch.Generator().manual_seed(SHORT.seed)
    vectors = initial_vectors(model, SHORT)
    config = replace(SHORT, learning_rate=1e-30, scale_learning_rate=False)  # so that the vectors stay where they are
    expected, mirrored = [], []
    for _ in range(config.updates):
        template = TEMPLATES[int(torch.randint(0, len(TEMPLATES), (), generator=generator))]
        draws = draw(config.batch, latent, noising.num_timesteps, generator)
        with torch.no_grad():
            context = model.text_encoder(placeholder_ids(model, template.format("S*"), SHORT), vectors)
            expected.append(denoising_loss(model, {}, latent, context, noising, draws).item())
            mirrored.append(denoising_loss(model, {}, latent.flip(-1), context, noising, draws).item())

    losses = tune(model, image, config).losses

    assert losses == pytest.approx(expected, rel=1e-5)
    assert all(abs(one - other) > 1e-4 for one, other in zip(losses, mirrored, strict=True))


def test_vectors_are_consecutive_ids_in_the_placeholders_place(model: BaseModel) -> None:
    """Three vectors are three ids in a row, wherever the placeholder stands, between the words' own ids (T8)."""
    config = replace(SHORT, num_vectors=3)

    ids = placeholder_ids(model, "a S* on the beach by s*", config)[0].tolist()

    word = {name: model.token_ids(name)[0] for name in ("a", "on", "the", "beach", "by")}
    begin, end, *_ = model.input_ids([""])[0].tolist()
    expected = [begin, word["a"], -1, -2, -3, word["on"], word["the"], word["beach"], word["by"], -1, -2, -3, end]
    assert expected + [end] * (16 - len(expected)) == ids
    assert model.input_ids(["a cat"])[0].tolist() == placeholder_ids(model, "a cat", config)[0].tolist()


def test_a_long_prompt_is_cut_before_its_end(model: BaseModel) -> None:
    """As many ids as ever, the last of them the end."""
    ids = placeholder_ids(model, "S* " * 40, replace(SHORT, num_vectors=2))[0].tolist()

    assert 16 == len(ids) and model.tokenizer.eos_token_id == ids[-1]
    assert [-1, -2] * 7 == ids[1:-1]


def test_the_same_seed_gives_the_same_bits(model: BaseModel, image: ModelImage) -> None:
    """Two runs agree in every bit; another seed gives other vectors."""
    first, second, other = (tune(model, image, replace(SHORT, seed=seed)).extras["vectors"] for seed in (1, 1, 2))

    assert torch.equal(first, second) and not torch.equal(first, other)
