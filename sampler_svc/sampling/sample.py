"""The hot path: samples edited pictures from one picture and one prompt, with a denoiser that holds the weights.

It encodes, adds noise up to the edit's start, denoises under guidance, decodes and interpolates. A mask keeps the base
image outside of it, at every step and in the finished picture. With tuned weights and the rare tokens before the prompt
this is UniTune (arXiv 2210.09477); with the base weights it is SDEdit (Meng et al., 2022).
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler_svc.sampling.cancellation import stop_if, stopping
from sampler_svc.sampling.edit_steps import EditSteps
from sampler_svc.sampling.events import Done, EditedImage, OnEvent, Warned
from sampler_svc.sampling.interpolation import mix
from sampler_svc.sampling.local_blend import LocalBlend, Word
from sampler_svc.sampling.masks import AFTER, FinishedEdit
from sampler_svc.sampling.masks.shape import softened, to_latent
from sampler_svc.sampling.prompt_to_prompt import PromptToPrompt
from sampler_svc.sampling.request import Request, TermsOf, guidance_by_timestep
from sampler_svc.sampling.second_pass import second_pass
from sampler_svc.sampling.tools import PreparedEdit, Tools
from unitune import images
from unitune.diffusion.denoiser import predict
from unitune.diffusion.guidance import guided
from unitune.diffusion.schedule import Latents, add_noise
from unitune.diffusion.solvers import DenoisingRun
from unitune.errors import Internal
from unitune.working_size import size_of, too_small_for_second_pass


def sample(request: Request, tools: Tools, on_event: OnEvent, edit: PreparedEdit | None = None) -> None:
    """Sample one picture per seed, all seeds in one batch; super-resolution enlarges them one by one.

    Attempts at one edit share a prepared `edit`, made with the same tools. `on_event` is called after each step, for
    each result, and with Done at the end. A strength that leaves no step gives the autoencoder's round trip of the base
    image. Raises Cancelled (EDIT_CANCELLED), InvalidField for words or an alignment that do not fit the prompts, and
    what PreparedEdit raises.
    """
    began = time.perf_counter()
    edit = edit or PreparedEdit(request, tools)
    steps = EditSteps(edit, request, on_event)
    latent, terms = edit.latent, guidance_by_timestep(request, tools.embed, tools.schedule)

    if request.second_pass_steps > 0 and request.only_masked and edit.enlarged is None:
        on_event(Warned(too_small_for_second_pass(edit.size, edit.fit.size)))
    encoded = time.perf_counter()
    if request.attention is None:
        latents = denoise(latent, request, edit, terms, steps)
    else:
        latents = denoise_beside(latent, request, edit, steps, on_event)
    if not np.isfinite(latents).all():
        raise Internal("sampling left the range of numbers", reason="NOT_FINITE")

    denoised = time.perf_counter()
    for index in range(len(request.seeds)):
        on_event(finish(latents[index : index + 1], index, request, edit, terms, steps))
    decode_s = time.perf_counter() - denoised - steps.second_pass_s - steps.super_resolution_s
    denoise_s = denoised - encoded + steps.second_pass_s
    on_event(Done(encoded - began, denoise_s, decode_s, steps.super_resolution_s))


def denoise(latent: Latents, request: Request, edit: PreparedEdit, terms: TermsOf, steps: EditSteps) -> Latents:
    """The edited latents, one per seed, from the base image's (1, channels, h, w).

    Outside of the mask, every step has the noised base image, or with inversion the inverted latents (DiffEdit). A
    repeat starts from the latents of the one before, with fresh noise (SDEdit).
    """
    tools, schedule, scheduler = edit.tools, edit.tools.schedule, request.steps_by
    # An inpainting model keeps what it sees outside. With all steps it starts from noise: nothing hidden matters then.
    is_shown = edit.shown is not None
    inside = None if is_shown else _latent_mask(edit)
    run = scheduler.run(schedule.spaced(request.timestep_spacing), request.num_inference_steps).late(request.strength)
    inversion = edit.inversion(run) if request.inverted else None
    # Seeds are signed in the contract and unsigned for the generator. A seed's noise does not depend on other seeds in
    # the batch.
    generators = [np.random.default_rng(seed % 2**64) for seed in request.seeds]
    edited = np.repeat(latent, len(generators), axis=0)

    def draw() -> Latents:
        return np.stack([rng.standard_normal(latent.shape[1:], dtype=np.float32) for rng in generators])

    for _ in range(request.repeats):
        noise = draw()
        if inversion is not None:
            latents = np.repeat(inversion[0], len(generators), axis=0)
        elif is_shown and len(run) == request.num_inference_steps:
            latents = noise
        else:
            latents = start(edited, noise, run)
        solver = scheduler.solver(run, draw)
        for step, (timestep, level, next_level) in enumerate(run):
            stop_if(tools.cancelled)
            here, rescale = terms(timestep), request.guidance_rescale
            output = guided(edit.denoiser, latents, timestep, here, edit.base_denoiser, rescale)
            prediction = predict(output, latents, level, schedule.prediction_type)
            latents = solver.step(latents, prediction, level, next_level)
            if inside is not None:
                outside = add_noise(latent, noise, next_level) if inversion is None else inversion[step + 1]
                latents = inside * latents + (1 - inside) * outside
            steps.emit(prediction.denoised)
        edited = latents if inside is None else inside * latents + (1 - inside) * latent
    return edited


def denoise_beside(
    latent: Latents, request: Request, edit: PreparedEdit, steps: EditSteps, on_event: OnEvent
) -> Latents:
    """The same with Prompt-to-Prompt. It draws no noise, so all seeds have the same latents. Outside of the mask, every
    step has the latents of the base image's branch."""
    tools, attention = edit.tools, request.attention
    if attention is None or tools.controlled is None:
        raise ValueError("the request has attention to control, and there is no denoiser for it")
    graphs, embed = tools.graphs, tools.embed
    inside = _latent_mask(edit)
    run = request.steps_by.run(tools.schedule, request.num_inference_steps).late(request.strength)
    texts = graphs.text(request.base_prompt), graphs.text(request.prompt)
    words = [Word(graphs.text(word), embed(word)) for word in attention.blend_words]
    blend = LocalBlend(words, *texts, len(run)) if words else None
    contexts = embed(request.base_prompt), embed(request.prompt), embed(request.negative_prompt)
    denoiser, prediction_type = stopping(tools.controlled, tools.cancelled), tools.schedule.prediction_type
    tokens, guidance = graphs.spec.context_tokens, request.guidance_scale
    branches = PromptToPrompt(run, denoiser, attention, texts, contexts, tokens, guidance, prediction_type, blend)

    def keep(base: Latents, edited: Latents) -> Latents:
        return edited if inside is None else inside * edited + (1 - inside) * base

    edited = branches.edit(latent, keep, steps.emit)
    if blend is not None and (warning := blend.warning()):
        on_event(Warned(warning))
    return np.repeat(edited, len(request.seeds), axis=0)


def start(latents: Latents, noise: Latents, run: DenoisingRun) -> Latents:
    """Latents noised to the run's first level (SDEdit's late start); unchanged if the run has no step."""
    return add_noise(latents, noise, float(run.levels[0])) if len(run) > 0 else latents


def finish(
    latents: Latents, index: int, request: Request, edit: PreparedEdit, terms: TermsOf, steps: EditSteps
) -> EditedImage:
    """The result of the seed at `index`, from its edited latents (1, channels, h, w)."""
    tools, seed = edit.tools, request.seeds[index]
    image = tools.graphs.decode(latents)
    if not np.isfinite(image).all():
        raise Internal("the autoencoder's picture left the range of numbers", reason="NOT_FINITE")
    # A picture below super-resolution's size has no kept pixels at that size: it is finished first, then enlarged.
    is_enlarged_last = edit.result_size != edit.picture.shape[:2]
    if tools.super_resolution and not is_enlarged_last:
        image = steps.enlarge(image, seed)
    edited, mask = edit.fit.from_model(image, edit.size), edit.mask
    if mask is None and request.interpolation > 0 and request.num_steps > 0:
        mask = softened(
            AFTER[request.mask_source](FinishedEdit(edited, edit.base_image, tools.find)), request.mask_blur
        )
    if request.second_pass is not None:
        began = time.perf_counter()
        edited = second_pass(edited, mask, seed, request, edit, terms, steps)
        steps.second_pass_s += time.perf_counter() - began
    base, photograph = edit.base, edit.photograph
    shown = edit.given.png or (images.encode_mask(mask) if mask is not None else b"")
    own: NDArray[Any] = edited if is_enlarged_last else base.to_own(edited)
    del edited
    around = photograph.seen if is_enlarged_last else photograph.own
    if mask is not None:
        if request.interpolation > 0 and not is_enlarged_last:
            around = photograph.kept
        own = mix(own, around[edit.region.slices], request.interpolation, mask, out=own)
    del mask
    finished = edit.region.pasted(own, around)
    del own
    if is_enlarged_last:
        fit, photograph = tools.graphs.fit(size_of(finished)), photograph.resized(edit.result_size)
        finished = photograph.to_own(fit.from_model(steps.enlarge(fit.to_model(finished), seed), edit.result_size))
    return EditedImage(index, seed, photograph.file_of(finished), shown, working_size=edit.fit.size)


def _latent_mask(edit: PreparedEdit) -> Latents | None:
    """The mask at the latent's resolution, (1, 1, h, w), if it is known before the first step."""
    side = edit.latent.shape[2], edit.latent.shape[3]
    return to_latent(edit.mask, side, edit.fit) if edit.mask is not None else None
