"""The sampler's messages: SampleRequest to Request, and what happens to SampleEvent.

Beside the service and the program this is the only module of the sampler that knows unitune.v1.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from sampler_svc.engines.pool import Lease
from sampler_svc.model import Model
from sampler_svc.run_stages import StageNow
from sampler_svc.sampling.attempts import ScoredImage
from sampler_svc.sampling.events import EditedImage, Step, Warned
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.request import Request, SecondPass
from sampler_svc.sampling.super_resolution import SuperResolutionOptions
from sampler_svc.sampling.text_check import Texts
from unitune import __version__, image_pieces, store_paths
from unitune.base_model import Preset, SuperResolutionSpec
from unitune.choices import (
    DEFAULT_MASK_PADDING,
    DEFAULT_SECOND_PASS_SCALE,
    EDIT_METHODS,
    INVERSIONS,
    MAX_SEEDS,
    NO_ATTENTION_OF_INPAINTING,
    NO_SECOND_PASS_OF_INPAINTING,
    PROMPT_TO_PROMPT,
    UNCONDITIONAL_MODELS,
    mask_source_of,
    tuned_by,
)
from unitune.diffusion.solvers import DEFAULT_TCD_GAMMA
from unitune.errors import FailedPrecondition, InvalidField
from unitune.options import SAMPLING, Flat, check, check_base_model, put_words
from unitune.prompts import with_rare_tokens
from unitune.sampling_rules import Asked, check_rules
from unitune.server_info import base_model_info
from unitune.tuning_check import TunedModel
from unitune.v1 import edit_pb2, sampler_pb2, server_pb2

T = TypeVar("T")


def read_request(request: sampler_pb2.SampleRequest, model: Model, *, is_run: bool = True) -> Request:
    """What is to be sampled, every setting filled in. What is no run yet needs neither weights nor mask.

    Raises InvalidField naming what is wrong.
    """
    if request.HasField("weights"):
        store_paths.check_weights(request.weights.path, "weights.path")
    config, prompt = Flat(request.config), request.prompt
    if model.spec.is_inpainting and config.method == PROMPT_TO_PROMPT:
        raise InvalidField("config.method", PROMPT_TO_PROMPT, NO_ATTENTION_OF_INPAINTING)
    if model.spec.is_inpainting and config.second_pass:
        raise InvalidField("config.second_pass", "set", NO_SECOND_PASS_OF_INPAINTING)
    check(request, only=["prompt", "rare_tokens"])
    check(request.config, "config.")
    chosen = ("guidance_scale", "strength")
    needed = ("method", "scheduler", "num_inference_steps", "interpolation", *(() if config.automatic else chosen))
    for name in (*needed, *(("eta",) if config.method == "imagic" else ())):
        if not config.has(name):
            raise InvalidField(f"config.{name}", "unset", "it must be set")
    steps, most = config.num_inference_steps, len(model.schedule)
    _check("config.num_inference_steps", steps, steps <= most, f"it must be 1 to {most}")
    made_by = tuned_by(config.method, config.inversion)
    is_right = not is_run or request.HasField("weights") or made_by in ("", EDIT_METHODS[0])
    _check("weights", "unset", is_right, f"{made_by} samples with what its tuning made; give the weights")
    _check("seeds", len(request.seeds), 1 <= len(request.seeds) <= MAX_SEEDS, f"give 1 to {MAX_SEEDS} of them")
    if request.content_filter and model.content_filter is None:
        raise FailedPrecondition("this sampler has no content filter", reason="CONTENT_FILTER_MISSING")
    _check("preview_every", request.preview_every, request.preview_every >= 0, "it must be 0 or more")
    check_base_model(request.config, _base_model(model), "config.")
    has_mask = bool(request.mask) or not is_run
    check_rules(Asked(request.config, request.mask, config.method, prompt, has_mask=has_mask), "config")
    source = mask_source_of(config.mask_source, request.mask, config.mask_text)
    return Request(
        image=request.image,
        prompt=with_rare_tokens(request.rare_tokens, prompt),
        scheduler=config.scheduler,
        num_inference_steps=steps,
        guidance_scale=config.guidance_scale,
        strength=config.strength,
        interpolation=config.interpolation,
        seeds=tuple(request.seeds),
        preview_every=0 if request.content_filter else request.preview_every,  # nothing has checked a preview
        negative_prompt=config.negative_prompt,
        base_prompt=with_rare_tokens(request.rare_tokens, config.base_prompt),
        prompt_guidance_scale=config.prompt_guidance_scale,
        unconditional_on_base=config.unconditional_model == "base",
        base_mixture=config.base_mixture,
        untuned_prompt=prompt,
        mask_source=source,
        mask_text=config.mask_text,
        inverted=config.inverted,
        mask=request.mask,
        mask_keeps=config.mask_keeps,
        mask_blur=config.mask_blur,
        only_masked=config.only_masked,
        mask_padding=_chosen(config, "mask_padding", DEFAULT_MASK_PADDING),
        repeats=_chosen(config, "repeats", 1),
        attention=_attention(config) if config.method == PROMPT_TO_PROMPT else None,
        guidance_sigma_low=config.guidance_sigma_low,
        guidance_sigma_high=_chosen(config, "guidance_sigma_high", math.inf),
        timestep_spacing=config.timestep_spacing,
        guidance_rescale=config.guidance_rescale,
        tcd_gamma=_chosen(config, "tcd_gamma", DEFAULT_TCD_GAMMA),
        super_resolution=_super_resolution(config, model.spec.super_resolution),
        second_pass=_second_pass(config, model.spec.preset),
    )


def read_texts(request: sampler_pb2.SampleRequest, wanted: Request) -> Texts:
    """What of a run `CheckSample` reads."""
    config, tuning = Flat(request.config), Flat(request.tuning_config)
    is_placeholder = tuned_by(config.method, config.inversion) == "textual_inversion"
    is_made = request.HasField("weights") or not request.HasField("tuning_config")
    return Texts(
        wanted=wanted,
        rare_tokens=request.rare_tokens,
        base_prompt=config.base_prompt,
        bound=request.rare_tokens or tuning.rare_tokens,
        vectors=(tuning.rare_tokens, tuning.num_vectors) if is_placeholder else ("", 0),
        tuning=None if is_made else tuning,
        is_scored=config.automatic or config.clip_filter,
    )


def check_tuning(request: sampler_pb2.CheckTuningRequest, model: Model) -> list[str]:
    """Warnings of a tuning's config. Raises InvalidField for one that cannot be run on the base model."""
    check(request.config, "config.")
    spec = model.spec
    steps, stages = spec.schedule.num_train_timesteps, [stage.name for stage in spec.super_resolution]
    tuned = TunedModel(model.graphs.reader, spec.preset, steps, stages, spec.is_inpainting)
    return tuned.check(Flat(request.config))


def sampler_info(model: Model) -> sampler_pb2.SamplerInfo:
    """Base model, defaults and engine."""
    preset, stages = model.spec.preset, model.spec.super_resolution
    return sampler_pb2.SamplerInfo(
        base_model=_base_model(model),
        sampling_defaults=_defaults(preset, EDIT_METHODS[0], stages),
        method_defaults=[_defaults(preset.method_preset(method), method, stages) for method in EDIT_METHODS],
        engine=model.engine,
        version=__version__,
    )


def loading_event(lease: Lease) -> sampler_pb2.SampleEvent:
    """That an engine holds the weights."""
    return sampler_pb2.SampleEvent(loading=loading(lease))


def loading(lease: Lease) -> edit_pb2.EditEvent.Loading:
    """How an engine came to hold the weights."""
    return edit_pb2.EditEvent.Loading(warm=lease.warm, refit_s=lease.refit_s, probe_ratio=lease.probe_ratio)


def heartbeat_event(now: StageNow) -> sampler_pb2.SampleEvent:
    """What a run does now."""
    stage = f"STAGE_{now.stage.upper()}"
    beat = edit_pb2.EditEvent.Heartbeat(stage=stage, stage_s=now.stage_s, stage_left_s=now.left_s)
    return sampler_pb2.SampleEvent(heartbeat=beat)


def step_event(step: Step) -> sampler_pb2.SampleEvent:
    """A step, with its preview if it has one."""
    return sampler_pb2.SampleEvent(step=edit_pb2.EditEvent.Step(**vars(step)))


def result_events(result: EditedImage | ScoredImage, config: edit_pb2.SamplingConfig) -> list[sampler_pb2.SampleEvent]:
    """A result; one that is too large for a message is followed by the parts of its file."""
    image, parts = image_pieces.cut(_edited_image(result, config))
    return [
        sampler_pb2.SampleEvent(image=image),
        *(sampler_pb2.SampleEvent(image_part=part) for part in parts),
    ]


def warning_event(warned: Warned) -> sampler_pb2.SampleEvent:
    """A warning in plain words."""
    return sampler_pb2.SampleEvent(warning=edit_pb2.EditEvent.Warning(text=warned.text))


def _base_model(model: Model) -> server_pb2.BaseModel:
    return base_model_info(
        model.spec,
        has_clip_filter=model.clip_filter is not None,
        has_clipseg=model.clipseg is not None,
        has_content_filter=model.content_filter is not None,
        has_known_pictures=model.picture_check is not None,
    )


def _defaults(preset: Preset, method: str, stages: Sequence[SuperResolutionSpec]) -> edit_pb2.SamplingConfig:
    """What is unset of a config; what is in `super_resolution` counts where that is set."""
    words: dict[str, Any] = {
        "method": method,
        "scheduler": preset.scheduler,
        "num_inference_steps": preset.num_inference_steps,
        "guidance_scale": preset.guidance_scale,
        "strength": preset.strength,
        "interpolation": preset.interpolation,
        "prompt_guidance_scale": 0.0,
        "unconditional_model": UNCONDITIONAL_MODELS[0],
        "base_mixture": 0.0,
        "mask_blur": 0.0,
        "mask_padding": DEFAULT_MASK_PADDING,
        "repeats": 1,
    }
    if preset.guidance_sigma_low:
        words["guidance_sigma_low"] = preset.guidance_sigma_low
    if math.isfinite(preset.guidance_sigma_high):
        words["guidance_sigma_high"] = preset.guidance_sigma_high
    for name in ("timestep_spacing", "guidance_rescale"):
        if SAMPLING[name].is_read_by(method) and getattr(preset, name):
            words[name] = getattr(preset, name)
    if method == "imagic":
        words["eta"] = preset.eta
    if method == PROMPT_TO_PROMPT:
        words |= {
            "inversion": INVERSIONS[0],
            "cross_replace": preset.cross_replace,
            "self_replace": preset.self_replace,
        }
    if SAMPLING["second_pass"].is_read_by(method):
        words |= {
            "second_pass": True,
            "second_pass_strength": preset.second_pass_strength,
            "second_pass_scale": DEFAULT_SECOND_PASS_SCALE,
        }
    for stage in stages[:1]:
        words |= {
            "super_resolution": True,
            "super_resolution_width": stage.side[1],
            "super_resolution_noise_level": stage.noise_level,
            "super_resolution_steps": stage.num_inference_steps,
            "super_resolution_guidance_scale": stage.guidance_scale,
            "dynamic_thresholding": True,
        }
    return put_words(edit_pb2.SamplingConfig(), words)


def _super_resolution(config: Flat, stages: Sequence[SuperResolutionSpec]) -> SuperResolutionOptions | None:
    if not config.super_resolution or not stages:
        return None
    stage, widths = stages[0], [stage.side[1] for stage in stages]
    return SuperResolutionOptions(
        num_stages=1 + widths.index(_chosen(config, "super_resolution_width", widths[0])),
        noise_level=_chosen(config, "super_resolution_noise_level", stage.noise_level),
        num_inference_steps=_chosen(config, "super_resolution_steps", stage.num_inference_steps),
        guidance_scale=_chosen(config, "super_resolution_guidance_scale", stage.guidance_scale),
        is_thresholded=_chosen(config, "dynamic_thresholding", True),
    )


def _second_pass(config: Flat, preset: Preset) -> SecondPass | None:
    if not config.second_pass:
        return None
    return SecondPass(
        strength=_chosen(config, "second_pass_strength", preset.second_pass_strength),
        scale=_chosen(config, "second_pass_scale", DEFAULT_SECOND_PASS_SCALE),
    )


def _attention(config: Flat) -> AttentionEdit:
    default = AttentionEdit()
    return AttentionEdit(
        cross_replace=_chosen(config, "cross_replace", default.cross_replace),
        self_replace=_chosen(config, "self_replace", default.self_replace),
        inversion=config.inversion or default.inversion,
        alignment=config.alignment,
        word_weights=config.word_weights,
        blend_words=tuple(config.blend_words),
    )


def _chosen(config: Flat, name: str, default: T) -> T:
    """What the config says for an option, or a default."""
    return getattr(config, name) if config.has(name) else default


def _edited_image(found: EditedImage | ScoredImage, config: edit_pb2.SamplingConfig) -> edit_pb2.EditEvent.EditedImage:
    image = found.image if isinstance(found, ScoredImage) else found
    message = edit_pb2.EditEvent.EditedImage(
        index=image.index, seed=image.seed, png=image.png, mask=image.mask, blocked=image.is_blocked
    )
    message.working_height, message.working_width = image.working_size
    if isinstance(found, ScoredImage):
        scores = found.scores
        message.scores.CopyFrom(edit_pb2.Scores(**vars(scores), passed=found.passed))
        if config.automatic:
            message.strength, message.guidance_scale = found.strength, found.guidance_scale
    return message


def _check(field: str, value: object, is_right: bool, remedy: str) -> None:
    if not is_right:
        raise InvalidField(field, value, remedy)
