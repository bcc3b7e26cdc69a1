"""From an EditRequest to all that an edit needs: checked, with defaults filled in and its target found.

Pictures of the store are not in a plan: an edit may wait for minutes, and many may wait.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from gateway import validation
from gateway.fair_queue import FairQueue
from gateway.images import Images
from gateway.names import DEFAULT_TENANT, Name, parse, parse_parent
from gateway.principal import current
from gateway.request_cost import check_edit_cost, least_steps, most_tiles, super_resolution_stages
from gateway.samplers import Samplers
from gateway.sampling_options import (
    check_clip_filter_prompt,
    check_inverted,
    check_mask_words,
    check_options,
)
from gateway.tunings import Tunings, expired, not_found
from gateway.upstreams import CALL_S, refuse_mismatch
from unitune import working_size
from unitune.choices import BOUND_TO_NULL_TEXT, NULL_TEXT, PROMPT_TO_PROMPT, TUNING_METHODS, tuned_by
from unitune.diffusion.schedule import num_late_steps
from unitune.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidField,
    NotFound,
    ResourceExhausted,
    Unavailable,
    length_of,
)
from unitune.options import SAMPLING, TUNING, Flat, check, check_base_model, put_words, to_words
from unitune.picture_file import PictureInfo
from unitune.prompts import unknown_words, without
from unitune.v1.edit_pb2 import EditRequest, SamplingConfig
from unitune.v1.image_pb2 import Image
from unitune.v1.sampler_pb2 import SampleRequest, SamplerInfo
from unitune.v1.scope_pb2 import Scope
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import Tuning, TuningConfig, WeightsRef

LOOKS = 4  # pictures that samplers look at before edits, at a time


@dataclass(frozen=True)
class StoredMask:
    """A mask that was uploaded, as long as its file. It is read when it is needed."""

    name: Name
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes


GivenMask = bytes | StoredMask  # bytes are empty without a mask


@dataclass(frozen=True)
class EditPlan:
    """What will be done. `tuning` may still have to run; it is None for a method without one."""

    tenant: str
    tuning: Tuning | None
    request: EditRequest  # which may have the picture and the mask in it
    image: Name | None  # the picture in the store, if the request does not have it
    mask: StoredMask | None  # the same of the mask
    prompt: str
    config: SamplingConfig
    seeds: list[int]
    preview_every: int
    warnings: list[str]
    base_model: BaseModel
    omit_metadata: bool
    is_filtered: bool  # by the content filter

    @property
    def effective_strength(self) -> float:
        """The share of the steps that will run: steps are whole, and rounded down. 0 where it is chosen later."""
        steps = self.config.num_inference_steps
        return num_late_steps(steps, self.config.strength) / steps

    @property
    def least_steps(self) -> int:
        """The fewest steps that its run has."""
        return least_steps(self.config, len(self.seeds))

    @property
    def image_sha256(self) -> str:
        """The digest of the picture's file."""
        return self.image.id if self.image is not None else hashlib.sha256(self.request.image_data).hexdigest()

    @property
    def mask_sha256(self) -> str:
        """The digest of the mask's file; empty without one."""
        if self.mask is not None:
            return self.mask.name.id
        return hashlib.sha256(self.request.mask).hexdigest() if self.request.mask else ""


class Planner:
    """Makes plans. All that an edit is refused for is found here, before its first event."""

    def __init__(
        self,
        tunings: Tunings,
        images: Images,
        samplers: Samplers,
        is_filtered: Callable[[str], bool] = lambda tenant: False,
        *,
        most_steps: int = 0,
    ) -> None:
        """`is_filtered` says whether the content filter checks the edits of a tenant. `most_steps` of one edit; 0 means
        any number (`gateway.request_cost`)."""
        self._most_steps = most_steps
        self._is_filtered = is_filtered
        self._tunings = tunings
        self._images = images
        self._samplers = samplers
        self._looks = FairQueue(LOOKS)

    async def settle(self, request: EditRequest) -> TuningConfig | None:
        """The config with which an edit of an image would tune; None for a method without a tuning. Makes nothing.

        Raises what Edit refuses of settings and texts; neither the picture is looked at nor what the prompt must
        mention.
        """
        check(request)
        sampler = await self._checked(request, request.mask)
        sampling = self._sampling(request, request.mask, _method_of(request), sampler)
        config = await self._settled(request, sampling)
        await self._samplers.check_sample(_unsampled(request, sampling, config))
        return config

    async def plan(self, request: EditRequest) -> EditPlan:
        """Check a request and find its target; an image's tuning is found, or made unless the request is to be
        validated only. Raises as Edit does.
        """
        check(request)
        mask, carrier = await self._mask(request), request
        sampler = await self._checked(request, mask)
        image: Name | None
        if request.WhichOneof("target") == "tuning":
            tenant, named = await self._named(request)
            request = completed(request, named.config)
            method, tuning, warnings = await self._of_tuning(request, mask, named, sampler.base_model)
            image = parse(named.image, "images")
            config = self._sampling(request, mask, method, sampler)
            if Flat(config).second_pass:
                picture = await self._images.find(image)
                self._check_tiles(request, config, picture, sampler.base_model)
            unsampled = _unsampled(
                request, config, tuning.config if tuning else None, tuning.weights if tuning else None
            )
            warnings = [*warnings, *await self._samplers.check_sample(unsampled)]
        else:
            config = self._sampling(request, mask, _method_of(request), sampler)
            tenant, tuning, image, warnings = await self._of_image(request, mask, config, sampler.base_model)
        if tuning is not None:
            refuse_mismatch(tuning.base_model, sampler.base_model.digest)
        return EditPlan(
            is_filtered=self._is_filtered(tenant),
            tenant=tenant,
            tuning=tuning,
            request=carrier,
            image=image,
            mask=mask if isinstance(mask, StoredMask) else None,
            prompt=request.prompt,
            config=config,
            seeds=seeds_of(request),
            preview_every=request.preview_every,
            warnings=[
                *warnings_of(
                    words_of(request, tuning.config.rare_tokens if tuning is not None else ""),
                    sampler.base_model.vocabulary,
                ),
                *warnings,
                *warnings_of_steps(config),
            ],
            base_model=sampler.base_model,
            omit_metadata=request.omit_metadata,
        )

    async def pictures(self, plan: EditPlan) -> tuple[bytes, bytes]:
        """The files of a plan's picture and of its mask, which is empty without one.

        Raises NotFound (IMAGE_NOT_FOUND) for one that was deleted since, and DataLoss (IMAGE_CORRUPT).
        """
        image = plan.request.image_data if plan.image is None else await self._images.read(plan.image)
        mask = plan.request.mask if plan.mask is None else await self._images.read(plan.mask.name)
        return image, mask

    def _sampling(self, request: EditRequest, mask: GivenMask, method: str, sampler: SamplerInfo) -> SamplingConfig:
        """The sampling's settings, filled in. Raises InvalidArgument (COST_LIMIT)."""
        config = _filled(request, mask, method, sampler)
        stages = super_resolution_stages(config, sampler.base_model)
        check_edit_cost(config, len(seeds_of(request)), self._most_steps, stages=stages)
        return config

    async def check_tiles(self, request: EditRequest, picture: Image | PictureInfo) -> None:
        """Raise InvalidArgument (COST_LIMIT) for an edit of an image whose second pass over it has too many tiles."""
        sampler = await self._samplers.sampler_info()
        config = self._sampling(request, request.mask, _method_of(request), sampler)
        self._check_tiles(request, config, picture, sampler.base_model)

    def _check_tiles(
        self, request: EditRequest, config: SamplingConfig, picture: Image | PictureInfo, base_model: BaseModel
    ) -> None:
        tiles = most_tiles(config, (picture.height, picture.width), base_model)
        stages = super_resolution_stages(config, base_model)
        check_edit_cost(config, len(seeds_of(request)), self._most_steps, tiles=tiles, stages=stages)

    async def _mask(self, request: EditRequest) -> GivenMask:
        """The mask of the request, or the uploaded one that it names."""
        if not request.mask_image:
            return request.mask
        if request.mask:
            raise InvalidField("mask_image", request.mask_image, "leave it unset beside mask, or leave mask unset")
        name = parse(request.mask_image, "images", "mask_image")._replace(tenant=_tenant_of(request))
        return StoredMask(name, (await self._images.find(name)).size_bytes)

    async def _checked(self, request: EditRequest, mask: GivenMask) -> SamplerInfo:
        """The sampler, whose base model has what the request's settings ask of one. Raises as Edit does."""
        _check(request, mask)
        sampler = await self._samplers.sampler_info()
        if self._is_filtered(_tenant_of(request)) and not sampler.base_model.has_content_filter:
            raise FailedPrecondition(
                "the edits of this tenant must be checked, and the sampler has no content filter: "
                "its operator gives it one by UNITUNE_CONTENT_FILTER",
                reason="CONTENT_FILTER_MISSING",
            )
        check_base_model(request.config, sampler.base_model, "config.")
        check_mask_words(request.config, mask, sampler.base_model, "config")
        return sampler

    async def _named(self, request: EditRequest) -> tuple[str, Tuning]:
        """Tenant and tuning of an edit with a tuning that is there."""
        name = parse(request.tuning, "tunings", "tuning")
        tenant = _tenant_of(request)
        if tenant != name.tenant:
            raise not_found(request.tuning)
        return tenant, await self._tunings.get(request.tuning)

    async def _of_tuning(
        self, request: EditRequest, mask: GivenMask, tuning: Tuning, base_model: BaseModel
    ) -> tuple[str, Tuning | None, Sequence[str]]:
        """Method, tuning if its weights are used, and the image's warnings. The request is a completed one."""
        asked, made_by = Flat(request.config), Flat(tuning.config).method
        method = asked.method or (PROMPT_TO_PROMPT if made_by == NULL_TEXT else made_by)
        uses_weights = tuned_by(method, asked.inversion)
        if uses_weights and uses_weights != made_by:
            name, leave = ("inversion", "choose another") if uses_weights == NULL_TEXT else ("method", "leave it unset")
            remedy = f"{tuning.name} was made by {made_by}; {leave}, or edit the image"
            raise InvalidField(f"config.{SAMPLING[name].path}", getattr(asked, name), remedy)
        check_options(request.config, mask, "config", method, request.prompt)
        if uses_weights:
            check_words(request, tuning.config)
        if uses_weights and tuning.state == Tuning.STATE_EXPIRED:
            raise expired(tuning.name)
        if uses_weights and tuning.state != Tuning.STATE_READY:
            state = Tuning.State.Name(tuning.state)
            raise FailedPrecondition(
                f"{tuning.name} is {state}, an edit needs STATE_READY: wait for it with WatchTuning, or edit its image",
                reason="TUNING_NOT_READY",
                metadata={"name": tuning.name, "state": state},
            )
        picture = await self._whole(parse(tuning.image, "images"))
        await self._check_mask(request, mask, picture)
        warnings = [*picture.warnings, *_warnings_of_second_pass(picture, request.config, base_model)]
        return method, tuning if uses_weights else None, warnings

    async def _whole(self, image: Name) -> Image:
        """A picture whose file is there and undamaged."""
        await self._images.read(image)
        return await self._images.find(image)

    async def _of_image(
        self, request: EditRequest, mask: GivenMask, sampling: SamplingConfig, base_model: BaseModel
    ) -> tuple[str, Tuning | None, Name | None, Sequence[str]]:
        """Tenant, tuning, image unless the request has it, and warnings; the tuning is found or made, once all is found
        to be right.

        Of a request that is to be validated only it is found, or stands for the one that would be made.
        """
        config = await self._settled(request, sampling)
        if config is not None:
            check_words(request, config)
        tenant = _tenant_of(request)
        picture: Image | PictureInfo
        image: Name | None = None
        if request.WhichOneof("target") == "image":
            # Another tenant's name looks like one that does not exist.
            name = image = parse(request.image, "images", "image")._replace(tenant=tenant)
            picture = await self._whole(name)
            await self._check_mask(request, mask, picture)
            self._check_tiles(request, sampling, picture, base_model)
        elif mask or config is None or request.validate_only or Flat(sampling).second_pass:
            with in_field("image_data"):
                picture = await self._images.check(tenant, request.image_data)
            await self._check_mask(request, mask, picture)
            self._check_tiles(request, sampling, picture, base_model)
        unsampled = _unsampled(request, sampling, config)
        warnings = await self._samplers.check_sample(unsampled)
        if config is not None and request.WhichOneof("target") == "image_data":
            if request.validate_only:
                name = Name(tenant, "images", hashlib.sha256(request.image_data).hexdigest())
            else:
                with in_field("image_data"):
                    picture = await self._images.keep(tenant, request.image_data)
                name = parse(picture.name, "images")
        if base_model.has_known_pictures:
            # Not looked at in time, it is edited without a warning.
            with suppress(Unavailable, ResourceExhausted, TimeoutError):
                async with asyncio.timeout(2 * CALL_S), self._looks.place(tenant):
                    warnings = await self._looked_at(unsampled, request, image)
        of_shape = [] if Flat(sampling).only_masked else working_size.warnings_of((picture.height, picture.width))
        of_second_pass = _warnings_of_second_pass(picture, sampling, base_model)
        warnings = [*picture.warnings, *of_shape, *of_second_pass, *warnings]
        if config is None:
            return tenant, None, image, warnings
        if request.validate_only:
            tuning = await self._tunings.found_or_planned(tenant, name, picture, config)
        else:
            try:
                tuning = await self._tunings.find_or_make(tenant, name, config, needs_tuner=True)
            except NotFound:  # another tuning of the picture was deleted meanwhile, and the picture with it
                if request.WhichOneof("target") != "image_data":
                    raise
                await self._images.keep(tenant, request.image_data)
                tuning = await self._tunings.find_or_make(tenant, name, config, needs_tuner=True)
        return tenant, tuning, image, warnings

    async def _looked_at(self, unsampled: SampleRequest, request: EditRequest, image: Name | None) -> list[str]:
        """The warnings of a check that looks at the picture, too."""
        whole = SampleRequest()
        whole.CopyFrom(unsampled)
        whole.image = request.image_data if image is None else await self._images.read(image)
        return await self._samplers.check_sample(whole)

    async def _settled(self, request: EditRequest, sampling: SamplingConfig) -> TuningConfig | None:
        """The tuning that an edit of an image needs, with every default filled in; `sampling` is the edit's own."""
        if not _tuned_by(sampling):
            return None
        current().require([Scope.SCOPE_TUNE], "an edit that may make a tuning")
        return await self._tunings.settled(_tuning_config(request, sampling), "tuning_config")

    async def _check_mask(self, request: EditRequest, mask: GivenMask, picture: Image | PictureInfo) -> None:
        if mask:
            file = mask.name if isinstance(mask, StoredMask) else mask
            with in_field("mask_image") if request.mask_image else nullcontext():
                await self._images.check_mask(_tenant_of(request), file, picture, keeps=request.config.mask.keeps)


def words_of(request: EditRequest, bound: str) -> str:
    """All that an edit's prompts say, without the words that its tuning binds."""
    config = request.config
    return without(" ".join((request.prompt, config.base_prompt, config.negative_prompt)), bound)


def rare_tokens_before(tuning: TuningConfig | None) -> str:
    """What the sampler puts before the prompt: UniTune's words. Other methods' prompts have theirs in them already."""
    return tuning.rare_tokens if tuning is not None and Flat(tuning).method == "unitune" else ""


def _unsampled(
    request: EditRequest, sampling: SamplingConfig, tuning: TuningConfig | None, weights: WeightsRef | None = None
) -> SampleRequest:
    """An edit's run for the sampler to check, without its pictures; `weights` of a tuning that is READY."""
    return SampleRequest(
        weights=weights,
        rare_tokens=rare_tokens_before(tuning),
        prompt=request.prompt,
        config=sampling,
        seeds=seeds_of(request),
        preview_every=request.preview_every,
        tuning_config=tuning,
    )


def warnings_of(prompt: str, vocabulary: Sequence[str]) -> list[str]:
    """At most one warning, naming the prompt's words that the base model does not know and the nearest that it does."""
    unknown = unknown_words(prompt, vocabulary)
    shown = [f"{word} (nearest: {', '.join(nearest)})" if nearest else word for word, nearest in unknown]
    return [f"the base model does not know: {', '.join(shown)}"] if shown else []


def warnings_of_steps(config: SamplingConfig) -> list[str]:
    """A warning where a strength leaves no step, unless that is what 0 asks for."""
    asked, steps, warnings = Flat(config), config.num_inference_steps, []
    for name, nothing in (("strength", "nothing is edited"), ("second_pass_strength", "there is no second pass")):
        strength = getattr(asked, name)  # 0 where it is unset, as with automatic
        if strength > 0 and num_late_steps(steps, strength) == 0:
            warnings.append(
                f"{name} {strength:g} of {steps} steps leaves none, so {nothing}: "
                f"set config.{SAMPLING[name].path} to {1 / steps:.2g} or more, or raise config.num_inference_steps"
            )
    return warnings


def _warnings_of_second_pass(
    picture: Image | PictureInfo, sampling: SamplingConfig, base_model: BaseModel
) -> list[str]:
    """A warning where one is asked for and there is none. With only_masked the sampler knows what is edited."""
    asked, size = Flat(sampling), (picture.height, picture.width)
    if not asked.second_pass or asked.only_masked:
        return []
    into = working_size.working_size(size, (base_model.height, base_model.width), base_model.size_step)
    if working_size.leaves_detail(size, working_size.fit(size, into)):
        return []
    return [working_size.too_small_for_second_pass(size, into)]


def _check(request: EditRequest, mask: GivenMask) -> None:
    """What is wrong in the request alone, beyond each of its own fields."""
    validation.check_sampling_config(request.config, "config")
    check_inverted(request.config, request.seeds)
    target, asked = request.WhichOneof("target"), Flat(request.config).method
    if target is None:
        raise InvalidField("target", "unset", "set one of tuning, image or image_data")
    if request.tuning_config.ByteSize() and (target == "tuning" or (asked and not _tuned_by(request.config))):
        why = "the tuning has its own" if target == "tuning" else f"{asked} makes no tuning"
        raise InvalidField("tuning_config", "set", f"leave it unset: {why}")
    if target != "tuning":
        method = _method_of(request)
        needed = tuned_by(method, Flat(request.config).inversion)
        validation.check_tuning_config(request.tuning_config, "tuning_config", needed)
        check_options(request.config, mask, "config", method, request.prompt)


def seeds_of(request: EditRequest) -> list[int]:
    """The seeds to use: one picture from seed 0 if there are none."""
    return list(request.seeds) or [0]


def _tenant_of(request: EditRequest) -> str:
    """The tenant whose edit it is: that of the parent, or of the target."""
    if asked := parse_parent(request.parent):
        return asked
    target = request.WhichOneof("target")
    if target in ("tuning", "image"):
        return parse(getattr(request, target), f"{target}s", target).tenant
    return DEFAULT_TENANT


def check_words(request: EditRequest, tuning: TuningConfig) -> None:
    """The prompt against the tuning's words: it must have what the method needs, and more for a CLIP filter."""
    validation.check_edit_of(tuning, request.prompt)
    check_clip_filter_prompt(request.config, request.prompt, tuning.rare_tokens)


def _tuned_by(config: SamplingConfig) -> str:
    """The method of the tuning that an edit with such a config samples with, as `tuned_by`."""
    asked = Flat(config)
    return tuned_by(asked.method, asked.inversion)


def _method_of(request: EditRequest) -> str:
    """The method of an edit of an image. Raises InvalidField when the request names two."""
    asked, tunes_by = Flat(request.config), Flat(request.tuning_config).method
    if tunes_by in TUNING_METHODS and tunes_by != tuned_by(asked.method or tunes_by, asked.inversion):
        inversion = f"config.{SAMPLING['inversion'].path}"
        remedy = f"leave it unset: it follows from config.method, which is {asked.method or 'unset'}, and {inversion}"
        raise InvalidField("tuning_config.method", tunes_by, remedy)
    return str(asked.method or tunes_by or TUNING_METHODS[0])


def completed(request: EditRequest, tuning: TuningConfig) -> EditRequest:
    """The request with all that an edit with null-text's embeddings has from their tuning; otherwise as it is.

    Raises InvalidField for what it says itself, and otherwise.
    """
    config = Flat(request.config)
    is_other = config.method not in ("", PROMPT_TO_PROMPT) or config.inversion not in ("", NULL_TEXT)
    if Flat(tuning).method != NULL_TEXT or is_other:
        return request
    whole = EditRequest()
    whole.CopyFrom(request)
    bound = {name: getattr(tuning, name) for name in BOUND_TO_NULL_TEXT}
    _refuse_others(
        to_words(request.config),
        bound,
        lambda name: f"config.{SAMPLING[name].path}",
        lambda value: f"{request.tuning} is for {_shown(value)}; or edit the image, which tunes anew",
    )
    put_words(whole.config, {"method": PROMPT_TO_PROMPT, "inversion": NULL_TEXT, **bound})
    return whole


def _filled(request: EditRequest, mask: GivenMask, method: str, sampler: SamplerInfo) -> SamplingConfig:
    """The sampling's settings with the base model's defaults for the method, and with those of its fast LoRA."""
    asked, defaults, base_model = SamplingConfig(), SamplingConfig(), sampler.base_model
    asked.CopyFrom(request.config)
    defaults.CopyFrom(validation.defaults_of(method, sampler.method_defaults, sampler.sampling_defaults))
    if asked.fast and base_model.fast_lora and not asked.fast_lora:
        asked.fast_lora = True
        try:
            check_options(asked, mask, "config", method, request.prompt)
        except InvalidField as error:  # it was not asked for by its own name
            raise InvalidField("config.fast", "true", error.metadata["remedy"]) from None
    if asked.fast_lora:
        defaults.MergeFrom(base_model.fast_lora_defaults)
    filled = validation.fill_sampling_config(asked, mask, defaults, method)
    if filled.fast:
        filled.num_inference_steps, filled.fast = base_model.fast_steps, False
    return filled


def _tuning_config(request: EditRequest, sampling: SamplingConfig) -> TuningConfig:
    """The config of the tuning that an edit of an image needs. Imagic tunes for the edit's own prompt, and null-text
    for what its embeddings are bound to."""
    config, method = TuningConfig(), _tuned_by(sampling)
    config.CopyFrom(request.tuning_config)
    of_edit = {"imagic": {"prompt": request.prompt}, NULL_TEXT: {n: getattr(sampling, n) for n in BOUND_TO_NULL_TEXT}}
    bound = of_edit.get(method, {})
    _refuse_others(
        to_words(request.tuning_config),
        bound,
        lambda name: f"tuning_config.{TUNING[name].path}",
        lambda value: "it is the edit's own",
    )
    return put_words(config, {"method": method, **bound})


def _refuse_others(
    asked: Mapping[str, Any],
    bound: Mapping[str, Any],
    place: Callable[[str], str],
    why: Callable[[Any], str],
) -> None:
    """Refuse options that are asked for with other values than what they are bound to."""
    for name, value in bound.items():
        if name in asked and asked[name] != value:
            raise InvalidField(place(name), _shown(asked[name]), f"leave it unset: {why(value)}")


def _shown(value: str | float) -> str:
    """A setting, as an error shows it; a prompt by its length."""
    return length_of(value) if isinstance(value, str) else str(value)


@contextmanager
def in_field(field: str) -> Iterator[None]:
    """Says what a picture is refused for of the field in which this request carries it."""
    try:
        yield
    except InvalidArgument as error:
        raise error.in_field(field) from None
