"""DreamBooth on a tiny random model: its two halves, its class images, and what stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import Adam

from tuner_svc import class_images
from tuner_svc.base_model import BaseModel
from tuner_svc.class_images import class_latents, draw_class
from tuner_svc.denoising import Draws, Noising, denoising_loss, draw
from tuner_svc.methods.dreambooth import CLASS_SEEDS, instance_prompt, pictures_of_update
from tuner_svc.trainable import LORA_ALPHA, LORA_RANK, trainable
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune.errors import Cancelled, InvalidField
from unitune.images import ModelImage

SHORT = TuningConfig(
    method="dreambooth",
    class_noun="cat",
    mode="full",
    updates=3,
    batch=2,
    learning_rate=1e-3,
    num_class_images=3,
    rare_tokens="zqx",
)


@pytest.fixture(scope="module")
def quick(model: BaseModel) -> BaseModel:
    """The tiny base model with a preset that draws class images in few steps."""
    return replace(model, preset=replace(model.preset, num_inference_steps=6, guidance_scale=1.5))


def plain_tuning(model: BaseModel, latents: Tensor, config: TuningConfig) -> dict[str, Tensor]:
    """Tuning without a prior, written out."""
    generator = torch.Generator().manual_seed(config.seed)
    noising = Noising(model.schedule, model.device)
    chosen = trainable(model.denoiser.unet, config.mode, generator)
    optimizer = Adam(chosen.parameters(), config.learning_rate)
    context = model.encode_prompt("a zqx cat")
    for _ in range(config.updates):
        draws = draw(config.batch, latents, noising.num_timesteps, generator)
        loss = denoising_loss(model, chosen.weights(), latents, context, noising, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return chosen.weights()


@pytest.mark.parametrize("without_prior", [{"prior_weight": 0.0}, {"num_class_images": 0}])
def test_without_a_prior_it_is_plain_tuning(quick: BaseModel, image: ModelImage, without_prior: dict) -> None:
    """Weight 0 and no class images are each bit-equal to plain tuning with the same draws; a prior is not (D1)."""
    expected = plain_tuning(quick, quick.encode_image(image), SHORT)

    result = tune(quick, image, replace(SHORT, **without_prior))
    with_prior = tune(quick, image, SHORT)

    assert all(torch.equal(expected[name], tensor) for name, tensor in result.tensors.items())
    assert not any(torch.equal(expected[name], tensor) for name, tensor in with_prior.tensors.items())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_zero_updates_leave_every_weight_bit_equal(quick: BaseModel, image: ModelImage, mode: str) -> None:
    """No update, no change; a LoRA whose B is zero answers bit for bit as the base model does (D2)."""
    result = tune(quick, image, replace(SHORT, updates=0, mode=mode))
    arguments = (torch.randn(1, 4, 12, 12), torch.tensor([500]), quick.encode_prompt("a cat"))

    with torch.no_grad():
        base, tuned = (functional_call(quick.denoiser.unet, t, arguments).sample for t in ({}, result.tensors))

    assert all(torch.equal(quick.tensors()[name], tensor) for name, tensor in result.tensors.items())
    assert torch.equal(base, tuned)


def test_the_prior_half_is_the_class_alone(quick: BaseModel, image: ModelImage) -> None:
    """The first loss is the subject's plus the weighted one of class images under the class prompt; swapping the
    halves' pictures gives another (D3)."""
    config = replace(SHORT, prior_weight=0.5)
    latents, of_class = quick.encode_image(image), draw_class(quick, "cat", 3)
    noising = Noising(quick.schedule, quick.device)
    seeds = config.seed, config.seed + CLASS_SEEDS
    own, class_own = (draw(2, latents, 1000, torch.Generator().manual_seed(seed)) for seed in seeds)
    assert not torch.equal(own.noise, class_own.noise)

    def loss(pictures: Tensor, prompt: str, draws: Draws) -> float:
        with torch.no_grad():
            return denoising_loss(quick, {}, pictures, quick.encode_prompt(prompt), noising, draws).item()

    result = tune(quick, image, config)

    expected = loss(latents, "a zqx cat", own) + 0.5 * loss(of_class[:2], "a cat", class_own)
    swapped = loss(of_class[:2], "a zqx cat", own) + 0.5 * loss(latents, "a cat", class_own)
    assert result.losses[0] == pytest.approx(expected, rel=1e-6)
    assert abs(swapped - expected) > 1e-3
    assert "a zqx cat" == instance_prompt(config)


def test_class_images_come_from_the_frozen_model(quick: BaseModel, image: ModelImage) -> None:
    """Drawn again after a tuning they are bit-equal; a picture is that of its seed, however many are drawn (D4)."""
    before = draw_class(quick, "dog", 6)
    tune(quick, image, replace(SHORT, class_noun="dog"))
    after = draw_class(quick, "dog", 6)

    assert torch.equal(before, after)
    assert (6, 4, 12, 12) == tuple(before.shape) and bool(before.isfinite().all())
    assert torch.equal(before[:4], draw_class(quick, "dog", 4))
    assert not torch.equal(before[0], before[1])


def test_class_images_are_drawn_once(quick: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept by base model, class noun and number, and only the last few sets of them."""
    drawn: list[str] = []
    draw_them = class_images.draw_class

    def counted(model: BaseModel, noun: str, number: int, *more: Any) -> Tensor:
        drawn.append(f"{number} {noun}")
        return draw_them(model, noun, number, *more)

    monkeypatch.setattr(class_images, "draw_class", counted)
    class_images._kept.clear()
    first = class_latents(quick, "cow", 1)
    assert first is class_latents(quick, " cow ", 1)
    class_latents(quick, "cow", 2)
    class_latents(replace(quick, digest="another"), "cow", 1)
    assert ["1 cow", "2 cow", "1 cow"] == drawn
    for number in range(class_images.KEPT):
        class_latents(quick, f"dog{number}", 1)
    assert class_images.KEPT == len(class_images._kept)


def test_a_prior_keeps_the_class(quick: BaseModel, image: ModelImage) -> None:
    """After a tuning with it the loss on class images under the class prompt is lower than after one without (D5)."""
    long = replace(SHORT, updates=48, batch=4, num_class_images=8)
    of_class, noising = draw_class(quick, "cat", 8), Noising(quick.schedule, quick.device)
    draws = draw(64, of_class, 1000, torch.Generator().manual_seed(99))

    def class_loss(config: TuningConfig) -> float:
        tensors = tune(quick, image, config).tensors
        with torch.no_grad():
            pictures, prompt = pictures_of_update(of_class, 0, 64), quick.encode_prompt("a cat")
            return denoising_loss(quick, tensors, pictures, prompt, noising, draws).item()

    assert class_loss(long) < class_loss(replace(long, prior_weight=0.0))


def test_text_encoder_and_autoencoder_stay_as_they_are(quick: BaseModel, image: ModelImage) -> None:
    """Their tensors and the base denoiser's own are bit-equal after a tuning, and none has a gradient (D6)."""
    parts = (quick.text_encoder, quick.image_encoder, quick.image_decoder, quick.denoiser)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]

    tune(quick, image, SHORT)

    for part, kept in zip(parts, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())


def test_a_merged_lora_answers_as_the_adapter_does(model: BaseModel) -> None:
    """W + s B A in the weights is W x + s B (A x) in the layers, to 1e-5 (D8)."""
    generator = torch.Generator().manual_seed(1)
    unet = model.denoiser.unet
    lora = trainable(unet, "lora", generator)
    with torch.no_grad():
        for up in lora._up.values():
            up.copy_(0.2 * torch.randn(up.shape, generator=generator))
        arguments = (torch.randn(2, 4, 12, 12, generator=generator), torch.tensor([100, 900]), torch.randn(2, 16, 32))
        merged = functional_call(unet, lora.weights(), arguments).sample
        base = unet(*arguments).sample

        def adapter(down: Tensor, up: Tensor) -> Callable:
            scale = LORA_ALPHA / LORA_RANK
            return lambda layer, inputs, output: output + scale * (inputs[0] @ down.T @ up.T)

        hooks = [
            unet.get_submodule(name.removesuffix(".weight")).register_forward_hook(adapter(lora._down[name], up))
            for name, up in lora._up.items()
        ]
        try:
            adapted = unet(*arguments).sample
        finally:
            for hook in hooks:
                hook.remove()

    torch.testing.assert_close(adapted, merged, rtol=0, atol=1e-5)
    assert float((adapted - base).abs().max()) > 1e-2


def test_the_largest_seed_is_a_seed(quick: BaseModel, image: ModelImage) -> None:
    """The class's draws have a seed of their own even above the largest one that a request may ask for."""
    assert tune(quick, image, replace(SHORT, updates=1, num_class_images=1, seed=2**63 - 1)).losses


def test_several_pictures_take_turns(quick: BaseModel, image: ModelImage) -> None:
    """Each picture is in every len(pictures)-th place; a second picture changes the weights."""
    other = np.flip(image, axis=3).copy()
    both = np.concatenate([image, other])
    latents = torch.arange(3.0).reshape(3, 1, 1, 1)

    assert [0, 1] == pictures_of_update(latents, 0, 2).flatten().tolist()
    assert [2, 0] == pictures_of_update(latents, 1, 2).flatten().tolist()
    config = replace(SHORT, prior_weight=0.0)
    one, two = tune(quick, image, config), tune(quick, both, config)
    assert one.losses != two.losses


def test_too_many_pictures_are_refused(quick: BaseModel, image: ModelImage) -> None:
    """Six for DreamBooth, and two for UniTune."""
    for config, number in ((SHORT, 6), (TuningConfig(updates=1), 2)):
        with pytest.raises(InvalidField, match=f"images is '{number} pictures'"):
            tune(quick, np.concatenate([image] * number), config)


def test_cancelling_stops_while_class_images_are_drawn(quick: BaseModel, image: ModelImage) -> None:
    """It waits for one step, not for the last of them or of its batch (r19), and what was begun is not kept."""
    looks = 0

    def is_cancelled() -> bool:
        nonlocal looks
        looks += 1
        return looks == 4  # after encoding the picture, and before each of three steps

    with pytest.raises(Cancelled):
        tune(quick, image, replace(SHORT, updates=1, class_noun="cancelled"), cancelled=is_cancelled)

    assert 4 == looks
    assert not any("cancelled" in key for key in class_images._kept)
