"""From a picture's latent to the noise that it comes from: DDIM run backwards (Song et al., 2021, section 4.3)."""

from collections.abc import Callable, Iterator

from unitune.diffusion.denoiser import predict
from unitune.diffusion.schedule import Latents
from unitune.diffusion.solvers import DenoisingRun, FirstOrder

Predict = Callable[[Latents, int], Latents]  # latents, timestep -> the denoiser's output


def inverted(latent: Latents, run: DenoisingRun, output: Predict, prediction_type: str) -> Iterator[Latents]:
    """The latents at every level of a run, from its last step's to its first's, which is where an edit begins.

    Every step takes the noise that is predicted for the latents at its quieter end, and the timestep of its noisier
    one, as diffusers' DDIMInverseScheduler does; so the way back does not quite lead to the picture: the more steps,
    the nearer. Under guidance it would lead far away: `output` is the prediction for one prompt alone.
    """
    solver, latents = FirstOrder(), latent
    for timestep, level, next_level in reversed(list(run)):
        prediction = predict(output(latents, timestep), latents, next_level, prediction_type)
        latents = solver.step(latents, prediction, next_level, level)
        yield latents
