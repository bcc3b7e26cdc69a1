"""Guidance as one linear form."""

import numpy as np
import pytest

from unitune.diffusion.guidance import Row, classifier_free, guided

RNG = np.random.default_rng(0)
LATENTS = RNG.standard_normal((3, 4, 8, 8), dtype=np.float32)
PROMPT, EMPTY, BASE = RNG.standard_normal((3, 5, 6), dtype=np.float32)


class CountingDenoiser:
    """A denoiser that depends on latent, timestep and context, element by element, and counts its passes."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        assert len(latents) == len(timesteps) == len(contexts)
        assert (timesteps.dtype, contexts.dtype) == (np.int64, np.float32)
        self.calls.append(len(latents))
        scale = contexts.sum(axis=(1, 2)) + timesteps.astype(np.float32) / 1000
        return np.tanh(latents * scale[:, None, None, None]).astype(np.float32)


def alone(context: np.ndarray) -> np.ndarray:
    """What the denoiser says of the latents under one context."""
    return CountingDenoiser()(LATENTS, np.full(3, 500), np.stack([context] * 3))


def test_guidance_one_is_one_pass_and_bit_equal_to_the_prompt() -> None:
    """No pass is spent on the empty prompt at guidance 1 (check S1)."""
    denoiser = CountingDenoiser()

    output = guided(denoiser, LATENTS, 500, classifier_free(1.0, PROMPT, EMPTY))

    assert denoiser.calls == [3]
    np.testing.assert_array_equal(output, alone(PROMPT))


def test_guidance_zero_is_bit_equal_to_the_empty_prompt() -> None:
    """No pass is spent on the prompt at guidance 0 (check S2)."""
    denoiser = CountingDenoiser()

    output = guided(denoiser, LATENTS, 500, classifier_free(0.0, PROMPT, EMPTY))

    assert denoiser.calls == [3]
    np.testing.assert_array_equal(output, alone(EMPTY))


def test_guidance_is_one_call_for_all_rows_and_affine_in_the_weight() -> None:
    """Weight 7.5 is empty + 7.5 (prompt - empty), in a single call of twice the batch (check S2)."""
    denoiser = CountingDenoiser()

    output = guided(denoiser, LATENTS, 500, classifier_free(7.5, PROMPT, EMPTY))

    assert denoiser.calls == [6]
    np.testing.assert_allclose(output, alone(EMPTY) + 7.5 * (alone(PROMPT) - alone(EMPTY)), rtol=0, atol=1e-5)
    assert output.dtype == np.float32


def test_three_rows_are_prompt_guidance() -> None:
    """empty + c (prompt - empty) + p (prompt - base prompt) is three rows; p = 0 drops one of them."""
    denoiser = CountingDenoiser()

    output = guided(denoiser, LATENTS, 500, [Row(5.0, PROMPT), Row(-1.0, EMPTY), Row(-3.0, BASE)])
    plain = guided(denoiser, LATENTS, 500, [Row(2.0, PROMPT), Row(-1.0, EMPTY), Row(0.0, BASE)])

    assert denoiser.calls == [9, 6]
    np.testing.assert_allclose(output, plain + 3.0 * (alone(PROMPT) - alone(BASE)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5, 7.5, 32.0])
def test_weights_of_classifier_free_guidance_sum_to_one(guidance_scale: float) -> None:
    """Only then is guidance of v the guidance of epsilon."""
    assert sum(row.weight for row in classifier_free(guidance_scale, PROMPT, EMPTY)) == 1
