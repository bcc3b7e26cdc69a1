"""What the roofline counts."""

import torch

from bench.roofline import flops_of


def test_flops_are_two_for_each_multiplication_and_addition() -> None:
    """Of a product (2, 3) by (3, 5): thirty multiplications; backwards twice as many for both factors."""
    left, right = torch.ones(2, 3, requires_grad=True), torch.ones(3, 5, requires_grad=True)

    assert flops_of(lambda: left @ right) == 60
    assert flops_of(lambda: (left @ right).sum().backward()) == 180
