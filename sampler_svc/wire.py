"""The sampler's messages: SampleRequest to Request, and what happens to SampleEvent.

Beside the service and the program this is the only module of the sampler that knows unitune.v1.
"""

import math

from sampler_svc.engines.pool import Lease
from sampler_svc.model import Model
from sampler_svc.sampling.attempts import ScoredImage
from sampler_svc.sampling.events import EditedImage, Step, Warned
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.super_resolution import SuperResolutionOptions
from sampler_svc.sampling.text_check import Texts
from unitune import image_pieces, store_paths
from unitune.base_model import Preset, SuperResolutionSpec
from unitune.choices import (
    DEFAULT_MASK_PADDING,
    EDIT_METHODS,
    INVERSIONS,
    MASKS_BEFORE,
    MASKS_OF_WORDS,
    MAX_SEEDS,
    MAX_UNTHRESHOLDED_GUIDANCE,
    NULL_TEXT,
    PROMPT_TO_PROMPT,
    SUPER_RESOLUTION_OPTIONS,
    UNCONDITIONAL_MODELS,
    mask_source_of,
    tuned_by,
)
from unitune.errors import InvalidField
from unitune.options import SAMPLING, check
from unitune.prompts import named_objects, with_rare_tokens
from unitune.server_info import base_model_info
from unitune.v1 import edit_pb2, sampler_pb2


def read_request(request: sampler_pb2.SampleRequest, model: Model, *, is_run: bool = True) -> Request:
    """What is to be sampled, every setting filled in. What is no run yet needs neither weights nor mask.

    Raises InvalidField naming what is wrong.
    """
    if request.HasField("weights"):
        store_paths.check_weights(request.weights.path, "weights.path")
    config = request.config
    check(config, "config.")
    chosen = ("guidance_scale", "strength")
    needed = ("method", "scheduler", "num_inference_steps", "interpolation", *(() if config.automatic else chosen))
    for name in (*needed, *(("eta",) if config.method == "imagic" else ())):
        if not SAMPLING[name].is_set(config):
            raise InvalidField(f"config.{name}", "unset", "it must be set")
    steps, scale, most = config.num_inference_steps, config.guidance_scale, len(model.schedule)
    _check("config.num_inference_steps", steps, steps <= most, f"it must be 1 to {most}")
    made_by = tuned_by(config.method, config.inversion)
    is_right = not is_run or request.HasField("weights") or made_by in ("", EDIT_METHODS[0])
    _check("weights", "unset", is_right, f"{made_by} samples with what its tuning made; give the weights")
    _check("seeds", len(request.seeds), 1 <= len(request.seeds) <= MAX_SEEDS, f"give 1 to {MAX_SEEDS} of them")
    _check("preview_every", request.preview_every, request.preview_every >= 0, "it must be 0 or more")
    lowest, highest = config.guidance_sigma_low, config.guidance_sigma_high
    is_right = not config.HasField("guidance_sigma_high") or lowest < highest
    _check("config.guidance_sigma_high", highest, is_right, f"it must be above guidance_sigma_low, {lowest}")
    for name in ("automatic", "gate"):
        is_right = not getattr(config, name) or model.clip_filter is not None
        _check(f"config.{name}", "true", is_right, "leave it unset: this base model has no gate")
    _check_super_resolution(config, model)
    source = mask_source_of(config.mask_source, request.mask, config.mask_text)
    is_right = not is_run or bool(request.mask) or source != "given"
    _check("mask", "unset", is_right, "mask_source given needs it")
    if config.method == PROMPT_TO_PROMPT:
        is_right = config.scheduler == "ddim"
        _check("config.scheduler", config.scheduler, is_right, f"{PROMPT_TO_PROMPT} inverts ddim alone")
        _check("config.base_prompt", "blank", bool(config.base_prompt.strip()), f"{PROMPT_TO_PROMPT} needs it")
    if made_by == NULL_TEXT:
        for name in ("only_masked", "negative_prompt", "automatic"):
            value = getattr(config, name)
            _check(f"config.{name}", value, not value, f"leave it unset with inversion {NULL_TEXT}")
    is_right = source not in MASKS_OF_WORDS or bool(named_objects(config.mask_text))
    _check("config.mask_text", "unset", is_right, f"mask_source {source} needs what the mask is of")
    is_right = not config.inverted or (
        config.method != PROMPT_TO_PROMPT
        and source in MASKS_BEFORE
        and config.scheduler == "ddim"
        and config.repeats <= 1
    )
    remedy = f"it needs scheduler ddim, one repeat, a mask known before, and another method than {PROMPT_TO_PROMPT}"
    _check("config.inverted", "true", is_right, remedy)
    return Request(
        image=request.image,
        prompt=with_rare_tokens(request.rare_tokens, request.prompt),
        scheduler=config.scheduler,
        num_inference_steps=steps,
        guidance_scale=scale,
        strength=config.strength,
        interpolation=config.interpolation,
        seeds=tuple(request.seeds),
        preview_every=request.preview_every,
        negative_prompt=config.negative_prompt,
        base_prompt=with_rare_tokens(request.rare_tokens, config.base_prompt),
        prompt_guidance_scale=config.prompt_guidance_scale,
        unconditional_on_base=config.unconditional_model == "base",
        base_mixture=config.base_mixture,
        untuned_prompt=request.prompt,
        mask_source=source,
        mask_text=config.mask_text,
        inverted=config.inverted,
        mask=request.mask,
        mask_keeps=config.mask_keeps,
        mask_blur=config.mask_blur,
        only_masked=config.only_masked,
        mask_padding=config.mask_padding if config.HasField("mask_padding") else DEFAULT_MASK_PADDING,
        repeats=config.repeats if config.HasField("repeats") else 1,
        attention=_attention(config) if config.method == PROMPT_TO_PROMPT else None,
        guidance_sigma_low=config.guidance_sigma_low,
        guidance_sigma_high=config.guidance_sigma_high if config.HasField("guidance_sigma_high") else math.inf,
        super_resolution=_super_resolution(config, model.spec.super_resolution),
    )


def read_texts(request: sampler_pb2.SampleRequest, wanted: Request) -> Texts:
    """What of a run `CheckSample` reads."""
    config, tuning = request.config, request.tuning_config
    is_placeholder = tuned_by(config.method, config.inversion) == "textual_inversion"
    is_made = request.HasField("weights") or not request.HasField("tuning_config")
    return Texts(
        wanted=wanted,
        rare_tokens=request.rare_tokens,
        base_prompt=config.base_prompt,
        bound=request.rare_tokens or tuning.rare_tokens,
        vectors=(tuning.rare_tokens, tuning.num_vectors) if is_placeholder else ("", 0),
        tuning=None if is_made else tuning,
        is_scored=config.automatic or config.gate,
    )


def sampler_info(model: Model) -> sampler_pb2.SamplerInfo:
    """Base model, defaults and engine."""
    spec, preset, second = model.spec, model.spec.preset, model.spec.super_resolution
    has_gate, has_clipseg, has_known = (
        part is not None for part in (model.clip_filter, model.clipseg, model.picture_check)
    )
    return sampler_pb2.SamplerInfo(
        base_model=base_model_info(spec, has_gate=has_gate, has_clipseg=has_clipseg, has_known_pictures=has_known),
        sampling_defaults=_defaults(preset, EDIT_METHODS[0], second),
        method_defaults=[_defaults(preset.method_preset(method), method, second) for method in EDIT_METHODS],
        engine=model.engine,
    )


def loading_event(lease: Lease) -> sampler_pb2.SampleEvent:
    """That an engine holds the weights."""
    return sampler_pb2.SampleEvent(loading=loading(lease))


def loading(lease: Lease) -> edit_pb2.EditEvent.Loading:
    """How an engine came to hold the weights."""
    return edit_pb2.EditEvent.Loading(warm=lease.warm, refit_s=lease.refit_s, probe_ratio=lease.probe_ratio)


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


def _check_super_resolution(config: edit_pb2.SamplingConfig, model: Model) -> None:
    """Raises InvalidField."""
    is_right = not config.super_resolution or model.super_resolution is not None
    _check("config.super_resolution", "true", is_right, "leave it unset: this base model has no second stage")
    unread = [name for name in SUPER_RESOLUTION_OPTIONS if config.HasField(name) and not config.super_resolution]
    for name in unread:
        _check(f"config.{name}", getattr(config, name), False, "leave it unset, or set super_resolution, too")
    scale = config.super_resolution_guidance_scale
    is_off = config.HasField("dynamic_thresholding") and not config.dynamic_thresholding
    is_right = not is_off or scale <= MAX_UNTHRESHOLDED_GUIDANCE
    remedy = f"it must be at most {MAX_UNTHRESHOLDED_GUIDANCE} without dynamic_thresholding"
    _check("config.super_resolution_guidance_scale", scale, is_right, remedy)


def _defaults(preset: Preset, method: str, second: SuperResolutionSpec | None) -> edit_pb2.SamplingConfig:
    return edit_pb2.SamplingConfig(
        method=method,
        scheduler=preset.scheduler,
        num_inference_steps=preset.num_inference_steps,
        guidance_scale=preset.guidance_scale,
        strength=preset.strength,
        interpolation=preset.interpolation,
        guidance_sigma_low=preset.guidance_sigma_low or None,
        guidance_sigma_high=preset.guidance_sigma_high if math.isfinite(preset.guidance_sigma_high) else None,
        prompt_guidance_scale=0.0,
        unconditional_model=UNCONDITIONAL_MODELS[0],
        base_mixture=0.0,
        mask_blur=0.0,
        mask_padding=DEFAULT_MASK_PADDING,
        repeats=1,
        eta=preset.eta if method == "imagic" else None,
        inversion=INVERSIONS[0] if method == PROMPT_TO_PROMPT else "",
        cross_replace=preset.cross_replace if method == PROMPT_TO_PROMPT else None,
        self_replace=preset.self_replace if method == PROMPT_TO_PROMPT else None,
        super_resolution_noise_level=second.noise_level if second is not None else None,
        super_resolution_steps=second.num_inference_steps if second is not None else None,
        super_resolution_guidance_scale=second.guidance_scale if second is not None else None,
        dynamic_thresholding=True if second is not None else None,
    )


def _super_resolution(
    config: edit_pb2.SamplingConfig, stage: SuperResolutionSpec | None
) -> SuperResolutionOptions | None:
    if not config.super_resolution or stage is None:
        return None

    def chosen(name: str, default: float) -> float:
        return getattr(config, name) if config.HasField(name) else default

    return SuperResolutionOptions(
        noise_level=int(chosen("super_resolution_noise_level", stage.noise_level)),
        num_inference_steps=int(chosen("super_resolution_steps", stage.num_inference_steps)),
        guidance_scale=chosen("super_resolution_guidance_scale", stage.guidance_scale),
        is_thresholded=bool(chosen("dynamic_thresholding", True)),
    )


def _attention(config: edit_pb2.SamplingConfig) -> AttentionEdit:
    default = AttentionEdit()
    return AttentionEdit(
        cross_replace=config.cross_replace if config.HasField("cross_replace") else default.cross_replace,
        self_replace=config.self_replace if config.HasField("self_replace") else default.self_replace,
        inversion=config.inversion or default.inversion,
        alignment=config.alignment,
        word_weights=dict(config.word_weights),
        blend_words=tuple(config.blend_words),
    )


def _edited_image(found: EditedImage | ScoredImage, config: edit_pb2.SamplingConfig) -> edit_pb2.EditEvent.EditedImage:
    image = found.image if isinstance(found, ScoredImage) else found
    message = edit_pb2.EditEvent.EditedImage(index=image.index, seed=image.seed, png=image.png, mask=image.mask)
    if isinstance(found, ScoredImage):
        scores = found.scores
        message.scores.CopyFrom(edit_pb2.Scores(**vars(scores), passed=found.passed))
        if config.automatic:
            message.strength, message.guidance_scale = found.strength, found.guidance_scale
    return message


def _check(field: str, value: object, is_right: bool, remedy: str) -> None:
    if not is_right:
        raise InvalidField(field, value, remedy)
