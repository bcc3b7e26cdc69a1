"""Null-text on a tiny random model: each step's embedding lands nearer to the inversion, and nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from tuner_svc import progress_tracker as tracker_module
from tuner_svc.base_model import BaseModel
from tuner_svc.methods import null_text
from tuner_svc.methods.null_text import GuidedStep, ddim_factors, inverted_latents, optimized, predicted
from tuner_svc.probe import pack_tuned
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.tune import UpdateProgress, check, tune
from tuner_svc.tuning_config import TuningConfig
from unitune.diffusion.denoiser import predict
from unitune.diffusion.schedule import Schedule
from unitune.diffusion.solvers import SCHEDULERS, FirstOrder
from unitune.errors import Cancelled, InvalidField
from unitune.images import ModelImage

SHORT = TuningConfig(
    method="null_text", base_prompt="a cat on the beach", updates=4, learning_rate=0.01, num_inference_steps=4,
    guidance_scale=5.0,
)  # fmt: skip


def tracker(total: int) -> ProgressTracker:
    """One that nobody watches or cancels."""
    return ProgressTracker(total, lambda progress: None, lambda: False)


def walk(model: BaseModel, image: ModelImage, nulls: torch.Tensor) -> list[tuple[GuidedStep, torch.Tensor]]:
    """The steps of the guided run with these null embeddings, each with its pivot."""
    run = SCHEDULERS["ddim"].run(Schedule(**vars(model.schedule)), SHORT.num_inference_steps)
    prompt = model.encode_prompt(SHORT.base_prompt)
    latents, *pivots = inverted_latents(model, model.encode_image(image), prompt, run, tracker(0))
    steps = []
    with torch.no_grad():
        for (timestep, level, next_level), pivot, null in zip(run, pivots, nulls, strict=True):
            output = predicted(model, latents, timestep, prompt)
            factors = ddim_factors(level, next_level, model.schedule.prediction_type)
            steps.append((GuidedStep(model, latents, timestep, output, *factors, SHORT.guidance_scale), pivot))
            latents = steps[-1][0].landing(null[None])
    return steps


def losses_after(
    updates: Sequence[int], step: GuidedStep, null: torch.Tensor, pivot: torch.Tensor, index: int
) -> list[float]:
    """How far the step lands from its pivot after so many updates from the same start."""
    found = (optimized(step, null, pivot, replace(SHORT, updates=n), index, tracker(n)) for n in updates)
    return [loss(step, one, pivot) for one in found]


def loss(step: GuidedStep, null: torch.Tensor, pivot: torch.Tensor) -> float:
    """How far a step lands from its pivot."""
    with torch.no_grad():
        return mse_loss(step.landing(null), pivot).item()


def test_without_updates_all_are_the_empty_prompts(model: BaseModel, image: ModelImage) -> None:
    """So that N = 0 is plain DDIM inversion (P9): every step has the bits of the empty prompt's embedding."""
    nulls = tune(model, image, replace(SHORT, updates=0)).extras["nulls"]

    assert (4, model.context_tokens, model.context_width) == tuple(nulls.shape)
    assert all(torch.equal(model.encode_prompt("")[0], null) for null in nulls)


def test_more_updates_never_raise_a_steps_loss(model: BaseModel, image: ModelImage) -> None:
    """From the same start, at each step (P9); and they do lower it."""
    empty = model.encode_prompt("")
    for index, (step, pivot) in enumerate(walk(model, image, empty.expand(4, -1, -1))):
        losses = losses_after((0, 1, 2, 5, 9), step, empty, pivot, index)
        assert losses == sorted(losses, reverse=True), (index, losses)
        assert losses[-1] < losses[0]


def test_an_update_that_goes_too_far_is_not_taken(model: BaseModel) -> None:
    """Adam's first update moves every value by the rate, here ten times too far: the start stays the nearest (P9)."""

    class Sharp(GuidedStep):
        def landing(self, null: torch.Tensor) -> torch.Tensor:
            return 50 * null

    null, pivot = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 50 * SHORT.learning_rate / 10)
    losses = losses_after((0, 1, 2, 60), Sharp(model, pivot, 0, pivot, 0, 0, 0), null, pivot, 0)

    assert losses[0] == losses[1] == losses[2] > 10 * losses[3]


def test_the_guided_run_comes_nearer_to_the_picture(model: BaseModel, image: ModelImage) -> None:
    """At every step the embedding is no worse than the last one's, from which it began, and the run ends nearer."""
    tuned = tune(model, image, replace(SHORT, updates=10)).extras["nulls"]
    empty = model.encode_prompt("")

    before = empty
    for (step, pivot), null in zip(walk(model, image, tuned), tuned, strict=True):
        assert loss(step, null[None], pivot) <= loss(step, before, pivot)
        before = null[None]
    ends = [loss(step, nulls[-1:], pivot) for nulls in (tuned, empty.expand(4, -1, -1))
            for step, pivot in walk(model, image, nulls)[-1:]]  # fmt: skip
    assert ends[0] < 0.8 * ends[1]


def test_only_the_embeddings_are_made(model: BaseModel, image: ModelImage) -> None:
    """Model and gradients stay as they were, two runs agree in every bit, and the file says what it is bound to."""
    parts = (model.text_encoder, model.image_encoder, model.image_decoder, model.denoiser)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]

    result, again = (tune(model, image, SHORT) for _ in range(2))
    _, manifest = pack_tuned(model, result, SHORT, "key", "int8")

    assert torch.equal(result.extras["nulls"], again.extras["nulls"])
    assert ((), ("nulls",), "null_text", "none") == (
        manifest.tensors, manifest.extras, manifest.method, manifest.codec)  # fmt: skip
    assert manifest.bound_to == {
        "base_prompt": "a cat on the beach", "num_inference_steps": 4, "guidance_scale": 5.0}  # fmt: skip
    for part, kept in zip(parts, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())


def test_a_step_that_is_near_enough_ends_early(
    model: BaseModel, image: ModelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one look at its loss, and the manifest tells after how many updates of all; else they are steps * N."""
    told: list[UpdateProgress] = []
    full = tune(model, image, SHORT, on_progress=told.append)
    monkeypatch.setattr(null_text, "ENOUGH", 1e9)
    early = tune(model, image, SHORT)

    assert (16, 4) == (len(full.losses), len(early.losses)) and told[0].total == 16
    assert all(torch.equal(model.encode_prompt("")[0], null) for null in early.extras["nulls"])
    assert [0, 4] == [pack_tuned(model, one, SHORT, "key")[1].stopped_after for one in (full, early)]


def test_the_learning_rate_falls_to_its_half(
    model: BaseModel, image: ModelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same amount at each step, as 1 - i / 100 does over the authors' fifty."""
    monkeypatch.setattr(tracker_module, "PROGRESS_S", 0)
    told: list[UpdateProgress] = []
    tune(model, image, replace(SHORT, updates=1), on_progress=told.append)

    assert [0.01, 0.00875, 0.0075, 0.00625] == pytest.approx([progress.learning_rate for progress in told])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_is_the_samplers(prediction_type: str) -> None:
    """Its two factors give what the sampler's solver gives, of latents and output alike."""
    latents, output = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8), dtype=np.float32)
    for level, next_level in ((0.01, 0.2), (0.5, 0.7), (0.99, 1.0), (0.7, 0.5)):
        expected = FirstOrder().step(latents, predict(output, latents, level, prediction_type), level, next_level)
        of_latents, of_output = ddim_factors(level, next_level, prediction_type)
        np.testing.assert_allclose(of_latents * latents + of_output * output, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_run_is_refused(model: BaseModel, image: ModelImage) -> None:
    """More steps than timesteps, and each setting out of its range, by field; a cancelled one ends at once."""
    with pytest.raises(InvalidField, match="num_inference_steps is 11: it must be 1 to 10"):
        check(replace(model, schedule=replace(model.schedule, num_train_timesteps=10)),
              replace(SHORT, num_inference_steps=11))  # fmt: skip
    for change in ({"updates": 5001}, {"num_inference_steps": 0}, {"guidance_scale": 65.0}, {"base_prompt": " "}):
        with pytest.raises(InvalidField) as refused:
            replace(SHORT, **change)
        assert f"config.{next(iter(change))}" == refused.value.field
    with pytest.raises(Cancelled):
        tune(model, image, replace(SHORT, updates=0), cancelled=lambda: True)
