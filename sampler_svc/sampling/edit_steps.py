"""Counts the steps of an edit, of its second pass and of its super-resolution together, and emits an event for each."""

import time

from sampler_svc.sampling.events import OnEvent, Step
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.tools import PreparedEdit
from unitune import images
from unitune.diffusion.schedule import Latents
from unitune.images import ModelImage


class EditSteps:
    """The steps of one edit, from 0, with previews as the request asks."""

    def __init__(self, edit: PreparedEdit, request: Request, on_event: OnEvent) -> None:
        self._edit, self._preview_every, self._on_event = edit, request.preview_every, on_event
        self._done = 0
        self._total = request.num_steps
        self._total += len(request.seeds) * sum(stage.num_steps for stage in edit.tools.super_resolution)
        self._steps_each = request.second_pass_steps  # of a tile
        self._planned = 0  # tiles of each picture
        if edit.tiles is not None:
            self._planned = len(edit.tiles.touching(edit.enlarged_mask(edit.mask)))
        self._total += len(request.seeds) * self._planned * self._steps_each
        self.second_pass_s = self.super_resolution_s = 0.0

    def emit(self, denoised: Latents | None = None) -> None:
        """Emit that a step is done. `denoised` are the latents without noise, for a preview of the first one."""
        wants_preview = self._preview_every > 0 and (self._done + 1) % self._preview_every == 0
        preview = self._preview(denoised) if denoised is not None and wants_preview else b""
        self._on_event(Step(self._done, self._total, preview))
        self._done += 1

    def expect_tiles(self, number: int) -> None:
        """Correct the total for a picture whose second pass has this number of tiles."""
        self._total += (number - self._planned) * self._steps_each

    def enlarge(self, image: ModelImage, seed: int) -> ModelImage:
        """The image after the stages of super-resolution. Raises what their `enlarge` raises."""
        began = time.perf_counter()
        for stage in self._edit.tools.super_resolution:
            image = stage.enlarge(image, seed, self.emit)
        self.super_resolution_s += time.perf_counter() - began
        return image

    def _preview(self, denoised: Latents) -> bytes:
        """PNG with the base image's aspect, at most as large as the model's pictures."""
        graphs, size, fit = self._edit.tools.graphs, self._edit.size, self._edit.fit
        shrink = min(1.0, max(fit.size) / max(size))
        small = max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1)
        return images.encode_png(fit.from_model(graphs.preview(denoised[:1]), small))
