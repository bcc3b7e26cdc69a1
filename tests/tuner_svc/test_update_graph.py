"""How updates run where there is no graph. With one: tests/gpu/test_tuner.py."""

import torch

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
