"""How updates run where there is no graph, and through one that is recorded on the processor.

With a real one: tests/gpu/test_tuner.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from tests.tuner_svc.recorded_graph import stand_in_for_cuda
from tuner_svc.base_model import BaseModel
from tuner_svc.denoising import draw
from tuner_svc.methods import unitune
from tuner_svc.trainable import trainable
from tuner_svc.update_graph import EAGER_UPDATES, UpdateGraph, adam

CPU = torch.device("cpu")


def test_on_a_cpu_every_update_is_the_function_itself() -> None:
    """Each call gets its own arguments, more of them than a device has eager ones, and nothing is captured."""
    moved = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([moved], lr=0.5)

    def update(target: torch.Tensor) -> torch.Tensor:
        loss = (moved - target).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = UpdateGraph(update, [moved], CPU)
    targets = [torch.tensor([float(index), 1.0]) for index in range(EAGER_UPDATES + 3)]
    losses = [run(target) for target in targets]

    assert [1.0, 1.0, 1.0, 1.0, 1.0, 1.0] == [loss.item() for loss in losses]
    assert torch.equal(targets[-1], moved.detach())
    assert not run.is_captured
    assert not any(loss.requires_grad for loss in losses)


def test_adam_on_a_cpu_is_torchs_own() -> None:
    """Its count of steps stays in host memory, as without a graph, and its steps are the same bits."""
    mine, theirs = (torch.linspace(-1, 1, 5).requires_grad_() for _ in range(2))
    for optimizer, parameter in ((adam([mine], 0.1), mine), (torch.optim.Adam([theirs], 0.1), theirs)):
        for _ in range(4):
            optimizer.zero_grad()
            parameter.pow(4).sum().backward()
            optimizer.step()

    assert torch.equal(mine, theirs)


CUDA = torch.device("cuda")
UPDATES = EAGER_UPDATES + 4


def run_of(update: Callable[..., Tensor], parameters: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> UpdateGraph:
    """Updates through a recorded graph on this processor."""
    stand_in_for_cuda(monkeypatch)
    return UpdateGraph(update, parameters, CUDA)


@pytest.mark.parametrize(
    ("mode", "precision"),
    [
        ("full", "fp32"),
        ("full", "bfloat16 over fp32"),
        ("attn_out", "bfloat16 over fp32"),
        ("lora", "bfloat16 over fp32"),
    ],
)
def test_replays_are_the_eager_updates(
    model: BaseModel, mode: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tuner's whole update, recorded once and replayed with new draws, has every loss and every tensor of the same
    updates run one by one, in each bit: it draws nothing by itself, and its fp32 masters move in place."""
    if precision != "fp32":
        monkeypatch.setattr(unitune, "mixed_precision", on_this_processor)
    latent, context = torch.randn((1, 4, 12, 12)), torch.randn((1, 16, 32))
    losses, ends = [], []
    for graphed in (False, True):
        generator = torch.Generator().manual_seed(4)
        chosen = trainable(model.denoiser.unet, mode, generator)
        update = unitune.update_of(model, chosen, latent, context, 1e-3, mode)
        parameters = chosen.parameters()
        addresses = [parameter.data_ptr() for parameter in parameters]
        run = run_of(update, parameters, monkeypatch) if graphed else UpdateGraph(update, parameters, CPU)
        draws = (draw(2, latent, model.schedule.num_train_timesteps, generator) for _ in range(UPDATES))
        losses.append([run(drawn.timesteps, drawn.noise).item() for drawn in draws])
        ends.append([parameter.detach() for parameter in parameters])

        assert run.is_captured == graphed
        assert all(parameter.dtype == torch.float32 and parameter.grad is None for parameter in parameters)
        assert addresses == [parameter.data_ptr() for parameter in parameters]

    assert len(set(losses[0])) == UPDATES and losses[0] == losses[1]
    assert [] == [index for index, (one, other) in enumerate(zip(*ends, strict=True)) if not torch.equal(one, other)]


def test_what_an_update_keeps_in_python_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step count outside of a tensor stays what it was in the recording: the next losses are others than eager's."""
    losses = []
    for graphed in (False, True):
        moved, steps = torch.zeros(2, requires_grad=True), [0]

        def update(target: Tensor, moved: Tensor = moved, steps: list[int] = steps) -> Tensor:
            steps[0] += 1
            loss = (moved - target).square().sum()
            loss.backward()
            with torch.no_grad():
                moved.sub_(moved.grad / (2 + steps[0]))
            moved.grad = None
            return loss

        run = run_of(update, [moved], monkeypatch) if graphed else UpdateGraph(update, [moved], CPU)
        losses.append([run(torch.tensor([1.0, float(index)])).item() for index in range(UPDATES)])

    assert losses[0][: EAGER_UPDATES + 1] == losses[1][: EAGER_UPDATES + 1]
    assert losses[0][EAGER_UPDATES + 2] != losses[1][EAGER_UPDATES + 2]


def on_this_processor(device: torch.device) -> AbstractContextManager[None]:
    """The precision that a tuning has on a GPU."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
