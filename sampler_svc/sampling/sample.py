"""The hot path: one picture and one prompt in, edited pictures out, by a denoiser that holds the weights to use.

Encode, noise up to the level where the edit starts, walk back down under guidance, decode, interpolate. A mask keeps
what is outside of it on the way down, and once more in the finished picture. With tuned weights and the rare tokens
before the prompt this is UniTune (arXiv 2210.09477), with the base weights SDEdit (Meng et al., 2022).
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.cancellation import stop_if, stopping
from sampler_svc.sampling.interpolation import mix
from sampler_svc.sampling.local_blend import LocalBlend, Word
from sampler_svc.sampling.masks import AFTER, BEFORE, Find, Finished, Scene
from sampler_svc.sampling.masks.given import from_sdedit
from sampler_svc.sampling.masks.shape import Region, around, softened, to_latent, whole
from sampler_svc.sampling.prompt_to_prompt import RunControlled, edited_beside
from sampler_svc.sampling.request import Request, guidance_rows
from sampler_svc.sampling.super_resolution import SuperResolution
from unitune import images
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import Context, Denoiser, guided
from unitune.diffusion.inversion import inverted
from unitune.diffusion.schedule import Latents, Schedule, add_noise, num_late_steps, sigma
from unitune.diffusion.solvers import SCHEDULERS, Run
from unitune.errors import Internal
from unitune.images import Mask, ModelImage, Pixels


@dataclass(frozen=True)
class Step:
    """One denoising step is done."""

    index: int  # from 0
    total: int
    preview: bytes = b""  # PNG of the first seed's picture so far
    attempt: int = 0  # from 1, where there may be several
    attempts: int = 0  # at most


@dataclass(frozen=True)
class EditedImage:
    """One result."""

    index: int  # into the seeds
    seed: int
    png: bytes  # as large as the base image; with a second stage at least as large as that makes them
    mask: bytes = b""  # PNG of the mask that was used, as large; empty if none was


@dataclass(frozen=True)
class Done:
    """All results are out. Seconds by stage."""

    encode_s: float
    denoise_s: float
    decode_s: float
    super_resolution_s: float = 0.0


@dataclass(frozen=True)
class Warned:
    """A result that is hardly what was meant, in plain words, with a remedy."""

    text: str


Event = Step | Warned | EditedImage | Done


class Opened(NamedTuple):
    """The picture of a request as an edit begins with it."""

    picture: Pixels
    given: Mask | None  # the mask that came with it, with its soft edge, in the region
    given_png: bytes  # the whole of it; empty if none came
    region: Region  # of the picture, that is edited
    base_image: Pixels  # the picture there
    latent: Latents  # of that, (1, channels, h, w)


@dataclass(frozen=True)
class Beginning:
    """What an edit has before its first step, each part made when it is first asked for.

    No strength, guidance or seed of the request matters to it: attempts at one edit have it in common.
    """

    graphs: BaseGraphs
    schedule: Schedule
    denoiser: Denoiser
    request: Request
    cancelled: Callable[[], bool]
    embed: Callable[[str], Context]
    find: Find | None

    @cached_property
    def opened(self) -> Opened:
        """The picture, decoded and encoded. Raises what `open_picture` raises."""
        return open_picture(self.graphs, self.request)

    @cached_property
    def mask(self) -> Mask | None:
        """The mask with its soft edge, where its source knows it now. Raises Cancelled before a pass of estimating it,
        and what `find` raises."""
        request, (_, given, _, _, base_image, latent) = self.request, self.opened
        if request.mask_source not in BEFORE:
            return None
        look = stopping(self.denoiser, self.cancelled)
        contexts = self.embed(request.prompt), self.embed(request.base_prompt)
        found = partial(self.find, base_image) if self.find is not None else None
        scene = Scene(_size(base_image), given, latent, self.schedule, look, *contexts, found)
        mask = BEFORE[request.mask_source](scene)
        return softened(mask, request.mask_blur) if given is None else mask


def sample(
    graphs: BaseGraphs,
    schedule: Schedule,
    denoiser: Denoiser,
    request: Request,
    cancelled: Callable[[], bool],
    base_denoiser: Denoiser | None = None,
    embed: Callable[[str], Context] | None = None,
    controlled: RunControlled | None = None,
    find: Find | None = None,
    second: SuperResolution | None = None,
    beginning: Beginning | None = None,
) -> Iterator[Event]:
    """Sample one picture per seed, all seeds in one batch; the second stage enlarges them one by one.

    `cancelled` is asked before each step, and before each pass that estimates a mask. `base_denoiser` holds the base
    weights, for a request that needs them; `embed` takes the place of the base model's own text embedding;
    `controlled` is the denoiser with control over its attention, for a request that has `attention`; `find` finds what
    the mask is of, for a mask source that names it; `second` is the second stage of a cascade, for a request whose
    results it is to enlarge; `beginning` is that of the edit, for attempts that have it in common. A strength that
    leaves no step gives the base image as the autoencoder sees it. Raises Cancelled (EDIT_CANCELLED), InvalidField for
    words and an alignment that the prompts do not have, and what `open_picture` and `find` raise.
    """
    began = time.perf_counter()
    embed = embed or graphs.embed
    beginning = beginning or Beginning(graphs, schedule, denoiser, request, cancelled, embed, find)
    picture, _, given_png, region, base_image, latent = beginning.opened
    rows = {
        (is_noisy, is_guided): guidance_rows(request, embed, is_noisy=is_noisy, is_guided=is_guided)
        for is_noisy in (False, True)
        for is_guided in (False, True)
    }
    sigmas = sigma(schedule.alphas_cumprod)

    def guided_output(latents: Latents, timestep: int) -> Latents:
        stop_if(cancelled)
        is_noisy, is_guided = timestep >= len(schedule) / 2, request.is_guided_at(float(sigmas[timestep]))
        return guided(denoiser, latents, timestep, rows[is_noisy, is_guided], base_denoiser)

    look = stopping(denoiser, cancelled)

    def preview(denoised: Latents) -> bytes:
        return _preview(graphs, denoised, _size(base_image))

    encoded = time.perf_counter()
    mask = beginning.mask
    if request.attention is None:
        run = SCHEDULERS[request.scheduler].run(schedule, request.num_inference_steps).late(request.strength)
        trajectory = None
        if request.inverted:
            unprompted = embed("")[None]
            up = inverted(latent, run, lambda x, t: look(x, np.array([t]), unprompted), schedule.prediction_type)
            trajectory = [latent, *(level.latents for level in up)][::-1]
        walk = _denoise(request, run, schedule, guided_output, latent, trajectory, mask, preview)
    else:
        if controlled is None:
            raise ValueError("the request has attention to control, and there is no denoiser for it")
        walk = _denoise_beside(request, schedule, stopping(controlled, cancelled), graphs, latent, mask, preview, embed)
    steps = Steps(second.num_steps * len(request.seeds) if second is not None else 0)
    latents = yield from steps.of_first_stage(walk)
    if not np.isfinite(latents).all():
        raise Internal("sampling left the range of numbers", reason="NOT_FINITE")

    denoised = time.perf_counter()
    # A smaller picture has no pixels to give back at the second stage's size: it is finished first, and enlarged whole.
    size = _enlarged_size(_size(picture), second.spec.side) if second is not None else _size(picture)
    is_enlarged_last = size != _size(picture)
    for index, seed in enumerate(request.seeds):
        image = graphs.decode(latents[index : index + 1])
        if second is not None and not is_enlarged_last:
            image = yield from steps.of_second_stage(second.enlarge(image, seed))
        edited = images.from_model(image, _size(base_image))
        used = mask
        if used is None and request.interpolation > 0 and _num_steps(request) > 0:
            used = softened(AFTER[request.mask_source](Finished(edited, base_image, find)), request.mask_blur)
        if used is not None:
            edited = mix(edited, base_image, request.interpolation, used, out=edited)
        shown = given_png or (images.encode_mask(used) if used is not None else b"")
        del used
        finished = region.pasted(edited, picture)
        if second is not None and is_enlarged_last:
            small = images.to_model(finished, graphs.spec.image_side)
            finished = images.from_model((yield from steps.of_second_stage(second.enlarge(small, seed))), size)
        del edited
        yield EditedImage(index, seed, images.encode_png(finished), shown)
    decoding_s = time.perf_counter() - denoised - steps.of_second_s
    yield Done(encoded - began, denoised - encoded, decoding_s, steps.of_second_s)


def open_picture(graphs: BaseGraphs, request: Request) -> Opened:
    """Decode and encode. Raises what `images.decode` and `images.decode_mask` raise."""
    picture = images.decode(request.image)
    given = _given(request, _size(picture))
    region = whole(_size(picture))
    if request.only_masked and given is not None:
        region = around(given, request.mask_padding, graphs.spec.image_side)
    given_png = b""
    if given is not None:
        given_png, given = images.encode_mask(given), np.ascontiguousarray(region.of(given))
    base_image = region.of(picture)
    latent = graphs.encode(images.to_model(base_image, graphs.spec.image_side))
    return Opened(picture, given, given_png, region, base_image, latent)


class Steps:
    """Counts the steps of both stages as those of one edit, and the seconds of the second."""

    def __init__(self, of_second: int) -> None:
        """`of_second` is how many the second stage will have for all seeds."""
        self._of_second, self._done, self._total = of_second, 0, of_second
        self.of_second_s = 0.0

    def of_first_stage(self, walk: Generator[Step | Warned, None, Latents]) -> Generator[Step | Warned, None, Latents]:
        """The walk's events, its steps with the total of both stages; answers with its latents."""
        while True:
            try:
                event = next(walk)
            except StopIteration as end:
                latents: Latents = end.value
                return latents
            if isinstance(event, Step):
                self._done, self._total = event.index + 1, event.total + self._of_second
                event = replace(event, total=self._total)
            yield event

    def of_second_stage(self, pictures: Iterator[ModelImage]) -> Generator[Step, None, ModelImage]:
        """A step for each picture; answers with the last one."""
        began = time.perf_counter()
        for picture in pictures:
            self._done += 1
            yield Step(self._done - 1, self._total)
            last = picture
        self.of_second_s += time.perf_counter() - began
        return last


def start(latents: Latents, noise: Latents, run: Run) -> Latents:
    """Latents noised to the run's first level (SDEdit's late start); as they are if there is no step to run."""
    return add_noise(latents, noise, float(run.levels[0])) if len(run) > 0 else latents


def _given(request: Request, size: tuple[int, int]) -> Mask | None:
    """The mask that came with the request, with its soft edge; None if its source is another."""
    if request.mask_source != "given":
        return None
    mask = images.decode_mask(request.mask, size)
    return softened(from_sdedit(mask) if request.mask_keeps else mask, request.mask_blur)


def _denoise(
    request: Request,
    run: Run,
    schedule: Schedule,
    guided_output: Callable[[Latents, int], Latents],
    latent: Latents,
    trajectory: Sequence[Latents] | None,
    mask: Mask | None,
    preview: Callable[[Latents], bytes],
) -> Generator[Step | Warned, None, Latents]:
    """The edited latents, one per seed, step by step. Outside of the mask every step is the base image, noised.

    Repeats begin anew from the last one's latents, kept to the base image outside, with fresh noise (SDEdit). With the
    trajectory of the base image's inversion, that takes the place of the noised base image (DiffEdit).
    """
    total = request.repeats * len(run)
    inside = to_latent(mask, (latent.shape[2], latent.shape[3])) if mask is not None else None
    # Seeds are signed in the contract and unsigned for the generator. A seed's noise is its own, whatever other seeds
    # are in the batch.
    generators = [np.random.default_rng(seed % 2**64) for seed in request.seeds]
    edited = np.repeat(latent, len(generators), axis=0)
    for repeat in range(request.repeats):
        noise = np.stack([rng.standard_normal(latent.shape[1:], dtype=np.float32) for rng in generators])
        latents, solver = start(edited, noise, run), SCHEDULERS[request.scheduler].solver()
        if trajectory is not None:
            latents = np.repeat(trajectory[0], len(generators), axis=0)
        for index, (timestep, level, next_level) in enumerate(run, start=repeat * len(run)):
            output = guided_output(latents, timestep)
            prediction = predict(output, latents, level, schedule.prediction_type)
            latents = solver.step(latents, prediction, level, next_level)
            if inside is not None:
                outside = add_noise(latent, noise, next_level) if trajectory is None else trajectory[index + 1]
                latents = inside * latents + (1 - inside) * outside
            wants_preview = request.preview_every > 0 and (index + 1) % request.preview_every == 0
            yield Step(index, total, preview(prediction.denoised) if wants_preview else b"")
        edited = latents if inside is None else inside * latents + (1 - inside) * latent
    return edited


def _denoise_beside(
    request: Request,
    schedule: Schedule,
    controlled: RunControlled,
    graphs: BaseGraphs,
    latent: Latents,
    mask: Mask | None,
    preview: Callable[[Latents], bytes],
    embed: Callable[[str], Context],
) -> Generator[Step | Warned, None, Latents]:
    """Prompt-to-Prompt's latents. Nothing is drawn, so they are the same for every seed; outside of the mask every
    step is the base image's own branch."""
    assert request.attention is not None
    run = SCHEDULERS[request.scheduler].run(schedule, request.num_inference_steps).late(request.strength)
    inside = to_latent(mask, (latent.shape[2], latent.shape[3])) if mask is not None else None
    texts = graphs.text(request.base_prompt), graphs.text(request.prompt)
    words = [Word(graphs.text(word), embed(word)) for word in request.attention.blend_words]
    blend = LocalBlend(words, *texts, len(run)) if words else None
    walk = edited_beside(
        latent,
        run,
        controlled,
        request.attention,
        texts,
        (embed(request.base_prompt), embed(request.prompt), embed(request.negative_prompt)),
        request.guidance_scale,
        schedule.prediction_type,
        lambda base, edited: edited if inside is None else inside * edited + (1 - inside) * base,
        blend,
    )
    while True:
        try:
            index, denoised = next(walk)
        except StopIteration as end:
            if blend is not None and (warning := blend.warning()):
                yield Warned(warning)
            edited: Latents = end.value
            return np.repeat(edited, len(request.seeds), axis=0)
        wants_preview = request.preview_every > 0 and (index + 1) % request.preview_every == 0
        yield Step(index, 2 * len(run), preview(denoised) if wants_preview else b"")


def _num_steps(request: Request) -> int:
    return num_late_steps(request.num_inference_steps, request.strength)


def _enlarged_size(size: tuple[int, int], side: tuple[int, int]) -> tuple[int, int]:
    """A picture's own size, or that of its aspect whose longer side reaches the second stage's."""
    scale = max(1.0, min(side[0] / size[0], side[1] / size[1]))
    return round(size[0] * scale), round(size[1] * scale)


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def _preview(graphs: BaseGraphs, denoised: Latents, size: tuple[int, int]) -> bytes:
    """PNG of the first picture, with the base image's aspect, and no larger than the model's own pictures."""
    shrink = min(1.0, max(graphs.spec.image_side) / max(size))
    small = max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1)
    return images.encode_png(images.from_model(graphs.preview(denoised[:1]), small))
