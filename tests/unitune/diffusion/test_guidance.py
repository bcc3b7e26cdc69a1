"""Guidance as one linear form."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from unitune.diffusion.guidance import (
    GuidanceTerm,
    classifier_free,
    guided,
    mixed_with_base,
    prompt_guided,
    rescaled,
    unconditional_on_base,
)

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


def test_guidance_is_one_call_for_all_terms_and_affine_in_the_weight() -> None:
    """Weight 7.5 is empty + 7.5 (prompt - empty), in a single call of twice the batch (check S2)."""
    denoiser = CountingDenoiser()

    output = guided(denoiser, LATENTS, 500, classifier_free(7.5, PROMPT, EMPTY))

    assert denoiser.calls == [6]
    np.testing.assert_allclose(output, alone(EMPTY) + 7.5 * (alone(PROMPT) - alone(EMPTY)), rtol=0, atol=1e-5)
    assert output.dtype == np.float32


def test_prompt_guidance_adds_the_distance_from_the_base_prompt() -> None:
    """It is empty + 2 (prompt - empty) + 3 (prompt - base prompt), three passes in one call."""
    denoiser = CountingDenoiser()

    output = guided(denoiser, LATENTS, 500, prompt_guided(2.0, 3.0, PROMPT, EMPTY, BASE))

    expected = alone(EMPTY) + 2 * (alone(PROMPT) - alone(EMPTY)) + 3 * (alone(PROMPT) - alone(BASE))
    assert denoiser.calls == [9]
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
def test_prompt_guidance_of_weight_0_is_classifier_free_guidance(guidance_scale: float) -> None:
    """Bit-equal, with the same passes: the base prompt costs nothing (check U9)."""
    denoisers = CountingDenoiser(), CountingDenoiser()

    prompt = guided(denoisers[0], LATENTS, 500, prompt_guided(guidance_scale, 0.0, PROMPT, EMPTY, BASE))
    plain = guided(denoisers[1], LATENTS, 500, classifier_free(guidance_scale, PROMPT, EMPTY))

    assert denoisers[0].calls == denoisers[1].calls
    np.testing.assert_array_equal(prompt, plain)


def test_a_base_prompt_equal_to_the_prompt_takes_nothing_away() -> None:
    """The term of prompt guidance vanishes up to rounding (check U9)."""
    prompt = guided(CountingDenoiser(), LATENTS, 500, prompt_guided(7.5, 4.0, PROMPT, EMPTY, PROMPT))
    plain = guided(CountingDenoiser(), LATENTS, 500, classifier_free(7.5, PROMPT, EMPTY))

    np.testing.assert_allclose(prompt, plain, rtol=0, atol=1e-5)


def other(latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """The denoiser of another model."""
    return -0.5 * CountingDenoiser()(latents, timesteps, contexts) + np.float32(0.1)


def other_alone(context: np.ndarray) -> np.ndarray:
    """What the other model says of the latents under one context."""
    return other(LATENTS, np.full(3, 500), np.stack([context] * 3))


def test_the_empty_prompt_may_be_predicted_by_the_base_model() -> None:
    """Then only it is: one pass of each model, and the rest of the form as ever."""
    denoiser = CountingDenoiser()
    terms = unconditional_on_base(classifier_free(7.5, PROMPT, EMPTY))

    output = guided(denoiser, LATENTS, 500, terms, other)

    assert denoiser.calls == [3]
    expected = other_alone(EMPTY) + 7.5 * (alone(PROMPT) - other_alone(EMPTY))
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_a_share_of_the_prediction_comes_from_the_base_model() -> None:
    """SINE: empty + g (b base(plain) + (1 - b) tuned(prompt) - empty); shares 0 and 1 need one model's prediction."""
    plain, terms = BASE, classifier_free(7.5, PROMPT, EMPTY)

    mixed = guided(CountingDenoiser(), LATENTS, 500, mixed_with_base(terms, 0.4, plain), other)
    none = guided(CountingDenoiser(), LATENTS, 500, mixed_with_base(terms, 0.0, plain), other)
    whole = guided(denoiser := CountingDenoiser(), LATENTS, 500, mixed_with_base(terms, 1.0, plain), other)

    expected = alone(EMPTY) + 7.5 * (0.4 * other_alone(plain) + 0.6 * alone(PROMPT) - alone(EMPTY))
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(none, guided(CountingDenoiser(), LATENTS, 500, terms))
    assert denoiser.calls == [3]  # the empty prompt alone
    np.testing.assert_allclose(whole, -6.5 * alone(EMPTY) + 7.5 * other_alone(plain), rtol=0, atol=1e-5)


def test_a_term_on_the_base_model_needs_one() -> None:
    """Otherwise the edit's own weights would answer for it."""
    with pytest.raises(ValueError, match="base model"):
        guided(CountingDenoiser(), LATENTS, 500, [GuidanceTerm(1.0, PROMPT, on_base=True)])


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5, 7.5, 32.0])
def test_weights_of_classifier_free_guidance_sum_to_one(guidance_scale: float) -> None:
    """Only then is guidance of v the guidance of epsilon."""
    assert sum(term.weight for term in classifier_free(guidance_scale, PROMPT, EMPTY)) == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_guidance_is_rescaled_as_by_diffusers(share: float) -> None:
    """Each row has the share of its own prompt's standard deviation, as diffusers' rescale_noise_cfg gives it (M14)."""
    terms = classifier_free(7.5, PROMPT, EMPTY)
    plain = guided(CountingDenoiser(), LATENTS, 500, terms)

    output = guided(CountingDenoiser(), LATENTS, 500, terms, rescale=share)

    theirs = rescale_noise_cfg(torch.from_numpy(plain), torch.from_numpy(alone(PROMPT)), share).numpy()
    np.testing.assert_allclose(output, theirs, rtol=1e-6, atol=1e-6)
    assert output.dtype == np.float32
    assert (share == 0) == np.array_equal(output, plain)
    np.testing.assert_array_equal(rescaled(LATENTS, LATENTS, share), LATENTS)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_what_is_not_guided_is_not_rescaled(guidance_scale: float) -> None:
    """One prediction alone stays to the bit, whatever the share."""
    terms = classifier_free(guidance_scale, PROMPT, EMPTY)

    output = guided(CountingDenoiser(), LATENTS, 500, terms, rescale=0.7)

    np.testing.assert_array_equal(output, guided(CountingDenoiser(), LATENTS, 500, terms))
