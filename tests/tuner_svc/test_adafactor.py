"""Our Adafactor against transformers' Adafactor of the same settings."""

import weakref

import pytest
import torch
from transformers.optimization import Adafactor as Reference

from tuner_svc import adafactor
from tuner_svc.adafactor import Adafactor

SHAPES = ((24, 16, 3, 3), (16,), (32, 8), (8, 32, 1, 1), (1,), (7, 1), (5, 4, 3))


def parameters(seed: int = 0) -> list[torch.Tensor]:
    """Leaves of every kind of shape, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


@pytest.mark.parametrize("learning_rate", [1e-4, 1e-1])
def test_every_step_is_that_of_the_reference(learning_rate: float) -> None:
    """Thirty steps with gradients of sizes from 1e-8 to 1e4, some of them zero, move every parameter alike."""
    mine, theirs = parameters(), parameters()
    optimizer = Adafactor(mine, learning_rate)
    reference = Reference(theirs, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False)
    generator = torch.Generator().manual_seed(1)
    for step in range(30):
        size = 0.0 if step == 5 else 10.0 ** (step % 13 - 8)
        for my, their in zip(mine, theirs, strict=True):
            gradient = size * torch.randn(my.shape, generator=generator)
            my.grad, their.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()

        for my, their in zip(mine, theirs, strict=True):
            torch.testing.assert_close(my, their, rtol=1e-6, atol=1e-6)


def test_many_steps_are_those_of_the_reference() -> None:
    """The decay is right far beyond the first steps, too: four hundred of them bring every parameter where it goes."""
    mine, theirs = parameters(), parameters()
    optimizer = Adafactor(mine, 1e-3)
    reference = Reference(theirs, lr=1e-3, scale_parameter=False, relative_step=False, warmup_init=False)
    generator = torch.Generator().manual_seed(2)
    for step in range(400):
        for my, their in zip(mine, theirs, strict=True):
            gradient = 2.0 ** (-step / 20) * torch.randn(my.shape, generator=generator)
            my.grad, their.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()

    for my, their in zip(mine, theirs, strict=True):
        torch.testing.assert_close(my, their, rtol=1e-5, atol=1e-5)


def test_the_decay_follows_the_count_in_its_tensor() -> None:
    """Once that is written to, as the replay of a captured step does, the next step has the decay of the new count: at
    the first one the past is forgotten."""
    used, fresh = parameters(), parameters()
    optimizers = [Adafactor(used, 1e-2), Adafactor(fresh, 1e-2)]
    for parameter in used:
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizers[0].step()
    with torch.no_grad():
        for my, its in zip(used, fresh, strict=True):
            my.copy_(its)
    optimizers[0]._steps.zero_()
    for step in range(3):
        for my, its, gradient in zip(used, fresh, parameters(seed=step + 1), strict=True):
            my.grad, its.grad = gradient.detach().clone(), gradient.detach().clone()
        for optimizer in optimizers:
            optimizer.step()

    assert 3 == optimizers[0]._steps.item()
    assert all(torch.equal(my, its) for my, its in zip(used, fresh, strict=True))


def test_a_first_step_without_a_gradient_moves_nothing() -> None:
    """Zero gradients divide zero by the floor, not by zero: LoRA's first step has them."""
    mine = parameters()
    optimizer = Adafactor(mine, 1e-2)
    for parameter in mine:
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step()

    assert all(torch.equal(now, before) for now, before in zip(mine, parameters(), strict=True))


def test_a_step_uses_the_gradients_up() -> None:
    """No gradient is left to be added to, so that the next update starts from nothing."""
    mine = parameters()
    sum(parameter.square().sum() for parameter in mine).backward()

    Adafactor(mine, 1e-3).step()

    assert all(parameter.grad is None for parameter in mine)


def test_parameters_that_lie_otherwise_in_memory_move_alike() -> None:
    """A kernel in channels-last order takes the same steps as one in the usual order."""
    plain = torch.randn((6, 5, 3, 3), generator=torch.Generator().manual_seed(0))
    lying = plain.clone(memory_format=torch.channels_last)
    for parameter in (plain, lying):
        parameter.requires_grad_()
        optimizer = Adafactor([parameter], 1e-2)
        for _ in range(3):
            (parameter**3).sum().backward()
            optimizer.step()

    torch.testing.assert_close(plain, lying, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cached", [1, 300])
def test_what_fits_the_cache_together_changes_no_bit(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters stepped one by one, or a few at a time, go where all of them at once go (M38)."""
    together, apart = parameters(), parameters()
    optimizers = [Adafactor(together, 1e-2)]
    monkeypatch.setattr(adafactor, "CACHED", cached)
    optimizers.append(Adafactor(apart, 1e-2))
    assert [len(optimizer._groups) for optimizer in optimizers] == [1, 5 if cached == 1 else 4]
    for step in range(3):
        gradients = parameters(seed=step + 1)
        for mine in (together, apart):
            for parameter, gradient in zip(mine, gradients, strict=True):
                parameter.grad = gradient.detach().clone()
        for optimizer in optimizers:
            optimizer.step()

    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))


def test_large_parameters_that_move_in_the_backward_pass_go_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loses its gradient there, and the small ones keep theirs for the step; no bit of them differs (M38)."""
    monkeypatch.setattr(adafactor, "CACHED", 300)  # two kernels and a matrix are larger
    early, late = parameters(), parameters()
    optimizers = [Adafactor(early, 1e-2), Adafactor(late, 1e-2)]
    optimizers[0].step_early()
    kept = []
    for step in range(4):
        for mine in (early, late):
            sum((each * (step + each)).pow(2).sum() for each in mine).backward()
        kept = [parameter for parameter in early if parameter.grad is not None]
        for optimizer in optimizers:
            optimizer.step()

        assert all(torch.equal(one, other) for one, other in zip(early, late, strict=True))
    assert 0 < len(kept) < len(SHAPES)
    assert optimizers[0].late_bytes == sum(parameter.nbytes for parameter in kept)
    assert max(parameter.nbytes for parameter in early) == optimizers[0].group_bytes


def test_parameters_that_moved_early_are_freed_with_their_optimizer() -> None:
    """They do not keep each other: a tuning of all weights is as large as the model."""
    large = torch.zeros(adafactor.CACHED + 1, 1).requires_grad_()
    optimizer = Adafactor([large], 1e-2)
    optimizer.step_early()
    large.sum().backward()
    gone = weakref.ref(optimizer), weakref.ref(large)

    del large, optimizer

    assert (None, None) == tuple(each() for each in gone)
