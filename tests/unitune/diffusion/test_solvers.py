"""Each scheduler step by step against the one of the same name in diffusers.

A smooth function of latent and timestep stands for the network, since what is compared is the solver; it is fed our
latents, and diffusers' scheduler its own, so that errors would add up as they do in a run.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm, scheduling_tcd

from unitune.diffusion.denoiser import predict
from unitune.diffusion.schedule import Schedule, add_noise
from unitune.diffusion.solvers import SCHEDULERS, DenoisingRun, scheduler_of

SHAPE = (2, 4, 8, 8)
# diffusers rounds its tables and every step to float32: 2.3e-6 is the most that was seen through 50 steps.
STEP_TOLERANCE = 1e-5


def network(latents: np.ndarray, timestep: int) -> np.ndarray:
    """A bounded, smooth stand-in for a denoiser's output."""
    return np.tanh(0.8 * latents + timestep / 1000).astype(np.float32)


def start(schedule: Schedule, run: DenoisingRun) -> np.ndarray:
    """Where the run begins: a latent noised to its first level."""
    latents, noise = np.random.default_rng(7).standard_normal((2, *SHAPE), dtype=np.float32)
    return add_noise(latents, noise, float(run.levels[0]))


def drawing(seed: int) -> Callable[[], np.ndarray]:
    """Noise for the steps of a run, the same for a seed."""
    rng = np.random.default_rng(seed)
    return lambda: rng.standard_normal(SHAPE, dtype=np.float32)


def our_states(
    name: str, schedule: Schedule, num_inference_steps: int, strength: float, gamma: float = 0.3
) -> Iterator[np.ndarray]:
    """Our latents after each step."""
    scheduler = scheduler_of(name, gamma)
    run = scheduler.run(schedule, num_inference_steps).late(strength)
    solver, latents = scheduler.solver(run, drawing(len(run))), start(schedule, run)
    for timestep, level, next_level in zip(run.timesteps, run.levels, run.next_levels, strict=True):
        prediction = predict(network(latents, timestep), latents, level, schedule.prediction_type)
        latents = solver.step(latents, prediction, level, next_level)
        assert latents.dtype == np.float32
        yield latents


def their_states(name: str, config: dict[str, Any], num_inference_steps: int, strength: float) -> Iterator[np.ndarray]:
    """diffusers' latents after each step, in variance preserving coordinates, started late as its img2img does."""
    schedule = Schedule(**config)
    common = {**config, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    common.pop("set_alpha_to_one")
    first = num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)
    if name == "ddim":
        scheduler = DDIMScheduler(**common, set_alpha_to_one=config["set_alpha_to_one"], clip_sample=False)
        scheduler.set_timesteps(num_inference_steps)
    elif name == "euler":
        scheduler = EulerDiscreteScheduler(**common)
        scheduler.set_timesteps(num_inference_steps)
        if config["timestep_spacing"] == "linspace":  # ours are whole, since a graph takes whole timesteps
            scheduler.set_timesteps(timesteps=[round(float(t)) for t in scheduler.timesteps])
    else:
        scheduler = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
        scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    state = torch.from_numpy(start(schedule, SCHEDULERS[name].run(schedule, num_inference_steps).late(strength)))
    if name == "euler":
        state = state * (scheduler.sigmas[first] ** 2 + 1) ** 0.5
    for index, timestep in enumerate(timesteps):
        seen = scheduler.scale_model_input(state, timestep)
        output = torch.from_numpy(network(seen.numpy(), int(timestep)))
        state = scheduler.step(output, timestep, state).prev_sample
        if name == "euler":
            yield (state / (scheduler.sigmas[first + index + 1] ** 2 + 1) ** 0.5).numpy()
        else:
            yield state.numpy()


@pytest.mark.parametrize(
    ("num_inference_steps", "strength"),
    [(1, 1.0), (2, 0.75), (4, 1.0), (4, 0.62), (8, 0.75), (10, 0.62), (23, 1.0), (23, 0.62), (50, 1.0), (50, 0.62)],
)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_every_step_is_that_of_diffusers(
    name: str, prediction_type: str, spacing: str, num_inference_steps: int, strength: float
) -> None:
    """From the first step to the last, early start and late, the latents are those of diffusers."""
    config = {
        "prediction_type": prediction_type,
        "timestep_spacing": spacing,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }

    ours = list(our_states(name, Schedule(**config), num_inference_steps, strength))
    theirs = list(their_states(name, config, num_inference_steps, strength))

    assert len(ours) == len(theirs) == int(num_inference_steps * strength)
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_a_schedule_that_ends_in_pure_noise_is_that_of_diffusers(name: str) -> None:
    """Zero terminal SNR with v-prediction and trailing timesteps starts at pure noise and stays finite."""
    config = {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "rescale_betas_zero_snr": True,
    }

    pairs = zip(our_states(name, Schedule(**config), 12, 1.0), their_states(name, config, 12, 1.0), strict=True)

    for mine, reference in pairs:
        # diffusers keeps Euler's state times sigma = 4096 there, which costs float32 three digits.
        np.testing.assert_allclose(mine, reference, rtol=2e-3, atol=2e-3 if name == "euler" else STEP_TOLERANCE)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_inference_steps", [999, 1000])
def test_as_many_steps_as_timesteps_stay_finite(name: str, spacing: str, num_inference_steps: int) -> None:
    """The longest runs, where diffusers leaves its tables, end in finite latents."""
    schedule = Schedule(timestep_spacing=spacing, prediction_type="v_prediction")

    *_, last = our_states(name, schedule, num_inference_steps, 1.0)

    assert np.isfinite(last).all()


@pytest.mark.parametrize(("num_inference_steps", "strength"), [(1, 1.0), (4, 1.0), (4, 0.62), (8, 0.5), (50, 1.0)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_step_of_lcm_is_that_of_diffusers(
    prediction_type: str, num_inference_steps: int, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timesteps and latents are those of diffusers' LCMScheduler, which is given the same noise (M13)."""
    schedule = Schedule(prediction_type=prediction_type)
    run = SCHEDULERS["lcm"].run(schedule, num_inference_steps).late(strength)
    theirs = LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    theirs.set_timesteps(num_inference_steps)
    first = num_inference_steps - len(run)
    theirs.set_begin_index(first)
    draw = drawing(len(run))
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *given, **named: torch.from_numpy(draw()))
    state = torch.from_numpy(start(schedule, run))

    ours = list(our_states("lcm", schedule, num_inference_steps, strength))

    np.testing.assert_array_equal(run.timesteps, theirs.timesteps[first:].numpy())
    assert len(ours) == len(run) > 0
    for mine, timestep in zip(ours, theirs.timesteps[first:], strict=True):
        state = theirs.step(torch.from_numpy(network(state.numpy(), int(timestep))), timestep, state).prev_sample
        np.testing.assert_allclose(mine, state.numpy(), rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize(("num_inference_steps", "strength"), [(1, 1.0), (4, 1.0), (4, 0.62), (8, 0.5), (50, 1.0)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_step_of_tcd_is_that_of_diffusers(
    prediction_type: str, num_inference_steps: int, strength: float, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timesteps and latents are those of diffusers' TCDScheduler, given the same noise, and gamma as its eta."""
    schedule = Schedule(prediction_type=prediction_type)
    run = scheduler_of("tcd", gamma).run(schedule, num_inference_steps).late(strength)
    theirs = TCDScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    theirs.set_timesteps(num_inference_steps)
    first = num_inference_steps - len(run)
    theirs.set_begin_index(first)
    draw = drawing(len(run))
    monkeypatch.setattr(scheduling_tcd, "randn_tensor", lambda *given, **named: torch.from_numpy(draw()))
    state = torch.from_numpy(start(schedule, run))

    ours = list(our_states("tcd", schedule, num_inference_steps, strength, gamma))

    np.testing.assert_array_equal(run.timesteps, theirs.timesteps[first:].numpy())
    assert len(ours) == len(run) > 0
    for mine, timestep in zip(ours, theirs.timesteps[first:], strict=True):
        output = torch.from_numpy(network(state.numpy(), int(timestep)))
        state = theirs.step(output, timestep, state, eta=gamma).prev_sample
        np.testing.assert_allclose(mine, state.numpy(), rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE)


@pytest.mark.parametrize(("gamma", "draws"), [(0.0, 0), (0.3, 3)])
def test_the_last_step_of_tcd_draws_nothing(gamma: float, draws: int) -> None:
    """Nor does any step without gamma. A run of another scheduler is refused."""
    scheduler, drawn = scheduler_of("tcd", gamma), []
    run = scheduler.run(Schedule(), 4)
    solver = scheduler.solver(run, lambda: drawn.append(gamma) or np.zeros(SHAPE, np.float32))
    latents = start(Schedule(), run)

    for timestep, level, next_level in run:
        prediction = predict(network(latents, timestep), latents, level, "epsilon")
        latents = solver.step(latents, prediction, level, next_level)

    assert draws == len(drawn)
    with pytest.raises(ValueError, match="no levels to jump to"):
        scheduler.solver(SCHEDULERS["ddim"].run(Schedule(), 4), drawing(0))


@pytest.mark.parametrize(("num_inference_steps", "strength"), [(1, 1.0), (4, 0.75), (8, 1.0), (23, 0.62)])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_step_of_ancestral_euler_is_that_of_diffusers(
    prediction_type: str, spacing: str, num_inference_steps: int, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latents are those of diffusers' EulerAncestralDiscreteScheduler, which is given the same noise."""
    schedule = Schedule(prediction_type=prediction_type, timestep_spacing=spacing)
    run = SCHEDULERS["euler_ancestral"].run(schedule, num_inference_steps).late(strength)
    theirs = EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        steps_offset=1,
    )
    theirs.set_timesteps(num_inference_steps)
    first = num_inference_steps - len(run)
    theirs.set_begin_index(first)
    draw = drawing(len(run))
    monkeypatch.setattr(
        scheduling_euler_ancestral_discrete, "randn_tensor", lambda *given, **named: torch.from_numpy(draw())
    )
    state = torch.from_numpy(start(schedule, run)) * (theirs.sigmas[first] ** 2 + 1) ** 0.5

    ours = list(our_states("euler_ancestral", schedule, num_inference_steps, strength))

    assert len(ours) == len(run) > 0
    for index, (mine, timestep) in enumerate(zip(ours, theirs.timesteps[first:], strict=True)):
        seen = theirs.scale_model_input(state, timestep)
        output = torch.from_numpy(network(seen.numpy(), int(timestep)))
        state = theirs.step(output, timestep, state).prev_sample
        reference = (state / (theirs.sigmas[first + index + 1] ** 2 + 1) ** 0.5).numpy()
        np.testing.assert_allclose(mine, reference, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_consistency_models_take_no_more_steps_than_they_were_distilled_from(name: str) -> None:
    """Fifty steps are all there are."""
    assert 50 == len(SCHEDULERS[name].run(Schedule(), 50))
    with pytest.raises(ValueError, match="num_inference_steps is 51: it must be 1 to 50 with lcm and tcd"):
        SCHEDULERS[name].run(Schedule(), 51)


def test_a_run_has_a_timestep_spacing_of_its_own() -> None:
    """A spaced schedule takes other timesteps over the same levels, and an empty name changes nothing (M13)."""
    schedule = Schedule(timestep_spacing="leading")

    trailing = SCHEDULERS["euler"].run(schedule.spaced("trailing"), 4)

    np.testing.assert_array_equal(trailing.timesteps, [999, 749, 499, 249])
    np.testing.assert_array_equal(trailing.levels, schedule.alphas_cumprod[trailing.timesteps])
    assert schedule.timestep_spacing == "leading"
    assert schedule.spaced("") is schedule
    with pytest.raises(ValueError, match="timestep_spacing is 'karras'"):
        schedule.spaced("karras")


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "lcm", "euler_ancestral"])
def test_a_perfect_denoiser_leads_to_its_latent(name: str) -> None:
    """When the prediction is always one clean latent, the run ends there, except for what DDIM's final level leaves."""
    schedule = Schedule(set_alpha_to_one=True)
    clean = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    run = SCHEDULERS[name].run(schedule, 20)
    solver, latents = SCHEDULERS[name].solver(run, drawing(len(run))), start(schedule, run)

    for level, next_level in zip(run.levels, run.next_levels, strict=True):
        epsilon = (latents - np.float32(np.sqrt(level)) * clean) / np.float32(np.sqrt(1 - level))
        latents = solver.step(latents, predict(epsilon, latents, level, "epsilon"), level, next_level)

    np.testing.assert_allclose(latents, clean, rtol=0, atol=1e-5)


def test_late_start_keeps_the_last_steps() -> None:
    """A late run is the tail of the whole run, and may be empty."""
    whole = SCHEDULERS["ddim"].run(Schedule(), 10)

    late = whole.late(0.35)

    np.testing.assert_array_equal(late.timesteps, whole.timesteps[-3:])
    assert len(whole.late(0.05)) == 0
    assert len(whole.late(1.0)) == 10


def test_runs_that_start_at_one_timestep_start_at_one_level() -> None:
    """Unequal step counts with the same start keep the start state bit-equal (check E6)."""
    schedule = Schedule()

    fine = SCHEDULERS["ddim"].run(schedule, 50).late(0.42)
    coarse = SCHEDULERS["ddim"].run(schedule, 25).late(0.44)

    assert (len(fine), len(coarse)) == (21, 11)
    np.testing.assert_array_equal(start(schedule, fine), start(schedule, coarse))
