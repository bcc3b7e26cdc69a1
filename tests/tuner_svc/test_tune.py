"""The hot path: the acceptance checks of UniTune on a tiny random model."""

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.func import functional_call

from tests.tiny_model import save_tiny_model
from tuner_svc import progress_tracker as module
from tuner_svc.base_model import BaseModel, load
from tuner_svc.denoising import Draws, Noising, denoising_loss, draw
from tuner_svc.probe import pack_tuned
from tuner_svc.trainable import trainable, trainable_parameters
from tuner_svc.tune import Tuned, UpdateProgress, tune
from tuner_svc.tuning_config import TuningConfig
from unitune.errors import Cancelled, Internal
from unitune.images import ModelImage

SHORT = TuningConfig(updates=3, batch=2, learning_rate=1e-3)
LONG = TuningConfig(updates=64, batch=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def before(model: BaseModel) -> dict[str, Tensor]:
    """The base model's tensors before any tuning of this file."""
    return {name: tensor.clone() for name, tensor in model.tensors().items()}


@pytest.fixture(scope="module")
def tuned(model: BaseModel, image: ModelImage, before: dict[str, Tensor]) -> Tuned:
    """A tuning of all weights, long enough to learn the picture."""
    return tune(model, image, LONG)


def prompt(model: BaseModel) -> Tensor:
    """The embedding of the rare tokens alone."""
    return model.encode_prompt(LONG.rare_tokens)


def loss_at(model: BaseModel, image: ModelImage, tensors: dict[str, Tensor], draws: Draws) -> float:
    """The loss of a model with some tensors replaced, at fixed draws."""
    noising = Noising(model.schedule, model.device)
    with torch.no_grad():
        latent = model.encode_image(image)
        return denoising_loss(model, tensors, latent, prompt(model), noising, draws).item()


def fixed_draws(model: BaseModel, image: ModelImage, number: int) -> Draws:
    """Draws that no tuning of these tests uses."""
    return draw(number, model.encode_image(image), 1000, torch.Generator().manual_seed(99))


@pytest.mark.parametrize("mode", ["full", "attn_out", "lora"])
def test_zero_updates_leave_every_tensor_bit_equal(model: BaseModel, image: ModelImage, mode: str) -> None:
    """U1: no update, no change, in any mode."""
    result = tune(model, image, TuningConfig(mode=mode, updates=0))

    assert result.tensors.keys() == trainable_parameters(model.denoiser.unet, mode).keys()
    assert all(torch.equal(model.tensors()[name], tensor) for name, tensor in result.tensors.items())
    assert [] == result.losses


def test_sixty_four_updates_learn_the_picture(model: BaseModel, image: ModelImage, tuned: Tuned) -> None:
    """U2: the mean loss over 64 draws that were never trained on falls at least fourfold."""
    draws = fixed_draws(model, image, 64)

    assert loss_at(model, image, tuned.tensors, draws) < loss_at(model, image, {}, draws) / 4
    assert 64 == len(tuned.losses)


def test_one_update_lowers_the_loss_where_it_was_taken(model: BaseModel, image: ModelImage) -> None:
    """U2: at its own timesteps and noise, a small enough step helps."""
    config = TuningConfig(updates=1, batch=4, learning_rate=1e-5)
    own = draw(4, model.encode_image(image), 1000, torch.Generator().manual_seed(config.seed), stratified=True)

    result = tune(model, image, config)

    assert loss_at(model, image, {}, own) == pytest.approx(result.losses[0])
    assert loss_at(model, image, result.tensors, own) < result.losses[0]


@pytest.mark.parametrize(("batch", "num_timesteps"), [(4, 1000), (3, 10), (1, 7)])
def test_stratified_timesteps_are_uniform_and_one_from_each_part(batch: int, num_timesteps: int) -> None:
    """U2: over many draws every timestep comes about equally often, and every single draw covers the schedule."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.zeros(1, 1, 1, 1)
    drawn = torch.stack([draw(batch, latent, num_timesteps, generator, stratified=True).timesteps for _ in range(2000)])

    parts = torch.arange(batch)
    assert ((parts * num_timesteps / batch).floor() <= drawn).all()
    assert (drawn < ((parts + 1) * num_timesteps / batch).ceil()).all()
    counts = torch.histc(drawn.float(), bins=7, min=0, max=num_timesteps) / drawn.numel()
    expected = torch.histc(torch.arange(num_timesteps).float(), bins=7, min=0, max=num_timesteps) / num_timesteps
    assert (counts - expected).abs().max() < 0.03


def test_the_rare_tokens_alone_bring_the_picture_back(model: BaseModel, image: ModelImage, tuned: Tuned) -> None:
    """U3: from pure noise without guidance the tuned model comes ten times nearer the picture than the base model."""
    latent = model.encode_image(image)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))

    def distance(tensors: dict[str, Tensor]) -> float:
        scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
        scheduler.set_timesteps(20)
        sample = noise
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                epsilon = functional_call(model.denoiser.unet, tensors, (sample, timestep, prompt(model))).sample
                sample = scheduler.step(epsilon, timestep, sample).prev_sample
        return float((sample - latent).square().mean())

    assert distance(tuned.tensors) < distance({}) / 10


@pytest.mark.parametrize("mode", ["attn_out", "lora"])
def test_only_the_declared_tensors_change(
    model: BaseModel, image: ModelImage, before: dict[str, Tensor], mode: str
) -> None:
    """U5: the result holds the declared tensors, each changed, and no other tensor of the model has moved."""
    result = tune(model, image, replace(SHORT, mode=mode))

    assert result.tensors.keys() == trainable_parameters(model.denoiser.unet, mode).keys()
    assert not any(torch.equal(before[name], tensor) for name, tensor in result.tensors.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tensors().items())


def test_one_batch_of_four_is_four_batches_of_one(model: BaseModel, image: ModelImage) -> None:
    """U6: the gradient of a batch is the mean of its draws' gradients."""
    draws = fixed_draws(model, image, 4)
    noising = Noising(model.schedule, model.device)
    latent, context = model.encode_image(image), prompt(model)
    together = trainable(model.denoiser.unet, "full", torch.Generator())
    apart = trainable(model.denoiser.unet, "full", torch.Generator())

    denoising_loss(model, together.weights(), latent, context, noising, draws).backward()
    for index in range(4):
        one = Draws(draws.timesteps[index : index + 1], draws.noise[index : index + 1])
        (denoising_loss(model, apart.weights(), latent, context, noising, one) / 4).backward()

    for mine, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_updates_count_steps_of_the_optimizer_whatever_the_batch(model: BaseModel, image: ModelImage) -> None:
    """U6: eight draws in an update are one update."""
    told: list[UpdateProgress] = []

    result = tune(model, image, replace(SHORT, updates=2, batch=8), on_progress=told.append)

    assert 2 == len(result.losses)
    assert (1, 2) == (told[0].update, told[0].total)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_same_seed_gives_the_same_bits(model: BaseModel, image: ModelImage, mode: str) -> None:
    """Two runs agree in every bit, whatever was tuned between; another seed gives other weights."""
    config = replace(SHORT, mode=mode)
    first = tune(model, image, config)
    other = tune(model, image, replace(config, seed=1))
    second = tune(model, image, config)

    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert first.losses == second.losses
    assert first.losses != other.losses


def test_the_base_model_is_untouched(
    model: BaseModel, image: ModelImage, tuned: Tuned, before: dict[str, Tensor]
) -> None:
    """S7: after a full tuning the base model's tensors are bit-equal to what they were, and hold no gradient."""
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tensors().items())
    assert all(parameter.grad is None for parameter in model.denoiser.parameters())


def test_the_target_of_v_prediction_is_that_of_diffusers(tmp_path: Path, image: ModelImage) -> None:
    """Noising and both targets agree with diffusers' scheduler, and a v model tunes."""
    model = load(save_tiny_model(tmp_path / "v", prediction_type="v_prediction"))
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latent = model.encode_image(image)
    draws = fixed_draws(model, image, 5)
    noising = Noising(model.schedule, model.device)
    repeated = latent.expand(5, -1, -1, -1)

    torch.testing.assert_close(
        scheduler.add_noise(repeated, draws.noise, draws.timesteps), noising.noised(latent, draws), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        scheduler.get_velocity(repeated, draws.noise, draws.timesteps), noising.target(latent, draws), rtol=0, atol=1e-6
    )
    epsilon = Noising(replace(model.schedule, prediction_type="epsilon"), model.device)
    assert torch.equal(draws.noise, epsilon.target(latent, draws))
    losses = tune(model, image, replace(SHORT, updates=12, batch=8)).losses
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_a_picture_that_is_not_finite_diverges_at_the_first_update(model: BaseModel, image: ModelImage) -> None:
    """The error names the update and leaves the base model alone."""
    with pytest.raises(Internal) as caught:
        tune(model, np.full_like(image, np.nan), SHORT)

    assert ("TUNING_DIVERGED", {"update": "1"}) == (caught.value.reason, caught.value.metadata)


def test_a_learning_rate_far_too_high_diverges_by_the_update_that_shows_it(
    model: BaseModel, image: ModelImage, before: dict[str, Tensor]
) -> None:
    """Weights that run away are reported after the first update, and the base model is still itself."""
    config = TuningConfig(updates=8, batch=2)
    object.__setattr__(config, "learning_rate", 1e30)  # more than any request may ask for

    with pytest.raises(Internal) as caught:
        tune(model, image, config)

    assert "TUNING_DIVERGED" == caught.value.reason
    assert 2 <= int(caught.value.metadata["update"]) <= 8
    assert caught.value.metadata["update"] in caught.value.message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tensors().items())


def test_weights_that_break_in_the_last_update_are_no_result(model: BaseModel, image: ModelImage) -> None:
    """No loss follows the last update, so the weights themselves are looked at."""
    config = TuningConfig(updates=1, batch=1)
    object.__setattr__(config, "learning_rate", float("inf"))

    with pytest.raises(Internal, match="update 1"):
        tune(model, image, config)


def test_cancelling_stops_before_the_next_update(model: BaseModel, image: ModelImage) -> None:
    """The flag is read before every update: raised during the first, it lets no second begin."""
    flag = threading.Event()
    told: list[int] = []

    def on_progress(progress: UpdateProgress) -> None:
        told.append(progress.update)
        flag.set()

    with pytest.raises(Cancelled) as caught:
        tune(model, image, LONG, on_progress=on_progress, cancelled=flag.is_set)

    assert [1] == told
    assert "TUNING_CANCELLED" == caught.value.reason


def test_a_tuning_cancelled_from_the_start_runs_no_update(model: BaseModel, image: ModelImage) -> None:
    """Not even the first update begins."""
    told: list[UpdateProgress] = []

    with pytest.raises(Cancelled):
        tune(model, image, SHORT, on_progress=told.append, cancelled=lambda: True)

    assert [] == told


def test_progress_comes_at_most_five_times_a_second(
    model: BaseModel, image: ModelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With updates of 1/16 s every fourth is told of, with the mean of the last losses and the time that is left.

    The first update, which may be slow, says nothing of the time.
    """
    clock = itertools.count(0, 1 / 16)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told: list[UpdateProgress] = []

    result = tune(model, image, replace(SHORT, updates=21, batch=1), on_progress=told.append)

    assert [1, 5, 9, 13, 17, 21] == [progress.update for progress in told]
    assert told[-1].loss == pytest.approx(np.mean(result.losses[11:21]))
    assert told[0].left_s is None and told[1].left_s == pytest.approx(16 / 16)
    assert 0 == told[-1].left_s


def test_a_tuning_that_stops_early_is_that_of_fewer_updates(model: BaseModel, image: ModelImage) -> None:
    """It ends at the first update whose last ten losses have fallen far enough, tells so, and gives the bits of a
    tuning of just so many updates; the manifest says how many."""
    told: list[UpdateProgress] = []
    config = replace(LONG, stop_loss_ratio=0.6)
    result = tune(model, image, config, on_progress=told.append)
    done = len(result.losses)

    assert 20 <= done < 64
    assert np.mean(result.losses[-10:]) <= 0.6 * np.mean(result.losses[:10])
    shorter = [result.losses[:number] for number in range(20, done)]
    assert all(np.mean(losses[-10:]) > 0.6 * np.mean(losses[:10]) for losses in shorter)
    last = told[-1]
    assert (done, 64, 0.0, True) == (last.update, last.total, last.left_s, last.stopped_early)
    assert not any(progress.stopped_early for progress in told[:-1])
    plain = tune(model, image, replace(LONG, updates=done))
    assert plain.losses == result.losses
    assert all(torch.equal(plain.tensors[name], tensor) for name, tensor in result.tensors.items())
    manifests = [pack_tuned(model, made, made_by, "key")[1] for made, made_by in ((result, config), (plain, SHORT))]
    assert [(64, done), (3, 0)] == [(manifest.updates, manifest.stopped_after) for manifest in manifests]


@pytest.mark.parametrize(("ratio", "stops"), [(0.0, False), (0.49, False), (0.5, True), (1.0, True)])
def test_losses_have_fallen_when_their_last_mean_has(ratio: float, stops: bool) -> None:
    """The means of ten are compared, whatever single losses are; never before there are two tens, never with 0."""
    losses = [4.0] * 5 + [0.0] * 5 + [9.0] * 5 + [1.0] * 10

    assert stops is module.have_fallen(losses, ratio)
    assert not module.have_fallen([1.0] * 10 + [0.0] * 9, 1.0)
    assert not module.have_fallen([0.0] * 20, 0.0)


def test_a_stop_at_the_last_update_is_none(model: BaseModel, image: ModelImage) -> None:
    """Whoever asked for so many updates and gets them was not stopped early."""
    told: list[UpdateProgress] = []

    result = tune(model, image, replace(LONG, updates=20, stop_loss_ratio=1.0), on_progress=told.append)

    assert 20 == len(result.losses)
    assert not any(progress.stopped_early for progress in told)
