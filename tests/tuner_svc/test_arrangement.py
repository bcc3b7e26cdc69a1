"""Arrangements of an update: the same gradient from other memory, and the choice among them."""

import gc
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tuner_svc import arrangement as module
from tuner_svc.adafactor import Adafactor
from tuner_svc.arrangement import Activations, Arrangement, Footprint, Update, arrangements, backward, chosen
from tuner_svc.base_model import BaseModel, load
from tuner_svc.denoising import Draws, Noising, denoising_loss, draw
from tuner_svc.methods.unitune import update_of
from tuner_svc.trainable import Trainable, trainable, trainable_parameters
from tuner_svc.tune import UpdateProgress, tune
from tuner_svc.tuning_config import TuningConfig
from unitune.images import ModelImage
from unitune.prompts import with_rare_tokens

ALL_METHODS = {
    "unitune": TuningConfig(updates=3, batch=3, learning_rate=1e-3),
    "lora": TuningConfig(updates=3, batch=3, learning_rate=1e-3, mode="lora"),
    "imagic": TuningConfig(method="imagic", prompt="a cat", embedding_updates=2, updates=2, batch=3),
    "dreambooth": TuningConfig(method="dreambooth", class_noun="cat", num_class_images=2, updates=2, batch=3),
    "textual_inversion": TuningConfig(method="textual_inversion", initial_word="cat", updates=3, batch=3),
}
LEAST = 1  # byte: nothing fits, so the arrangement that needs the least memory is taken


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> BaseModel:
    """The tiny SDXL model, whose passes have a pooled embedding and sizes."""
    return load(tiny_sdxl)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is remembered of earlier measurements."""
    module._measured.clear()
    yield
    module._measured.clear()


def gradients(
    model: BaseModel,
    image: ModelImage,
    mode: str,
    arrangement: Arrangement,
    batch: int = 5,
    spy: AbstractContextManager | None = None,
    *,
    is_dense: bool = False,
) -> list[Tensor]:
    """The gradient of each parameter after one backward pass, and the loss before them. `is_dense`: with the dense
    tensors. `spy` sees what both passes do."""
    latent, chosen = model.encode_image(image), trainable(model.denoiser.unet, mode, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in chosen.parameters():  # LoRA's up factors begin at zero, where down factors have no gradient
            parameter.add_(0.01)
    noising, context = Noising(model.schedule, model.device), model.encode_prompt("a cat")

    def loss(timesteps: Tensor, noise: Tensor) -> Tensor:
        weights = chosen.weights() if is_dense else chosen.replacements()
        return denoising_loss(model, weights, latent, context, noising, Draws(timesteps, noise))

    draws = draw(batch, latent, noising.num_timesteps, torch.Generator().manual_seed(1), stratified=True)
    with spy or nullcontext():
        found = backward(loss, (draws.timesteps, draws.noise), arrangement, model.denoiser.unet).detach()
    return [found, *(parameter.grad for parameter in chosen.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("kind", ["model", "sdxl"])
def test_blocks_that_run_again_give_the_same_bits(
    kind: str, mode: str, image: ModelImage, request: pytest.FixtureRequest
) -> None:
    """Loss and gradients are those of activations that were kept, though the tuned tensors are not the model's own."""
    model = request.getfixturevalue(kind)

    kept, recomputed = (gradients(model, image, mode, Arrangement(5, recomputes)) for recomputes in (False, True))

    assert len(kept) == len(recomputed) > 30
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))
    assert not model.denoiser.unet.is_gradient_checkpointing


class NewTensors(TorchDispatchMode):
    """The shapes of tensors that operations make, views of those that were there before apart."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self._before = {tensor.untyped_storage().data_ptr() for tensor in before}

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self._before:
                self.shapes.add(tuple(each.shape))
        return made


@pytest.mark.parametrize(
    ("kind", "arrangement"), [("model", Arrangement(7)), ("sdxl", Arrangement(6, recomputes=True))]
)
def test_lora_is_a_side_branch_of_its_layers(
    kind: str, arrangement: Arrangement, image: ModelImage, request: pytest.FixtureRequest
) -> None:
    """Loss and gradient are those with W + s B A to 1e-5, and neither pass makes a tensor of the shape of W, the batch
    whole or in parts whose blocks run again (M39)."""
    model = request.getfixturevalue(kind)
    base = trainable_parameters(model.denoiser.unet, "lora")
    side, dense = (NewTensors([*model.denoiser.parameters(), *base.values()]) for _ in range(2))

    # So many rows that no activation has the shape of W.
    found = gradients(model, image, "lora", arrangement, 7, side)
    expected = gradients(model, image, "lora", arrangement, 7, dense, is_dense=True)

    assert len(found) == len(expected) == 1 + 2 * len(base)
    for mine, theirs in zip(found, expected, strict=True):
        assert 0 < theirs.norm() and (mine - theirs).norm() <= 1e-4 * theirs.norm()
    (loss, *mine), (expected_loss, *theirs) = ([one.flatten() for one in each] for each in (found, expected))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert (torch.cat(mine) - torch.cat(theirs)).norm() <= 1e-5 * torch.cat(theirs).norm()
    shapes = {shape for tensor in base.values() for shape in (tuple(tensor.shape), tuple(tensor.shape)[::-1])}
    assert side.shapes & shapes == set()
    assert dense.shapes >= {tuple(tensor.shape) for tensor in base.values()}


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_some_rows_at_a_time_give_the_batchs_gradient(model: BaseModel, image: ModelImage, rows: int) -> None:
    """To 1e-5 of each tensor's gradient, whether they divide the batch or not, and the batch's mean loss."""
    whole = gradients(model, image, "full", Arrangement(5))
    parts = gradients(model, image, "full", Arrangement(rows, recomputes=True))

    for mine, theirs in zip(parts, whole, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("name", ALL_METHODS)
def test_a_tuning_with_little_memory_is_that_with_much(model: BaseModel, image: ModelImage, name: str) -> None:
    """Every method draws the same; its losses agree to 1e-4, and what it changes to 2 % of the change; and it says that
    it is slower, why, and what helps. With enough memory it says nothing."""
    config, told = ALL_METHODS[name], {LEAST: list[UpdateProgress](), 0: list[UpdateProgress]()}

    little, much = (
        tune(replace(model, tuning_bytes=size), image, config, on_progress=told[size].append) for size in (LEAST, 0)
    )

    torch.testing.assert_close(torch.tensor(little.losses), torch.tensor(much.losses), rtol=1e-4, atol=0)
    for mine, theirs, base in of_both(little, much, model):
        assert (mine - theirs).norm() <= 0.02 * (theirs - base).norm()
    warning = told[LEAST][0].warning
    assert ", and every block twice, since its updates would take about " in warning
    assert ("mode attn_out or lora" in warning) == (
        name in ("unitune", "dreambooth")
    )  # Imagic begins with an embedding
    assert "" == told[0][0].warning


def of_both(little: object, much: object, model: BaseModel) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All changed tensors of two tunings as one vector each, and the base model's; and each embedding, with zeros."""
    base = model.tensors()
    if much.tensors:
        names = sorted(much.tensors)
        yield tuple(torch.cat([of[name].flatten() for name in names]) for of in (little.tensors, much.tensors, base))
    for name, extra in much.extras.items():
        yield little.extras[name], extra, torch.zeros_like(extra)


@pytest.mark.parametrize("mode", ["full", "attn_out"])
def test_with_enough_memory_updates_are_the_plain_ones(model: BaseModel, image: ModelImage, mode: str) -> None:
    """A tuning is, to the bit, a loop of loss, backward pass and optimizer's step over whole batches."""
    config = TuningConfig(updates=4, batch=3, learning_rate=1e-3, mode=mode)
    found = tune(model, image, config)

    generator = torch.Generator().manual_seed(config.seed)
    chosen = trainable(model.denoiser.unet, mode, generator)
    optimizer, noising = Adafactor(chosen.parameters(), config.learning_rate), Noising(model.schedule, model.device)
    latent, context = model.encode_image(image), model.encode_prompt(with_rare_tokens(config.rare_tokens, ""))
    losses = []
    for _ in range(config.updates):
        draws = draw(config.batch, latent, 1000, generator, stratified=True)
        loss = denoising_loss(model, chosen.weights(), latent, context, noising, draws)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses == found.losses
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in chosen.weights().items())


def plain_update(model: BaseModel, image: ModelImage, mode: str = "full") -> tuple[Update, Trainable, Draws]:
    """An update of UniTune that was never called, its parameters, and draws for it."""
    chosen, latent = trainable(model.denoiser.unet, mode, torch.Generator()), model.encode_image(image)
    update = update_of(model, chosen, latent, model.encode_prompt("a cat"), 1e-3, mode)
    return update, chosen, draw(3, latent, 1000, torch.Generator().manual_seed(1))


def test_measuring_leaves_nothing_behind(model: BaseModel, image: ModelImage, fresh: None) -> None:
    """Neither a gradient nor a switched block, and the tensors of the measured passes are gone."""
    update, chosen, draws = plain_update(model, image)
    seen: list[weakref.ref[Tensor]] = []

    def loss(*inputs: Tensor) -> Tensor:
        found = original(*inputs)
        seen.append(weakref.ref(found))
        return found

    original, update._loss = update._loss, loss
    update._footprint((draws.timesteps, draws.noise))
    gc.collect()

    assert 2 == len(seen) and all(each() is None for each in seen)
    assert all(parameter.grad is None for parameter in chosen.parameters())
    assert not model.denoiser.unet.is_gradient_checkpointing


def test_measured_bytes_are_those_that_autograd_keeps(model: BaseModel, image: ModelImage, fresh: None) -> None:
    """What a pass of three rows really keeps, each memory counted once, is the line through one row and two; blocks
    that run again keep much less of it."""
    update, chosen, draws = plain_update(model, image)
    footprint = update._footprint((draws.timesteps, draws.noise))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.denoiser.parameters(), *chosen.parameters())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = update._loss(draws.timesteps, draws.noise)
    sizes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    assert loss.requires_grad
    expected = sum(sizes) + module.PASS_COPIES * max(sizes)

    assert footprint.kept.of(3) == pytest.approx(expected, rel=0.02)
    assert footprint.recomputed.of_row < 0.6 * footprint.kept.of_row
    assert footprint.gradients == sum(tensor.nbytes for tensor in chosen.parameters())


def test_the_scaled_factors_of_lora_are_there_in_the_whole_pass(
    model: BaseModel, image: ModelImage, fresh: None
) -> None:
    """Once, whatever the rows, where blocks run again; of the dense tensors nothing is."""
    update, chosen, draws = plain_update(model, image, "lora")
    scaled = sum(tensor.nbytes for name, tensor in chosen.replacements().items() if name.endswith(".up"))
    dense = sum(tensor.nbytes for tensor in chosen.weights().values())
    footprint = update._footprint((draws.timesteps, draws.noise))

    assert 0.9 * scaled <= footprint.recomputed.fixed <= scaled + dense / 4


ROW, GRADIENTS = 100, 1000
FOOTPRINT = Footprint(GRADIENTS, GRADIENTS, 0, 10, Activations(0, ROW), Activations(0, ROW // 4))


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        (1400, Arrangement(4)),
        (1399, Arrangement(2)),
        (1200, Arrangement(2)),
        (1199, Arrangement(4, True)),
        (1100, Arrangement(4, True)),
        (1099, Arrangement(2, True)),
        (1049, Arrangement(1, True)),
        (1, Arrangement(1, True)),
    ],
)
def test_the_quickest_arrangement_that_fits_is_chosen(usable: int, expected: Arrangement) -> None:
    """By bytes: gradients, and the activations of so many rows. If none fits, it is the one that needs the least."""
    assert expected == chosen(FOOTPRINT, 4, math.ceil(usable / module.USABLE))


def test_an_unknown_memory_changes_nothing() -> None:
    """Where the system does not tell, the batch is computed at once."""
    assert Arrangement(4) == chosen(FOOTPRINT, 4, None)


def test_arrangements_go_from_the_quickest_on() -> None:
    """The batch, half of it, then with blocks computed twice the batch and its halves down to one row."""
    assert [(5, False), (3, False), (5, True), (3, True), (2, True), (1, True)] == [
        (one.rows, one.recomputes) for one in arrangements(5)
    ]
    assert [Arrangement(1), Arrangement(1, True)] == arrangements(1)


def test_gradients_that_are_used_up_at_once_need_no_memory_together() -> None:
    """A batch at once, whose large parameters move within the backward pass, needs less than a part of it."""
    footprint = replace(FOOTPRINT, late_gradients=50)

    assert 50 + 400 + 10 == footprint.need(4, Arrangement(4))
    assert GRADIENTS + 200 == footprint.need(4, Arrangement(2))
    assert Arrangement(4, True) == chosen(footprint, 4, 1)


def test_an_optimizer_with_state_needs_it_beside_the_gradients(model: BaseModel, image: ModelImage) -> None:
    """Adam's two moments of each value count, and nothing of them is left out for a whole batch."""
    update, chosen, draws = plain_update(model, image)
    with_adam = Update(model, update._loss, torch.optim.Adam(chosen.parameters()), chosen.parameters(), "adam")
    size = sum(tensor.nbytes for tensor in chosen.parameters())

    needs = [each._footprint((draws.timesteps, draws.noise)).need(3, Arrangement(3)) for each in (with_adam, update)]

    assert needs[0] >= needs[1] + 2 * size
