"""SamplerService: message in, sample, messages out.

Device work runs in one worker thread for each engine, so calls wait in the order they came; cancelling is a flag that
the work reads before each step.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import grpc

from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.engine import BASE
from sampler_svc.engines.pool import Lease
from sampler_svc.engines.weights import tuned_super_resolution, tuned_weights
from sampler_svc.mailbox import Mailbox
from sampler_svc.model import Model
from sampler_svc.sampling.attempts import Gated, attempts_of, sample_gated
from sampler_svc.sampling.conditioning import REFITS_NOTHING, Embed, embedding, null_embeddings, refuse_unbound
from sampler_svc.sampling.events import EditedImage, Event, Step, Warned
from sampler_svc.sampling.masks import Find
from sampler_svc.sampling.masks.contrast import finder
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import sample
from sampler_svc.sampling.super_resolution import Enlargement, SuperResolution
from sampler_svc.sampling.text_check import Texts, check_texts
from sampler_svc.sampling.tools import PreparedEdit
from unitune import image_pieces, store_paths, telemetry
from unitune.base_model import Preset, SuperResolutionSpec
from unitune.choices import (
    ALIGNMENTS,
    DEFAULT_MASK_PADDING,
    DEFAULT_RESAMPLES,
    EDIT_METHODS,
    INVERSIONS,
    MASK_SOURCES,
    MASKS_BEFORE,
    MASKS_OF_WORDS,
    MAX_ETA,
    MAX_GUIDANCE_SCALE,
    MAX_MASK_BLUR,
    MAX_MASK_PADDING,
    MAX_NOISE_LEVEL,
    MAX_REPEATS,
    MAX_RESAMPLES,
    MAX_SEEDS,
    MAX_SIGMA,
    MAX_SUPER_RESOLUTION_STEPS,
    MAX_UNTHRESHOLDED_GUIDANCE,
    MAX_WORD_WEIGHT,
    NULL_TEXT,
    PROMPT_TO_PROMPT,
    SUPER_RESOLUTION_OPTIONS,
    UNCONDITIONAL_MODELS,
    mask_source_of,
    tuned_by,
)
from unitune.diffusion.solvers import SCHEDULERS
from unitune.errors import FailedPrecondition, Internal, InvalidField, Unavailable, UniTuneError, to_status
from unitune.prompts import things, with_rare_tokens, without
from unitune.server_info import base_model_info
from unitune.serving import HEARTBEAT_S
from unitune.v1 import edit_pb2, sampler_pb2, sampler_pb2_grpc, tuning_pb2
from unitune.weight_store import WeightStore
from unitune.weights import TunedWeights

logger = logging.getLogger(__name__)

# Of embeddings that are kept to be read no more. One of Stable Diffusion is a quarter of a megabyte; null-text has one
# for each step.
EXTRAS_BYTES = 128 << 20
REPLICA_STATE_S = 1.0  # at most so long between two states of WatchReplica

T = TypeVar("T")


class SamplerService(sampler_pb2_grpc.SamplerServiceServicer):
    """The servicer. It is used from one event loop."""

    def __init__(self, model: Model, store: WeightStore) -> None:
        self._model, self._store = model, store
        self._workers = ThreadPoolExecutor(model.pool.size, "engine")
        self._waiting = 0
        self._is_draining = False
        self._changed: set[asyncio.Event] = set()
        self._kept: dict[str, TunedWeights] = {}  # by digest, without the denoiser's tensors
        self._kept_lock = threading.Lock()

    def register(self, server: grpc.aio.Server) -> list[str]:
        """Add the servicer to a server; its full service names."""
        sampler_pb2_grpc.add_SamplerServiceServicer_to_server(self, server)
        return [sampler_pb2.DESCRIPTOR.services_by_name["SamplerService"].full_name]

    async def drain(self) -> None:
        """Accept no more runs, and end the streams that would not end by themselves."""
        self._is_draining = True
        self._tell_watchers()

    async def close(self) -> None:
        """Wait for the worker threads, which tell the event loop what they do. Call it once the server is stopped."""
        await asyncio.to_thread(self._workers.shutdown, cancel_futures=True)

    async def GetSamplerInfo(self, request: sampler_pb2.GetSamplerInfoRequest, context: Any) -> sampler_pb2.SamplerInfo:
        """Base model, defaults and engine."""
        spec, preset, second = self._model.spec, self._model.spec.preset, self._model.spec.super_resolution
        has_gate, has_clipseg = self._model.gate is not None, self._model.clipseg is not None
        has_known = self._model.picture_check is not None
        return sampler_pb2.SamplerInfo(
            base_model=base_model_info(spec, has_gate=has_gate, has_clipseg=has_clipseg, has_known_pictures=has_known),
            sampling_defaults=_defaults(preset, EDIT_METHODS[0], second),
            method_defaults=[_defaults(preset.of(method), method, second) for method in EDIT_METHODS],
            engine=self._model.engine,
        )

    async def Sample(self, request: sampler_pb2.SampleRequest, context: Any) -> AsyncIterator[sampler_pb2.SampleEvent]:
        """Run in a worker thread; stream what it has to say."""
        wanted = self._read(request)
        mailbox: Mailbox[sampler_pb2.SampleEvent] = Mailbox(asyncio.get_running_loop())
        cancelled = threading.Event()
        asked = time.perf_counter()
        run = self._submit(lambda: self._sample(request, wanted, asked, mailbox, cancelled))
        try:
            async for event in mailbox.events(HEARTBEAT_S):
                if event is None:
                    yield sampler_pb2.SampleEvent(heartbeat=edit_pb2.EditEvent.Heartbeat())
                else:
                    yield sampler_pb2.SampleEvent(step=_step(event)) if isinstance(event, Step) else event
        finally:
            cancelled.set()
            run.cancel()  # no more than a wish once a worker has begun

    async def CheckSample(self, request: sampler_pb2.SampleRequest, context: Any) -> sampler_pb2.CheckSampleResponse:
        """What only tokenizers and encoders know of a run, beside the worker threads: it waits for no edit."""
        model, wanted = self._model, self._read(request, is_run=False)
        warnings = check_texts(model.graphs, model.gate, model.clipseg, _texts(request, wanted))
        if request.image and model.picture_check is not None:
            warnings += await asyncio.to_thread(model.picture_check.warnings_of, request.image)
        return sampler_pb2.CheckSampleResponse(warnings=warnings)

    async def Load(self, request: sampler_pb2.LoadRequest, context: Any) -> sampler_pb2.LoadResponse:
        """Lease an engine for the weights, if one is free, and give it back at once: edits come first.

        Embeddings alone need no engine, and are read.
        """
        _check("weights.digest", request.weights.digest, bool(request.weights.digest), "it must be set")
        store_paths.check_weights(request.weights.path, "weights.path")
        if self._waiting or not self._model.pool.is_free():
            return sampler_pb2.LoadResponse()

        def load() -> sampler_pb2.LoadResponse:
            manifest = self._store.get_manifest(request.weights.path, request.weights.digest)
            if manifest.method in REFITS_NOTHING:
                self._extras(request.weights)
                return sampler_pb2.LoadResponse()
            with self._lease(request.weights) as lease:
                return sampler_pb2.LoadResponse(loading=_loading(lease))

        return await asyncio.wrap_future(self._submit(load))

    async def Evict(self, request: sampler_pb2.EvictRequest, context: Any) -> sampler_pb2.EvictResponse:
        """Forget weights."""
        with self._kept_lock:
            self._kept.pop(request.digest, None)
        for pool in (self._model.pool, self._model.controlled, self._model.super_resolution):
            if pool is not None:
                await asyncio.to_thread(pool.evict, request.digest)
        self._tell_watchers()
        return sampler_pb2.EvictResponse()

    async def WatchReplica(
        self, request: sampler_pb2.WatchReplicaRequest, context: Any
    ) -> AsyncIterator[sampler_pb2.ReplicaState]:
        """The state now, on every change and once a second; the last one says that the replica drains."""
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            while True:
                changed.clear()
                yield self._state()
                if self._is_draining:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), REPLICA_STATE_S)
        finally:
            self._changed.discard(changed)

    def _state(self) -> sampler_pb2.ReplicaState:
        pool = self._model.pool
        return sampler_pb2.ReplicaState(
            resident=pool.resident(), engines=pool.size, waiting=self._waiting, draining=self._is_draining
        )

    def _sample(
        self,
        request: sampler_pb2.SampleRequest,
        wanted: Request,
        asked: float,
        mailbox: "Mailbox[sampler_pb2.SampleEvent]",
        cancelled: threading.Event,
    ) -> None:
        """One run, in a worker thread. It always ends with exactly one of `done` or `failed`."""
        timings = edit_pb2.Timings(queue_s=time.perf_counter() - asked)
        last = sampler_pb2.SampleEvent()
        try:
            made_by = tuned_by(request.config.method, request.config.inversion)
            tuned = request.weights if request.HasField("weights") and made_by else None
            refits = made_by not in REFITS_NOTHING
            with (
                self._lease(tuned if refits else None, is_controlled=wanted.attention is not None) as lease,
                self._second_stage(request.prompt, wanted, tuned, cancelled) as second,
            ):
                timings.refit_s = lease.refit_s
                if refits:
                    mailbox.put(sampler_pb2.SampleEvent(loading=_loading(lease)))
                extras = self._extras(tuned).of_method(made_by) if tuned is not None else None

                def on_event(event: Event | Gated) -> None:
                    if isinstance(event, Step):
                        mailbox.put(event)
                    elif isinstance(event, Warned):
                        mailbox.put(sampler_pb2.SampleEvent(warning=edit_pb2.EditEvent.Warning(text=event.text)))
                    elif isinstance(event, (EditedImage, Gated)):
                        image, parts = image_pieces.cut(_edited_image(event, request.config))
                        mailbox.put(sampler_pb2.SampleEvent(image=image))
                        for part in parts:
                            mailbox.put(sampler_pb2.SampleEvent(image_part=part))
                    else:
                        timings.encode_s, timings.denoise_s = event.encode_s, event.denoise_s
                        timings.decode_s, timings.super_resolution_s = event.decode_s, event.super_resolution_s

                self._edit(request, wanted, lease, extras, second, cancelled, on_event)
            timings.total_s = time.perf_counter() - asked
            last.done.CopyFrom(timings)
            telemetry.event(logger, "sampled", edit=request.edit, warm=lease.warm, seconds=timings.total_s)
        except UniTuneError as error:
            last.failed.CopyFrom(to_status(error))
        except Exception:
            telemetry.failure(logger, "sampling failed", edit=request.edit)
            last.failed.CopyFrom(to_status(Internal("the sampler made a mistake; see its log", reason="INTERNAL")))
        mailbox.put(last)
        mailbox.close()

    def _edit(
        self,
        request: sampler_pb2.SampleRequest,
        wanted: Request,
        lease: Lease,
        extras: TunedWeights | None,
        second: SuperResolution | None,
        cancelled: threading.Event,
        on_event: Callable[[Event | Gated], None],
    ) -> None:
        """One run, or as many attempts as the gate needs. `extras` are of the method's weights, if it has any."""
        model, config, words = self._model, request.config, request.rare_tokens
        embed: Embed = model.graphs.embed
        if extras is not None:
            refuse_unbound(extras, wanted)
            embed = embedding(model.graphs, extras, wanted.prompt, config.eta)
            words = extras.manifest.rare_tokens  # some methods have them within the prompt; no CLIP knows them
            if wanted.attention is not None:
                nulls = null_embeddings(model.graphs, extras, wanted.num_inference_steps)
                wanted = replace(wanted, attention=replace(wanted.attention, nulls=nulls))

        tools = model.tools(
            lease.engine.run,
            embed=embed,
            cancelled=cancelled.is_set,
            base_denoiser=model.pool.run_base if wanted.needs_base_weights else None,
            controlled=cast(ControlledEngine, lease.engine).run_controlled if wanted.attention is not None else None,
            find=self._finder(wanted, lease, cancelled),
            super_resolution=second,
        )
        if model.gate is None or not (config.automatic or config.gate):
            sample(wanted, tools, on_event)
            return
        tools = replace(tools, prepared=PreparedEdit(wanted, tools))
        resamples = config.resamples if config.HasField("resamples") else DEFAULT_RESAMPLES
        attempts = attempts_of(wanted, model.gate, is_automatic=config.automatic, resamples=resamples)
        sample_gated(
            lambda attempt, on_event: sample(attempt, tools, on_event),
            model.gate,
            without(request.prompt, words),
            attempts,
            on_event,
            tries_all=config.automatic,
        )

    def _finder(self, wanted: Request, lease: Lease, cancelled: threading.Event) -> Find | None:
        """What finds the things that the mask is of; None where the mask is of something else."""
        model, named = self._model, things(wanted.mask_text)
        if wanted.mask_source not in MASKS_OF_WORDS:
            return None
        if model.clipseg is not None and wanted.mask_source == "word":
            return partial(model.clipseg.find, things=named)
        # Tuned weights have learnt one picture, not what words mean.
        denoiser = lease.engine.run if lease.engine.weights == BASE else model.pool.run_base
        return finder(model.graphs, model.schedule, denoiser, named, wanted.untuned_prompt, cancelled.is_set)

    @contextlib.contextmanager
    def _second_stage(
        self, prompt: str, wanted: Request, weights: tuning_pb2.WeightsRef | None, cancelled: threading.Event
    ) -> Iterator[SuperResolution | None]:
        """The second stage, ready for an edit that asks for it, with an engine of its own. `prompt` is as it was sent,
        `weights` are those that the method samples with.

        A tuned one sees the words that it was tuned by: UniTune's rare tokens before the prompt, and Imagic's own
        embedding of the prompt (arXiv 2210.09276, section 3.2). That of the base model knows no word that a tuning
        binds, and does not see it.
        """
        model, asked = self._model, wanted.enlargement
        if asked is None or model.super_resolution is None or model.spec.super_resolution is None:
            yield None
            return
        base, graphs = model.super_resolution_base, model.graphs
        assert base is not None
        tuned = self._extras(weights) if weights is not None else None
        if weights is not None and tuned is not None and tuned.tunes_second_stage:
            context = embedding(graphs, tuned, wanted.prompt, eta=1.0)(wanted.prompt)
            leased = model.super_resolution.lease(
                weights.digest, lambda: tuned_super_resolution(self._read_weights(weights), base, model.spec.digest)
            )
        else:
            context = graphs.embed(without(prompt, tuned.manifest.rare_tokens if tuned is not None else ""))
            leased = model.super_resolution.lease(BASE, lambda: base)
        with leased as lease:
            empty = graphs.embed("")
            yield SuperResolution(
                model.spec.super_resolution, lease.engine.run, asked, context, empty, cancelled.is_set
            )

    def _lease(
        self, weights: tuning_pb2.WeightsRef | None, *, is_controlled: bool = False
    ) -> AbstractContextManager[Lease]:
        """`is_controlled` is for an engine with control over its attention, a ControlledEngine."""
        model = self._model
        pool = model.controlled if is_controlled else model.pool
        if weights is None:
            return pool.lease(BASE, lambda: model.base)

        return pool.lease(
            weights.digest, lambda: tuned_weights(self._read_weights(weights), model.base, model.spec.digest)
        )

    def _read_weights(self, weights: tuning_pb2.WeightsRef) -> TunedWeights:
        """The weights file; all of it but the denoiser's tensors is kept, so that a warm edit reads nothing."""
        tuned = self._store.get_weights(weights.path, weights.digest)
        with self._kept_lock:
            self._kept[weights.digest] = replace(tuned, tensors={})
            while len(self._kept) > 1 and sum(map(_extras_bytes, self._kept.values())) > EXTRAS_BYTES:
                del self._kept[next(iter(self._kept))]
        return tuned

    def _extras(self, weights: tuning_pb2.WeightsRef) -> TunedWeights:
        """What a weights file holds besides the denoiser's tensors."""
        with self._kept_lock:
            kept = self._kept.get(weights.digest)
        kept = kept or self._read_weights(weights)
        if kept.manifest.base_model != self._model.spec.digest:
            raise FailedPrecondition("the weights were tuned from another base model", reason="BASE_MODEL_MISMATCH")
        return kept

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queue work for a worker thread. Raises Unavailable (DRAINING) when no more is accepted."""
        if self._is_draining:
            raise Unavailable("this replica is shutting down; another one answers", reason="DRAINING")
        loop = asyncio.get_running_loop()

        def begin() -> T:
            loop.call_soon_threadsafe(self._count_waiting, -1)
            return work()

        def end(run: "Future[T]") -> None:
            loop.call_soon_threadsafe(self._count_waiting, -1 if run.cancelled() else 0)

        self._count_waiting(1)
        run = self._workers.submit(begin)
        run.add_done_callback(end)
        return run

    def _count_waiting(self, more: int) -> None:
        self._waiting += more
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for changed in self._changed:
            changed.set()

    def _read(self, request: sampler_pb2.SampleRequest, *, is_run: bool = True) -> Request:
        """Raises InvalidField naming what is wrong. What is no run yet needs neither weights nor mask."""
        if request.HasField("weights"):
            store_paths.check_weights(request.weights.path, "weights.path")
        config = request.config
        chosen = ("guidance_scale", "strength")
        for name in ("num_inference_steps", "interpolation", *(() if config.automatic else chosen)):
            if not config.HasField(name):
                raise InvalidField(f"config.{name}", "unset", "it must be set")
        _check(
            "config.method",
            config.method,
            config.method in EDIT_METHODS,
            f"it must be one of {', '.join(EDIT_METHODS)}",
        )
        schedulers = ", ".join(SCHEDULERS)
        _check("config.scheduler", config.scheduler, config.scheduler in SCHEDULERS, f"it must be one of {schedulers}")
        steps, scale, most = config.num_inference_steps, config.guidance_scale, len(self._model.schedule)
        _check("config.num_inference_steps", steps, 1 <= steps <= most, f"it must be 1 to {most}")
        is_right = 0 <= scale <= MAX_GUIDANCE_SCALE
        _check("config.guidance_scale", scale, is_right, f"it must be 0 to {MAX_GUIDANCE_SCALE}")
        for name in ("strength", "interpolation"):
            share = getattr(config, name)
            _check(f"config.{name}", share, 0 <= share <= 1, "it must be 0 to 1")
        is_right = config.method != "imagic" or (config.HasField("eta") and 0 <= config.eta <= MAX_ETA)
        _check("config.eta", config.eta if config.HasField("eta") else "unset", is_right, f"it must be 0 to {MAX_ETA}")
        made_by = tuned_by(config.method, config.inversion)
        is_right = not is_run or request.HasField("weights") or made_by in ("", EDIT_METHODS[0])
        _check("weights", "unset", is_right, f"{made_by} samples with what its tuning made; give the weights")
        _check("seeds", len(request.seeds), 1 <= len(request.seeds) <= MAX_SEEDS, f"give 1 to {MAX_SEEDS} of them")
        _check("preview_every", request.preview_every, request.preview_every >= 0, "it must be 0 or more")
        self._check_options(config)
        for name in ("automatic", "gate"):
            is_right = not getattr(config, name) or self._model.gate is not None
            _check(f"config.{name}", "true", is_right, "leave it unset: this base model has no gate")
        self._check_super_resolution(config)
        source = mask_source_of(config.mask_source, request.mask, config.mask_text)
        _check("config.mask_source", source, source in MASK_SOURCES, f"it must be one of {', '.join(MASK_SOURCES)}")
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
        is_right = source not in MASKS_OF_WORDS or bool(things(config.mask_text))
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
            enlargement=_enlargement(config, self._model.spec.super_resolution),
        )

    def _check_super_resolution(self, config: edit_pb2.SamplingConfig) -> None:
        """Raises InvalidField."""
        is_right = not config.super_resolution or self._model.super_resolution is not None
        _check("config.super_resolution", "true", is_right, "leave it unset: this base model has no second stage")
        unread = [name for name in SUPER_RESOLUTION_OPTIONS if config.HasField(name) and not config.super_resolution]
        for name in unread:
            _check(f"config.{name}", getattr(config, name), False, "leave it unset, or set super_resolution, too")
        scale = config.super_resolution_guidance_scale
        is_off = config.HasField("dynamic_thresholding") and not config.dynamic_thresholding
        is_right = not is_off or scale <= MAX_UNTHRESHOLDED_GUIDANCE
        remedy = f"it must be at most {MAX_UNTHRESHOLDED_GUIDANCE} without dynamic_thresholding"
        _check("config.super_resolution_guidance_scale", scale, is_right, remedy)

    @staticmethod
    def _check_options(config: edit_pb2.SamplingConfig) -> None:
        """The ranges of the options that are set. Raises InvalidField."""
        for name, low, high in (
            ("prompt_guidance_scale", 0, MAX_GUIDANCE_SCALE),
            ("base_mixture", 0, 1),
            ("mask_blur", 0, MAX_MASK_BLUR),
            ("mask_padding", 0, MAX_MASK_PADDING),
            ("repeats", 1, MAX_REPEATS),
            ("resamples", 0, MAX_RESAMPLES),
            ("cross_replace", 0, 1),
            ("self_replace", 0, 1),
            ("guidance_sigma_low", 0, MAX_SIGMA),
            ("guidance_sigma_high", 0, MAX_SIGMA),
            ("super_resolution_noise_level", 0, MAX_NOISE_LEVEL),
            ("super_resolution_steps", 1, MAX_SUPER_RESOLUTION_STEPS),
            ("super_resolution_guidance_scale", 0, MAX_GUIDANCE_SCALE),
        ):
            value = getattr(config, name)
            is_right = not config.HasField(name) or low <= value <= high
            _check(f"config.{name}", value, is_right, f"it must be {low} to {high}")
        for name, choices in (("inversion", INVERSIONS), ("alignment", ALIGNMENTS)):
            choice = getattr(config, name)
            _check(f"config.{name}", choice, choice in ("", *choices), f"it must be one of {', '.join(choices)}")
        for weight in config.word_weights.values():
            is_right = -MAX_WORD_WEIGHT <= weight <= MAX_WORD_WEIGHT
            _check("config.word_weights", weight, is_right, f"it must be {-MAX_WORD_WEIGHT} to {MAX_WORD_WEIGHT}")
        lowest, highest = config.guidance_sigma_low, config.guidance_sigma_high
        is_right = not config.HasField("guidance_sigma_high") or lowest < highest
        _check("config.guidance_sigma_high", highest, is_right, f"it must be above guidance_sigma_low, {lowest}")
        unconditional, models = config.unconditional_model, ", ".join(UNCONDITIONAL_MODELS)
        is_right = unconditional in ("", *UNCONDITIONAL_MODELS)
        _check("config.unconditional_model", unconditional, is_right, f"it must be one of {models}")


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


def _enlargement(config: edit_pb2.SamplingConfig, stage: SuperResolutionSpec | None) -> Enlargement | None:
    if not config.super_resolution or stage is None:
        return None

    def chosen(name: str, default: float) -> float:
        return getattr(config, name) if config.HasField(name) else default

    return Enlargement(
        noise_level=int(chosen("super_resolution_noise_level", stage.noise_level)),
        num_inference_steps=int(chosen("super_resolution_steps", stage.num_inference_steps)),
        guidance_scale=chosen("super_resolution_guidance_scale", stage.guidance_scale),
        is_thresholded=bool(chosen("dynamic_thresholding", True)),
    )


def _texts(request: sampler_pb2.SampleRequest, wanted: Request) -> Texts:
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
        is_gated=config.automatic or config.gate,
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


def _extras_bytes(tuned: TunedWeights) -> int:
    return sum(extra.nbytes for extra in tuned.extras.values())


def _check(field: str, value: object, is_right: bool, remedy: str) -> None:
    if not is_right:
        raise InvalidField(field, value, remedy)


def _loading(lease: Lease) -> edit_pb2.EditEvent.Loading:
    return edit_pb2.EditEvent.Loading(warm=lease.warm, refit_s=lease.refit_s, probe_ratio=lease.probe_ratio)


def _edited_image(found: EditedImage | Gated, config: edit_pb2.SamplingConfig) -> edit_pb2.EditEvent.EditedImage:
    image = found.image if isinstance(found, Gated) else found
    message = edit_pb2.EditEvent.EditedImage(index=image.index, seed=image.seed, png=image.png, mask=image.mask)
    if isinstance(found, Gated):
        scores = found.scores
        message.scores.CopyFrom(edit_pb2.Scores(**vars(scores), passed=found.passed))
        if config.automatic:
            message.strength, message.guidance_scale = found.strength, found.guidance_scale
    return message


def _step(step: Step) -> edit_pb2.EditEvent.Step:
    return edit_pb2.EditEvent.Step(**vars(step))
