"""The inputs of a mask source: before the first step, or after the last."""

from collections.abc import Callable
from typing import NamedTuple

from unitune.diffusion.guidance import Context, Denoiser
from unitune.diffusion.schedule import Latents, Schedule
from unitune.images import Mask, Pixels
from unitune.working_size import Fit

Find = Callable[[Pixels], Mask]  # where a picture shows what the request's mask_text names


class MaskInputs(NamedTuple):
    """One edit before its first step."""

    size: tuple[int, int]  # height, width of the base image
    given: Mask | None  # the request's, of this size
    latent: Latents  # of the base image, (1, channels, h, w)
    schedule: Schedule
    denoiser: Denoiser  # with the edit's weights
    prompt: Context
    base_prompt: Context  # of the base image: rare tokens and description, each if there is one
    fit: Fit  # of the base image in its working size
    found: Callable[[], Mask] | None = None  # where the base image shows what mask_text names


class FinishedEdit(NamedTuple):
    """One edit after its last step, both pictures of one size."""

    edited: Pixels
    base: Pixels
    find: Find | None = None
