"""Imagic on a tiny random model: what each stage changes, and that the picture comes back."""

from dataclasses import replace

import torch
from torch import Tensor

from tests.tuner_svc.denoise import from_noise
from tuner_svc.base_model import BaseModel
from tuner_svc.denoising import Noising, denoising_loss, draw
from tuner_svc.trainable import trainable_parameters
from tuner_svc.tune import UpdateProgress, tune
from tuner_svc.tuning_config import TuningConfig
from unitune.images import ModelImage

SHORT = TuningConfig(
    method="imagic",
    prompt="a cat on the beach",
    mode="full",
    updates=3,
    embedding_updates=4,
    batch=2,
    learning_rate=1e-3,
)


def test_the_embedding_stage_changes_only_the_embedding(model: BaseModel, image: ModelImage) -> None:
    """Every tensor is bit-equal, the embedding has moved, and its first loss is that of E(text) (I2)."""
    target = model.encode_prompt(SHORT.prompt)
    latent, noising = model.encode_image(image), Noising(model.schedule, model.device)
    own = draw(SHORT.batch, latent, noising.num_timesteps, torch.Generator().manual_seed(SHORT.seed))

    result = tune(model, image, replace(SHORT, updates=0))

    assert all(torch.equal(model.tensors()[name], tensor) for name, tensor in result.tensors.items())
    assert torch.equal(target[0], result.extras["prompt"])
    assert not torch.equal(result.extras["prompt"], result.extras["optimized"])
    assert 4 == len(result.losses)
    with torch.no_grad():
        assert denoising_loss(model, {}, latent, target, noising, own).item() == result.losses[0]


def test_zero_embedding_updates_leave_the_embedding_bit_equal(model: BaseModel, image: ModelImage) -> None:
    """Without an embedding stage the optimized embedding is the text's own (I4)."""
    result = tune(model, image, replace(SHORT, embedding_updates=0))

    assert torch.equal(result.extras["prompt"], result.extras["optimized"])


def test_the_model_stage_changes_only_the_denoiser(model: BaseModel, image: ModelImage) -> None:
    """The optimized embedding is bit-equal with and without it, the UNet moves and no other part does (I3)."""
    text_before = {name: tensor.clone() for name, tensor in model.text_encoder.state_dict().items()}

    first = tune(model, image, replace(SHORT, updates=0))
    both = tune(model, image, SHORT)

    assert torch.equal(first.extras["optimized"], both.extras["optimized"])
    assert both.tensors.keys() == trainable_parameters(model.denoiser.unet, "full").keys()
    assert not any(torch.equal(model.tensors()[name], tensor) for name, tensor in both.tensors.items())
    assert first.losses == both.losses[:4] and 7 == len(both.losses)
    assert all(torch.equal(text_before[name], tensor) for name, tensor in model.text_encoder.state_dict().items())


def test_the_optimized_embedding_brings_the_picture_back(model: BaseModel, image: ModelImage) -> None:
    """From pure noise at eta 0 and guidance 1 the tuned model comes ten times nearer the picture than the base (I5)."""
    config = replace(SHORT, updates=96, embedding_updates=16, batch=4, learning_rate=2e-3)
    result = tune(model, image, config)
    latent, optimized = model.encode_image(image), result.extras["optimized"][None]

    def distance(tensors: dict[str, Tensor]) -> float:
        return float((from_noise(model, tensors, optimized) - latent).square().mean())

    assert distance(result.tensors) < distance({}) / 10


def test_the_same_seed_gives_the_same_bits(model: BaseModel, image: ModelImage) -> None:
    """Two runs agree in every bit of weights and embedding; another seed gives others (I8)."""
    first, second, other = (tune(model, image, replace(SHORT, seed=seed)) for seed in (5, 5, 6))

    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert torch.equal(first.extras["optimized"], second.extras["optimized"])
    assert not torch.equal(first.extras["optimized"], other.extras["optimized"])


def test_progress_counts_both_stages_and_tells_their_rates(model: BaseModel, image: ModelImage) -> None:
    """The total is the sum of both stages, and the rate is that of the embedding at first."""
    told: list[UpdateProgress] = []

    tune(model, image, SHORT, on_progress=told.append)

    assert (1, 7, 1e-3) == (told[0].update, told[0].total, told[0].learning_rate)
