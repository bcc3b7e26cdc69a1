"""What an edit needs: the parts of the model that no tuning changes, denoisers with the weights, and its picture.

The service puts them together for each edit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.cancellation import stopping
from sampler_svc.sampling.conditioning import Embed
from sampler_svc.sampling.inpainting import seeing, seeing_nothing, shown_outside
from sampler_svc.sampling.masks import BEFORE, Find, MaskInputs
from sampler_svc.sampling.masks.given import from_sdedit
from sampler_svc.sampling.masks.shape import (
    Region,
    at_working_size,
    region_around,
    softened,
    to_latent,
    whole_picture,
)
from sampler_svc.sampling.prompt_to_prompt import RunControlled
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.super_resolution import SuperResolution
from sampler_svc.sampling.tiles import Tiles
from unitune import images, working_size
from unitune.diffusion.guidance import Denoiser
from unitune.diffusion.inversion import inverted
from unitune.diffusion.schedule import Latents, Schedule
from unitune.diffusion.solvers import DenoisingRun
from unitune.images import Mask, Pixels
from unitune.photograph import Photograph
from unitune.super_resolution import large_size
from unitune.working_size import Fit, size_of


@dataclass(frozen=True)
class Tools:
    """The tools of an edit. Only the edit's thread may use them."""

    graphs: BaseGraphs
    schedule: Schedule
    denoiser: Denoiser  # with the edit's weights; an inpainting model's takes what is shown beside the latents, too
    embed: Embed  # a text to its embedding (tokens, width), as the edit's weights need it
    cancelled: Callable[[], bool] = lambda: False  # asked before each pass of a denoiser
    base_denoiser: Denoiser | None = None  # with the base weights, if the request needs them
    controlled: RunControlled | None = None  # with control over its attention, if the request has `attention`
    find: Find | None = None  # finds the named objects, if the mask source needs them
    super_resolution: tuple[SuperResolution, ...] = ()  # the stages that the request asks for


class GivenMask(NamedTuple):
    """The mask of a request, and the region of the picture that is edited."""

    region: Region
    mask: Mask | None = None  # in the region, with its soft edge; None without one
    png: bytes = b""  # of the whole picture; empty without one


@dataclass(frozen=True)
class PreparedEdit:
    """Everything an edit needs before its first step, computed lazily and shared by all attempts.

    It does not depend on strength, guidance or seed.
    """

    request: Request
    tools: Tools

    @cached_property
    def photograph(self) -> Photograph:
        """The whole picture, as its file has it. Raises what `Photograph.decode` raises."""
        return Photograph.decode(self.request.image)

    @property
    def picture(self) -> Pixels:
        """The whole picture, as the model sees it. Raises as `photograph` does."""
        return self.photograph.seen

    @cached_property
    def given(self) -> GivenMask:
        """The mask that came with the request. Raises what `images.decode_mask` raises."""
        request, size = self.request, size_of(self.picture)
        if request.mask_source != "given":
            return GivenMask(whole_picture(size))
        mask = images.decode_mask(request.mask, size)
        mask = softened(from_sdedit(mask) if request.mask_keeps else mask, request.mask_blur)
        region = whole_picture(size)
        if request.only_masked:
            region = region_around(mask, request.mask_padding, self.tools.graphs.working_size)
        return GivenMask(region, np.ascontiguousarray(region.crop(mask)), images.encode_mask(mask))

    @property
    def region(self) -> Region:
        """The part of the picture that is edited."""
        return self.given.region

    @cached_property
    def base(self) -> Photograph:
        """The photograph in the region."""
        return self.photograph.crop(*self.region.slices)

    @property
    def base_image(self) -> Pixels:
        """The picture in the region, as the model sees it."""
        return self.base.seen

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the region in pixels."""
        return size_of(self.base_image)

    @cached_property
    def fit(self) -> Fit:
        """How the base image lies in its working size."""
        return self.tools.graphs.fit(self.size)

    @cached_property
    def enlarged(self) -> Fit | None:
        """How the base image lies in the size of the second pass; None without one, and where none would be larger."""
        second, spec = self.request.second_pass, self.tools.graphs.spec
        if second is None or self.request.second_pass_steps == 0:
            return None
        return working_size.enlarged(self.size, self.fit, second.scale, spec.size_step or spec.pixels_each)

    @cached_property
    def tiles(self) -> Tiles | None:
        """The tiles of the second pass, over its latent; None where there is no such pass."""
        if self.enlarged is None:
            return None
        spec = self.tools.graphs.spec
        rows, columns = (side // spec.pixels_each for side in self.enlarged.size)
        return Tiles.over((rows, columns), (min(rows, spec.latent_side[0]), min(columns, spec.latent_side[1])))

    def enlarged_mask(self, mask: Mask | None) -> Mask | None:
        """A mask over the base image at the tiles' resolution. None where the second pass may change
        everything: without a mask, or where not all that is outside of it comes back."""
        if mask is None or self.enlarged is None or self.tiles is None or self.request.interpolation < 1:
            return None
        return to_latent(mask, self.tiles.size, self.enlarged)[0, 0]

    @cached_property
    def latent(self) -> Latents:
        """The base image's latent, (1, channels, h, w)."""
        return self.tools.graphs.encode(self.fit.to_model(self.base_image))

    @cached_property
    def shown(self) -> Latents | None:
        """What an inpainting model sees beside the latents: the base image outside of the mask, or nothing of it if the
        mask is not known before the first step. None for another model."""
        graphs = self.tools.graphs
        if not graphs.spec.is_inpainting:
            return None
        if self.mask is None:
            return graphs.all_hidden((self.latent.shape[2], self.latent.shape[3]))
        return shown_outside(graphs, self.fit.to_model(self.base_image), at_working_size(self.mask, self.fit))

    @cached_property
    def denoiser(self) -> Denoiser:
        """Of the edit's latents, with the edit's weights."""
        return self._seeing(self.tools.denoiser)

    @cached_property
    def base_denoiser(self) -> Denoiser | None:
        """The same with the base weights, if the tools have them."""
        return None if self.tools.base_denoiser is None else self._seeing(self.tools.base_denoiser)

    def _seeing(self, denoiser: Denoiser) -> Denoiser:
        return denoiser if self.shown is None else seeing(denoiser, self.shown)

    @cached_property
    def mask(self) -> Mask | None:
        """The mask over the base image with its soft edge, if its source knows it before the first step.

        Raises Cancelled before a pass that estimates it, and what `find` raises.
        """
        request, tools = self.request, self.tools
        if request.mask_source not in BEFORE:
            return None
        denoiser = stopping(seeing_nothing(tools.graphs, tools.denoiser), tools.cancelled)
        contexts = tools.embed(request.prompt), tools.embed(request.base_prompt)
        found = None if tools.find is None else partial(tools.find, self.base_image)
        inputs = MaskInputs(
            self.size, self.given.mask, self.latent, tools.schedule, denoiser, *contexts, self.fit, found
        )
        mask = BEFORE[request.mask_source](inputs)
        return softened(mask, request.mask_blur) if self.given.mask is None else mask

    @property
    def result_size(self) -> tuple[int, int]:
        """Height and width of the results: the picture's; if super-resolution's is larger, that size in the picture's
        aspect."""
        height, width = size_of(self.picture)
        stages = self.tools.super_resolution
        if not stages:
            return height, width
        fit = self.tools.graphs.fit((height, width))
        large = fit.scaled(large_size([stage.spec for stage in stages], stages[-1].spec.name, fit.size))
        scale = max(1.0, min(large.height / height, large.width / width))
        return round(height * scale), round(width * scale)

    def inversion(self, run: DenoisingRun) -> list[Latents]:
        """The base image's latents by DDIM inversion with the empty prompt, at each level of the run and at its end."""
        tools, unprompted = self.tools, self.tools.embed("")[None]
        denoiser = stopping(self.denoiser, tools.cancelled)

        def output(latents: Latents, timestep: int) -> Latents:
            return denoiser(latents, np.array([timestep]), unprompted)

        return [self.latent, *inverted(self.latent, run, output, tools.schedule.prediction_type)][::-1]
