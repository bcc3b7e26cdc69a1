"""Super-resolution of an edited picture: the stages that an edit asks for, one after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler_svc.sampling.cancellation import stopping
from sampler_svc.sampling.tiles import Tiles
from unitune.base_model import SuperResolutionSpec
from unitune.diffusion.guidance import Context, Denoiser, classifier_free
from unitune.diffusion.schedule import Latents
from unitune.images import ModelImage
from unitune.super_resolution import enlarge
from unitune.working_size import MOST_AREA

# A stage of convolutions runs a larger picture in tiles of this side, in blocks: its activations take 0.3 GB.
TILE_BLOCKS = 256


@dataclass(frozen=True)
class SuperResolutionOptions:
    """The settings of each stage of an edit's super-resolution, and how many there are. edit.proto defines them."""

    noise_level: int
    num_inference_steps: int
    guidance_scale: float
    is_thresholded: bool = True
    num_stages: int = 1


@dataclass(frozen=True)
class SuperResolution:
    """One stage for one edit: an engine that holds its weights, and its text."""

    spec: SuperResolutionSpec
    run: Denoiser
    wanted: SuperResolutionOptions
    prompt: Context
    empty: Context
    cancelled: Callable[[], bool]

    @property
    def num_steps(self) -> int:
        """Steps for one picture."""
        return self.wanted.num_inference_steps

    def enlarge(self, image: ModelImage, seed: int, on_step: Callable[[], None] = lambda: None) -> ModelImage:
        """As `unitune.super_resolution.enlarge`, in tiles where the picture is larger than one. Raises Cancelled
        (EDIT_CANCELLED)."""
        run, wanted = stopping(self.run, self.cancelled), self.wanted
        return enlarge(
            self.spec,
            in_tiles(run, self.spec.step) if self.spec.is_local and self.spec.step else run,
            classifier_free(wanted.guidance_scale, self.prompt, self.empty),
            image,
            seed,
            noise_level=wanted.noise_level,
            num_inference_steps=wanted.num_inference_steps,
            is_thresholded=wanted.is_thresholded,
            on_step=on_step,
        )


def in_tiles(run: Denoiser, step: int, most: int = TILE_BLOCKS) -> Denoiser:
    """A network of convolutions that is run on one overlapping tile after another where its sample is larger than
    `most` x `most`.

    The tiles begin at multiples of `step`, where the network halves height and width at the same places as in the
    whole sample. So what it makes of a tile differs from the whole only near the tile's border, where tiles overlap and
    count little.
    """
    side = most // step * step

    def tiled(sample: Latents, timesteps: NDArray[Any], contexts: NDArray[Any]) -> Latents:
        rows, columns = sample.shape[2:]
        if rows * columns <= MOST_AREA * side * side:
            return run(sample, timesteps, contexts)
        own = min(rows, side) // step, min(columns, side) // step
        tiles = Tiles.over((rows // step, columns // step), own).scaled(step)
        parts = ((tile, run(_part(sample, tile.slices), timesteps, contexts)) for tile in tiles.places)
        return tiles.mean_of(parts, sample.shape[1] // 2, len(sample))

    return tiled


def _part(sample: Latents, slices: Sequence[slice]) -> Latents:
    rows, columns = slices
    return np.ascontiguousarray(sample[:, :, rows, columns])
