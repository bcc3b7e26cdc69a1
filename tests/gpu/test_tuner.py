"""The tuner on a real NVIDIA GPU, where updates are replays of a CUDA graph. `make test-gpu` runs this.

The tiny model says nothing about speed. Errors of a tuning are shares of what the tuning did, in the norm of all of its
tensors together.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import BaseModel, load
from tuner_svc.denoising import Noising, denoising_loss, draw, mixed_precision
from tuner_svc.trainable import trainable
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from tuner_svc.update_graph import EAGER_UPDATES, UpdateGraph, adam, repeatable_sums
from unitune.images import ModelImage
from unitune.prompts import with_rare_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="NOT RUN on a GPU: PyTorch finds no CUDA device on this machine"
    ),
    # PyTorch's warnings from below Python bear the name of whoever called, which may be a file of ours.
    pytest.mark.filterwarnings("default"),
]

CUDA = torch.device("cuda")
UPDATES = 4 * EAGER_UPDATES
UNITUNE = TuningConfig(updates=UPDATES, batch=2, learning_rate=1e-3)
DREAMBOOTH = replace(UNITUNE, method="dreambooth", rare_tokens="zqx", class_noun="cat", num_class_images=3)
CONFIGS = {
    "unitune": UNITUNE,
    "unitune attn_out": replace(UNITUNE, mode="attn_out"),
    "unitune lora": replace(UNITUNE, mode="lora"),
    "imagic": replace(UNITUNE, method="imagic", prompt="a cat on the beach", embedding_updates=UPDATES),
    "dreambooth": DREAMBOOTH,
    "dreambooth without a prior": replace(DREAMBOOTH, prior_weight=0.0),
}
MAX_ERROR = 0.01  # of a tuning with the graph to one without; bfloat16 rounds to 0.004
MAX_LOSS_ERROR = 0.01


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> BaseModel:
    """The tiny base model on the GPU."""
    return load(tiny_model, "cuda")


@pytest.fixture(scope="module")
def image(model: BaseModel) -> ModelImage:
    """A picture of a few soft blotches."""
    generator = torch.Generator().manual_seed(0)
    blotches = 2 * torch.rand((1, 3, 4, 4), generator=generator) - 1
    return torch.nn.functional.interpolate(blotches, model.image_side, mode="bilinear").numpy()


def results(model: BaseModel, image: ModelImage, config: TuningConfig) -> dict[str, Tensor]:
    """All that a tuning makes, by name."""
    tuned = tune(model, image, config)
    return {**tuned.tensors, **tuned.extras, "losses": torch.tensor(tuned.losses)}


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    """What the updates complained of."""
    ours = (record for record in log.records if record.name.startswith("tuner_svc"))
    return [f"{record.message} {getattr(record, 'fields', '')}" for record in ours]


def error(found: dict[str, Tensor], expected: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    """How far the one is from the other, as a share of the way from the base."""

    def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return sum(float((one[name] - other[name]).double().square().sum()) for name in expected) ** 0.5

    return distance(found, expected) / distance(expected, base)


@pytest.mark.parametrize("name", ["adafactor", "adam"])
def test_the_optimizers_count_on_in_a_graph(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Forty updates, each with a target of its own, bring parameters where the same function brings them by itself, to
    1e-5: neither target, nor step count, nor decay is that of the capture."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn((40, 1), generator=generator).to(CUDA)
    starts = [torch.randn(shape, generator=generator) for shape in ((24, 16, 3, 3), (16,), (32, 8), (1,))]

    def updates_of(parameters: list[Tensor]) -> Callable[[Tensor], Tensor]:
        optimizer = Adafactor(parameters, 1e-2) if name == "adafactor" else adam(parameters, 1e-2)

        def update(target: Tensor) -> Tensor:
            loss = torch.stack([(parameter - target).square().mean() for parameter in parameters]).sum()
            loss.backward()
            optimizer.step()
            for parameter in parameters:
                parameter.grad = None
            return loss

        return update

    graphed, plain = ([start.to(CUDA, copy=True).requires_grad_() for start in starts] for _ in range(2))
    run, update = UpdateGraph(updates_of(graphed), graphed, CUDA), updates_of(plain)
    losses = [(run(target).item(), update(target).item()) for target in targets]

    assert run.is_captured, warnings_of(caplog)
    np.testing.assert_allclose([mine for mine, _ in losses], [its for _, its in losses], rtol=1e-5)
    for mine, its in zip(graphed, plain, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "attn_out", "lora"])
def test_a_tuning_with_the_graph_is_one_without(
    model: BaseModel, image: ModelImage, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Losses and tensors are those of the same updates written out and run one by one, to MAX_ERROR."""
    config = replace(UNITUNE, mode=mode)
    latent = model.encode_image(image)
    generator = torch.Generator().manual_seed(config.seed)
    chosen = trainable(model.denoiser.unet, mode, generator)
    optimizer, noising = Adafactor(chosen.parameters(), config.learning_rate), Noising(model.schedule, CUDA)
    context = model.encode_prompt(with_rare_tokens(config.rare_tokens, ""))
    losses = []
    with repeatable_sums():
        for _ in range(config.updates):
            draws = draw(config.batch, latent, noising.num_timesteps, generator, stratified=True)
            with mixed_precision(CUDA):
                loss = denoising_loss(model, chosen.replacements(), latent, context, noising, draws)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
    expected = {name: tensor.detach() for name, tensor in chosen.weights().items()}

    tuned = tune(model, image, config)

    assert [] == warnings_of(caplog)
    np.testing.assert_allclose(tuned.losses, losses, rtol=MAX_LOSS_ERROR)
    assert error(tuned.tensors, expected, model.tensors()) < MAX_ERROR


@pytest.mark.parametrize("name", CONFIGS)
def test_two_tunings_give_the_same_bits(
    model: BaseModel, image: ModelImage, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Losses, tensors and embeddings are equal in every bit, whatever was tuned between; another seed gives others."""
    first, other, second = (results(model, image, replace(CONFIGS[name], seed=seed)) for seed in (5, 6, 5))

    assert [] == warnings_of(caplog)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert not torch.equal(first["losses"], other["losses"])


def test_the_memory_of_a_tuning_is_given_back(model: BaseModel, image: ModelImage) -> None:
    """Once two tunings have run, further ones leave no more bytes allocated or reserved than they: no graph's memory
    stays."""

    def left() -> tuple[int, int]:
        tune(model, image, UNITUNE)
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    left()
    allocated, reserved = left()
    later = [left() for _ in range(3)]

    assert all(now <= allocated for now, _ in later), (allocated, later)
    assert all(now <= reserved for _, now in later), (reserved, later)


def test_what_cannot_be_captured_goes_on_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    """An update that waits for the device breaks its capture: it is logged, every update takes place once, and no
    gradient of the capture is left. The last test here, for the process captures no more after it."""
    moved = torch.zeros(2, device=CUDA, requires_grad=True)

    def update(target: Tensor) -> Tensor:
        loss = (moved - target).square().sum()
        loss.backward()
        gradient = moved.grad
        assert gradient is not None
        with torch.no_grad():
            moved.sub_(0.5 * gradient if gradient.isfinite().all().item() else 0)
        moved.grad = None
        return loss

    run = UpdateGraph(update, [moved], CUDA)
    targets = [torch.tensor([float(index), 1.0], device=CUDA) for index in range(UPDATES)]
    with caplog.at_level(logging.WARNING, logger="tuner_svc.update_graph"):
        losses = [run(target).item() for target in targets]

    assert 1 == len(warnings_of(caplog)) and warnings_of(caplog)[0].startswith("updates not captured")
    assert not run.is_captured and moved.grad is None
    assert [1.0] * UPDATES == losses
    assert torch.equal(targets[-1], moved.detach())
