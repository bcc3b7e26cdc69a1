"""DDIM inversion: from a picture's latent to the noise that DDIM would start from (Song et al., 2021, section 4.3)."""

from collections.abc import Callable, Iterator

from unitune.diffusion.denoiser import predict
from unitune.diffusion.schedule import Latents
from unitune.diffusion.solvers import DenoisingRun, FirstOrder

Predict = Callable[[Latents, int], Latents]  # latents, timestep -> the denoiser's output


def inverted(latent: Latents, run: DenoisingRun, output: Predict, prediction_type: str) -> Iterator[Latents]:
    """The latents at every level of a run, from the last step's to the first's, where an edit begins.

    Every step predicts the noise from the less noisy latents, with the timestep of the noisier ones, like diffusers'
    DDIMInverseScheduler. So denoising again does not give exactly the same picture: more steps are nearer. With
    guidance it would be far away, so `output` is the prediction for one prompt.
    """
    solver, latents = FirstOrder(), latent
    for timestep, level, next_level in reversed(list(run)):
        prediction = predict(output(latents, timestep), latents, next_level, prediction_type)
        latents = solver.step(latents, prediction, next_level, level)
        yield latents
