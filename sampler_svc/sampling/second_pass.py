"""A second pass over an edit of a large photograph: what was edited is sampled once more, nearer to the photograph's
own size.

The first pass edits at the working size, and its result is enlarged. Here that is noised a little and denoised again
(SDEdit), with the same weights and prompt, at a size that is several times the working size. No network sees more of it
than a tile of the model's own size. At every step the predictions of all tiles become one (MultiDiffusion, arXiv
2302.08113), so that no tile goes its own way. Tiles that the mask does not touch are left out.
"""

from collections.abc import Sequence

import numpy as np

from sampler_svc.sampling.cancellation import stop_if
from sampler_svc.sampling.edit_steps import EditSteps
from sampler_svc.sampling.interpolation import mix
from sampler_svc.sampling.masks.shape import Region
from sampler_svc.sampling.request import Request, TermsOf
from sampler_svc.sampling.tiles import Tiles
from sampler_svc.sampling.tools import PreparedEdit
from unitune import images
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import guided
from unitune.diffusion.schedule import Latents, add_noise
from unitune.errors import Internal
from unitune.images import Mask, Pixels
from unitune.working_size import Fit

STREAM = 2  # of a seed's random numbers, so that they differ from those of the first pass


def second_pass(
    edited: Pixels, mask: Mask | None, seed: int, request: Request, edit: PreparedEdit, terms: TermsOf, steps: EditSteps
) -> Pixels:
    """The edit (h, w, 3) with what the mask (h, w) has of it sampled again; `edited` itself if there is no larger size,
    or the strength leaves no step.

    The same seed gives the same picture. Raises Cancelled (EDIT_CANCELLED).
    """
    place, tiles, graphs = edit.enlarged, edit.tiles, edit.tools.graphs
    if place is None or tiles is None:
        return edited
    inside = edit.enlarged_mask(mask)
    touched = tiles.touching(inside)
    steps.expect_tiles(len(touched))
    if not touched:
        return edited

    if inside is not None and mask is not None:  # around it, the photograph shows what detail there is
        edited = mix(edited, edit.base.seen, 1.0, np.ceil(mask))
    pixels = _enlarged(edited, place)
    del edited
    each = graphs.spec.pixels_each

    def encoded(tile: Region) -> Latents:
        part = tile.scaled(each).crop(pixels)
        return graphs.encode(images.to_model(part, (part.shape[0], part.shape[1])))

    latent = tiles.mean_of(((tile, encoded(tile)) for tile in touched), graphs.spec.latent_channels)
    latents = _denoised(latent, inside, tiles, touched, seed, request, edit, terms, steps)
    if not np.isfinite(latents).all():
        raise Internal("the second pass left the range of numbers", reason="NOT_FINITE")
    of_pixels = {tile.scaled(each): tile for tile in touched}

    def made(area: Region) -> Pixels:
        before = area.crop(pixels)
        if area not in of_pixels:
            return before
        image = graphs.decode(_part(latents, of_pixels[area]))
        return images.from_model(image, (before.shape[0], before.shape[1]))

    return images.resized(np.ascontiguousarray(place.cut(tiles.scaled(each).picture_of(made))), edit.size)


def _denoised(
    latent: Latents,
    inside: Mask | None,
    tiles: Tiles,
    touched: Sequence[Region],
    seed: int,
    request: Request,
    edit: PreparedEdit,
    terms: TermsOf,
    steps: EditSteps,
) -> Latents:
    """The latent (1, channels, rows, columns) after the second pass; outside of the mask (rows, columns) it stays."""
    tools, schedule, scheduler = edit.tools, edit.tools.schedule, request.steps_by
    assert request.second_pass is not None
    run = scheduler.run(schedule.spaced(request.timestep_spacing), request.num_inference_steps)
    run = run.late(request.second_pass.strength)
    rng = np.random.default_rng((seed % 2**64, STREAM))

    def draw() -> Latents:
        return rng.standard_normal(latent.shape, dtype=np.float32)

    def output(tile: Region, latents: Latents, timestep: int) -> Latents:
        stop_if(tools.cancelled)
        here, rescale = terms(timestep), request.guidance_rescale
        found = guided(tools.denoiser, _part(latents, tile), timestep, here, tools.base_denoiser, rescale)
        steps.emit()
        return found

    noise = draw()
    latents, solver = add_noise(latent, noise, float(run.levels[0])), scheduler.solver(run, draw)
    for timestep, level, next_level in run:
        outputs = ((tile, output(tile, latents, timestep)) for tile in touched)
        mean = tiles.mean_of(outputs, latent.shape[1])
        prediction = predict(mean, latents, level, schedule.prediction_type)
        latents = solver.step(latents, prediction, level, next_level)
        if inside is not None:
            latents = inside * latents + (1 - inside) * add_noise(latent, noise, next_level)
    return latents if inside is None else inside * latents + (1 - inside) * latent


def _enlarged(pixels: Pixels, place: Fit) -> Pixels:
    """Pixels (height, width, 3) at their place in a larger size, with their reflection at the edges."""
    resized = images.resized(pixels, (place.height, place.width))
    return np.moveaxis(place.padded(np.moveaxis(resized, 2, 0)), 0, 2)


def _part(latents: Latents, tile: Region) -> Latents:
    rows, columns = tile.slices
    return np.ascontiguousarray(latents[:, :, rows, columns])
