"""What the roofline counts."""

from pathlib import Path

import pytest
import torch

from bench.roofline import flops_of, roofline
from tuner_svc import base_model


def test_flops_are_two_for_each_multiplication_and_addition() -> None:
    """Of a product (2, 3) by (3, 5): thirty multiplications; backwards twice as many for both factors."""
    left, right = torch.ones(2, 3, requires_grad=True), torch.ones(3, 5, requires_grad=True)

    assert flops_of(lambda: left @ right) == 60
    assert flops_of(lambda: (left @ right).sum().backward()) == 180


def test_the_engines_step_has_the_flops_of_pytorchs(tiny_model: Path) -> None:
    """One that took a second reaches as many GFLOP/s as the step has GFLOP, of the faster of the machine's rates."""
    found = roofline(base_model.load(tiny_model), quick=True, engine_step_s=1.0)
    best = max(found["roofline.matmul_gflop_per_s"], found["roofline.convolution_gflop_per_s"])

    assert 0 < found["roofline.step.gflop"] == found["roofline.engine_step.gflop"]
    assert found["roofline.engine_step.of_best_rate"] == pytest.approx(found["roofline.step.gflop"] / best)
