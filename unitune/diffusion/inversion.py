"""DDIM backwards: from a clean latent to the noise that DDIM would have made it from."""

import math
from collections.abc import Callable

from unitune.diffusion.denoiser import predict
from unitune.diffusion.schedule import Latents, Schedule
from unitune.diffusion.solvers import Run


def inverted(
    latents: Latents, output: Callable[[Latents, int], Latents], run: Run, schedule: Schedule
) -> list[Latents]:
    """The latents at the run's levels, the noisiest first, and the clean ones last: len(run) + 1 of them.

    `output` is the denoiser's, for latents and timestep. Each step up takes the prediction for the latents at its lower
    end and the timestep of its upper end, as diffusers' DDIMInverseScheduler does (Song et al., 2021, section 4.3).
    Not exact: the more steps, the nearer do they lead back down.
    """
    trajectory = [latents]
    for timestep, upper, lower in reversed(list(run)):
        prediction = predict(output(latents, timestep), latents, lower, schedule.prediction_type)
        latents = math.sqrt(upper) * prediction.denoised + math.sqrt(1 - upper) * prediction.epsilon
        trajectory.append(latents)
    return trajectory[::-1]
