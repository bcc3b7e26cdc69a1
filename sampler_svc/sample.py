"""The hot path: one picture and one prompt in, edited pictures out, by a denoiser that holds the weights to use.

Encode, noise up to the level where the edit starts, walk back down under guidance, decode, interpolate. With tuned
weights and the rare tokens before the prompt this is UniTune (arXiv 2210.09477), with the base weights SDEdit (Meng et
al., 2022).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sampler_svc.base_graphs import BaseGraphs
from sampler_svc.interpolation import interpolate
from unitune import images
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import Denoiser, classifier_free, guided
from unitune.diffusion.schedule import Latents, Schedule, add_noise
from unitune.diffusion.solvers import SCHEDULERS, Run
from unitune.errors import Cancelled, Internal, InvalidArgument


@dataclass(frozen=True)
class Request:
    """One edit, every setting filled in and checked."""

    image: bytes
    prompt: str  # with the rare tokens, where there are any
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    strength: float
    seeds: tuple[int, ...]
    interpolation: float = 0.0
    preview_every: int = 0  # steps; 0 means no previews


@dataclass(frozen=True)
class Step:
    """One denoising step is done."""

    index: int  # from 0
    total: int
    preview: bytes = b""  # PNG of the first seed's picture so far


@dataclass(frozen=True)
class EditedImage:
    """One result."""

    index: int  # into the seeds
    seed: int
    png: bytes  # as large as the base image


@dataclass(frozen=True)
class Done:
    """All results are out. Seconds by stage."""

    encode_s: float
    denoise_s: float
    decode_s: float


Event = Step | EditedImage | Done


def sample(
    graphs: BaseGraphs, schedule: Schedule, denoiser: Denoiser, request: Request, cancelled: Callable[[], bool]
) -> Iterator[Event]:
    """Sample one picture per seed, all seeds in one batch. `cancelled` is asked before each step.

    A strength that leaves no step gives the base image as the autoencoder sees it. Raises Cancelled (EDIT_CANCELLED),
    InvalidArgument (IMAGE_TOO_LARGE) when a result is too large a file to be sent, and what `images.decode` raises.
    """
    began = time.perf_counter()
    base_image = images.decode(request.image)
    size = base_image.shape[0], base_image.shape[1]
    latent = graphs.encode(images.to_model(base_image, graphs.spec.image_side))
    rows = classifier_free(request.guidance_scale, graphs.embed(request.prompt), graphs.embed(""))

    encoded = time.perf_counter()
    scheduler = SCHEDULERS[request.scheduler]
    run = scheduler.run(schedule, request.num_inference_steps).late(request.strength)
    solver = scheduler.solver()
    latents = start(latent, run, request.seeds)
    for index, (timestep, level, next_level) in enumerate(run):
        if cancelled():
            raise Cancelled("the edit was cancelled", reason="EDIT_CANCELLED")
        output = guided(denoiser, latents, timestep, rows)
        prediction = predict(output, latents, level, schedule.prediction_type)
        latents = solver.step(latents, prediction, level, next_level)
        wants_preview = request.preview_every > 0 and (index + 1) % request.preview_every == 0
        yield Step(index, len(run), _preview(graphs, prediction.denoised, size) if wants_preview else b"")
    if not np.isfinite(latents).all():
        raise Internal("sampling left the range of numbers", reason="NOT_FINITE")

    denoised = time.perf_counter()
    for index, seed in enumerate(request.seeds):
        picture = images.from_model(graphs.decode(latents[index : index + 1]), size)
        if len(run) > 0:  # without a step there is no edit, only what the autoencoder makes of the picture
            picture = interpolate(picture, base_image, request.interpolation)
        png = images.encode_png(picture)
        if len(png) > images.MAX_BYTES:  # no message would carry it
            raise _too_large(size, len(png))
        yield EditedImage(index, seed, png)
    yield Done(encoded - began, denoised - encoded, time.perf_counter() - denoised)


def start(latent: Latents, run: Run, seeds: tuple[int, ...]) -> Latents:
    """The base image's latent, once per seed, noised to the run's first level; as it is if there is no step to run.

    A seed's noise is its own, whatever other seeds are in the batch.
    """
    latents = np.repeat(latent, len(seeds), axis=0)
    if len(run) == 0:
        return latents
    # Seeds are signed in the contract and unsigned for the generator.
    draws = [np.random.default_rng(seed % 2**64).standard_normal(latent.shape[1:], dtype=np.float32) for seed in seeds]
    return add_noise(latents, np.stack(draws), float(run.levels[0]))


def _preview(graphs: BaseGraphs, denoised: Latents, size: tuple[int, int]) -> bytes:
    """PNG of the first picture, with the base image's aspect, and no larger than the model's own pictures."""
    shrink = min(1.0, max(graphs.spec.image_side) / max(size))
    small = max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1)
    return images.encode_png(images.from_model(graphs.preview(denoised[:1]), small))


def _too_large(size: tuple[int, int], size_bytes: int) -> InvalidArgument:
    value, remedy = f"{size[1]}x{size[0]} pixels", "edit a smaller copy of the picture"
    return InvalidArgument(
        f"the edited picture would be a file of {size_bytes} bytes, more than {images.MAX_BYTES}: {remedy}",
        reason="IMAGE_TOO_LARGE",
        metadata={"field": "image", "value": value, "remedy": remedy},
    )
