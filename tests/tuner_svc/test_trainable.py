"""Which tensors a tuning may change."""

import pytest
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.trainable import LORA_RANK, trainable, trainable_parameters


def test_full_is_every_tensor(model: BaseModel) -> None:
    """Mode full leaves nothing out."""
    assert model.tensors().keys() == trainable_parameters(model.denoiser.unet, "full").keys()


def test_attn_out_is_the_output_projections_of_both_attentions(model: BaseModel) -> None:
    """Weights and biases of to_out in attn1 and attn2 of every transformer block, and nothing else."""
    names = trainable_parameters(model.denoiser.unet, "attn_out").keys()

    expected = {
        f"{block}.{attention}.to_out.0.{kind}"
        for block in {name.partition(".attn1.")[0] for name in model.tensors() if ".attn1." in name}
        for attention in ("attn1", "attn2")
        for kind in ("weight", "bias")
    }
    assert expected == set(names)
    assert len(names) == 4 * 4  # four transformer blocks


def test_lora_is_the_weights_of_the_four_projections(model: BaseModel) -> None:
    """q, k, v and out of every attention; no bias."""
    names = set(trainable_parameters(model.denoiser.unet, "lora"))

    kinds = {name.partition(".attn")[2][2:] for name in names}
    assert {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"} == kinds
    assert len(names) == 4 * 2 * 4


def test_an_unknown_mode_is_refused(model: BaseModel) -> None:
    """The error names the modes there are."""
    with pytest.raises(ValueError, match="full, attn_out, lora"):
        trainable_parameters(model.denoiser.unet, "attention")


@pytest.mark.parametrize("mode", ["full", "attn_out", "lora"])
def test_tuning_starts_at_the_base_model(model: BaseModel, mode: str) -> None:
    """Before the first update every weight is bit-equal to the base model's, and is another tensor."""
    base = model.tensors()

    weights = trainable(model.denoiser.unet, mode, torch.Generator().manual_seed(0)).weights()

    assert all(torch.equal(base[name], weight) for name, weight in weights.items())
    assert not any(base[name].data_ptr() == weight.data_ptr() for name, weight in weights.items())


def test_lora_is_folded_into_a_change_of_low_rank(model: BaseModel) -> None:
    """The dense weight is W + B A: running it is running the adapter, and the change has the rank of B."""
    chosen = trainable(model.denoiser.unet, "lora", torch.Generator().manual_seed(0))
    half = len(chosen.parameters()) // 2
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for up in chosen.parameters()[half:]:
            up.copy_(torch.randn(up.shape, generator=generator))

    for (name, weight), down, up in zip(
        chosen.weights().items(), chosen.parameters()[:half], chosen.parameters()[half:], strict=True
    ):
        base = model.tensors()[name]
        features = torch.randn((3, base.shape[1]), generator=generator)
        adapter = features @ base.T + features @ down.T @ up.T
        assert (min(LORA_RANK, *base.shape), base.shape[1]) == down.shape
        torch.testing.assert_close(features @ weight.T, adapter, rtol=1e-4, atol=1e-4)
        assert torch.linalg.matrix_rank(weight.detach() - base, rtol=1e-4) <= LORA_RANK
