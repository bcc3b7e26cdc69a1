"""SamplerService: reads a request, samples, sends events.

Device work runs in one worker thread for each engine, so calls are served in their order. Cancelling sets a flag that
the work reads before each step.
"""

import asyncio
import contextlib
import contextvars
import itertools
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import grpc

from sampler_svc import wire
from sampler_svc.decoded_weights import DecodedWeights
from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.engine import BASE, WeightSet
from sampler_svc.engines.pool import Lease
from sampler_svc.engines.weights import tuned_super_resolution, tuned_weights, tunings_of, with_fast_lora
from sampler_svc.mailbox import Mailbox
from sampler_svc.model import Model, SuperResolutionStage
from sampler_svc.run_stages import DECODING, LOADING, PREPARING, SAMPLING, RunStages
from sampler_svc.run_times import RunTimes
from sampler_svc.sampling.attempts import ScoredImage, attempts_of, sample_filtered
from sampler_svc.sampling.conditioning import REFITS_NOTHING, Embed, embedding, null_embeddings, refuse_unbound
from sampler_svc.sampling.events import EditedImage, Event, Step, Warned
from sampler_svc.sampling.masks import Find
from sampler_svc.sampling.masks.contrast import finder
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import sample
from sampler_svc.sampling.super_resolution import SuperResolution
from sampler_svc.sampling.text_check import check_texts
from sampler_svc.sampling.tools import PreparedEdit
from sampler_svc.stored_weights import StoredWeights
from unitune import images, metrics, store_paths, telemetry
from unitune.choices import DEFAULT_RESAMPLES, MASKS_OF_WORDS, tuned_by
from unitune.errors import DataLoss, Internal, InvalidField, Unavailable, UniTuneError, to_status
from unitune.object_store import ObjectStore
from unitune.options import Flat
from unitune.prompts import named_objects, without
from unitune.serving import HEARTBEAT_S
from unitune.v1 import edit_pb2, sampler_pb2, sampler_pb2_grpc, tuning_pb2
from unitune.weights import TunedWeights

logger = logging.getLogger(__name__)

REPLICA_STATE_S = 1.0  # longest time between two states of WatchReplica
LEAST_STATE_S = 0.1  # shortest
KEPT_TOLD = 100  # tunings in each of them, of those whose decoded weights are kept

STAGES = ("refit", "encode", "denoise", "decode", "super_resolution")  # of Timings, that metrics tell

T = TypeVar("T")


@dataclass
class _Run:
    """What waits for a worker thread, or has one."""

    weights: str  # their digest
    began_s: float | None = None  # by the monotonic clock; None while it waits
    is_evicted: bool = False  # its weights were, since it came


class SamplerService(sampler_pb2_grpc.SamplerServiceServicer):
    """The servicer. It is used from one event loop."""

    def __init__(self, model: Model, store: ObjectStore, *, kept_bytes: int = 0) -> None:
        """`kept_bytes` is the memory for decoded weights of tunings that were used last."""
        self._model, self._weights = model, StoredWeights(store, model.spec.digest)
        self._decoded = DecodedWeights(kept_bytes)
        self._workers = ThreadPoolExecutor(model.pool.size, "engine")
        self._stage_s: dict[str, float] = {}  # of the last run that went through each stage
        self._times = RunTimes()
        self._runs: dict[int, _Run] = {}
        self._numbers = itertools.count()
        self._paths: dict[str, str] = {}  # of weights that may be held, by their digest
        self._epoch = secrets.token_hex(8)
        self._is_draining = False
        self._changed: set[asyncio.Event] = set()
        self._pools = [model.pool, model.controlled, *(stage.pool for stage in model.super_resolution)]
        metrics.ENGINES.labels("warm").set_function(lambda: sum(pool.num_warm() for pool in self._pools))
        metrics.ENGINES.labels("cold").set_function(lambda: sum(pool.size - pool.num_warm() for pool in self._pools))
        metrics.ENGINE_USAGE.set_function(lambda: model.pool.num_warm() / model.pool.size)
        self._tell_metrics()

    def register(self, server: grpc.aio.Server) -> list[str]:
        """Add the servicer to a server; its full service names."""
        sampler_pb2_grpc.add_SamplerServiceServicer_to_server(self, server)
        return [sampler_pb2.DESCRIPTOR.services_by_name["SamplerService"].full_name]

    async def drain(self) -> None:
        """Accept no more runs, and end the streams that have no end of their own."""
        self._is_draining = True
        self._notify_watchers()

    async def close(self) -> None:
        """Wait for the worker threads, which use the event loop. Call it when the server has stopped."""
        await asyncio.to_thread(self._workers.shutdown, cancel_futures=True)

    async def GetSamplerInfo(self, request: sampler_pb2.GetSamplerInfoRequest, context: Any) -> sampler_pb2.SamplerInfo:
        """Base model, defaults and engine."""
        return wire.sampler_info(self._model)

    async def Sample(self, request: sampler_pb2.SampleRequest, context: Any) -> AsyncIterator[sampler_pb2.SampleEvent]:
        """Sample in a worker thread, and stream its events."""
        wanted = wire.read_request(request, self._model)
        mailbox: Mailbox[sampler_pb2.SampleEvent] = Mailbox(asyncio.get_running_loop())
        cancelled = threading.Event()
        stages = RunStages(self._stage_s)
        asked = time.perf_counter()
        work = partial(self._sample, request, wanted, asked, mailbox, stages, cancelled)
        run = self._submit(work, request.weights)
        try:
            async for event in mailbox.events(HEARTBEAT_S):
                if event is None:
                    yield wire.heartbeat_event(stages.now())
                else:
                    yield wire.step_event(event) if isinstance(event, Step) else event
        finally:
            cancelled.set()
            if run.cancel():  # not once a worker has begun
                stages.close()

    async def CheckSample(self, request: sampler_pb2.SampleRequest, context: Any) -> sampler_pb2.CheckSampleResponse:
        """Check what needs tokenizers and encoders. It uses no worker thread, so it waits for no edit."""
        model = self._model
        wanted = wire.read_request(request, model, is_run=False)
        warnings = check_texts(model.graphs, model.clip_filter, model.clipseg, wire.read_texts(request, wanted))
        if request.image and model.picture_check is not None:
            warnings += await asyncio.to_thread(model.picture_check.warnings_of, request.image)
        return sampler_pb2.CheckSampleResponse(warnings=warnings)

    async def CheckTuning(
        self, request: sampler_pb2.CheckTuningRequest, context: Any
    ) -> sampler_pb2.CheckTuningResponse:
        """Check what needs tokenizers and facts of the base model, as CheckSample does."""
        return sampler_pb2.CheckTuningResponse(warnings=wire.check_tuning(request, self._model))

    async def Load(self, request: sampler_pb2.LoadRequest, context: Any) -> sampler_pb2.LoadResponse:
        """Refit a free engine with the weights, if there is one. It waits for none, since edits come first.

        Weights that were read already are those of an edit that came first, and take no other edit's engine. Weights of
        embeddings alone need no engine: they are only read.
        """
        if not request.weights.digest:
            raise InvalidField("weights.digest", "", "it must be set")
        store_paths.check_weights(request.weights.path, "weights.path")
        is_used = request.weights.digest in self._weights.held()
        if is_used or self._num_waiting() or not self._model.pool.is_free():
            return sampler_pb2.LoadResponse()

        def load() -> sampler_pb2.LoadResponse:
            path, digest = request.weights.path, request.weights.digest
            if self._weights.method(path, digest) in REFITS_NOTHING:
                self._weights.extras(path, digest)
                return sampler_pb2.LoadResponse()
            with self._lease(request.weights) as lease:
                return sampler_pb2.LoadResponse(loading=wire.loading(lease))

        return await asyncio.wrap_future(self._submit(load, request.weights))

    async def Evict(self, request: sampler_pb2.EvictRequest, context: Any) -> sampler_pb2.EvictResponse:
        """Forget weights."""
        self._forget(request.digest)
        for run in self._runs.values():
            run.is_evicted |= run.weights == request.digest
        await asyncio.to_thread(self._evict_from_engines, request.digest)
        self._notify_watchers()
        return sampler_pb2.EvictResponse()

    def _evict_from_engines(self, digest: str) -> None:
        """In a thread, where a caller's deadline does not end it between two pools."""
        for pool in self._pools:
            for weights in (digest, with_fast_lora(digest)):
                pool.evict(weights)

    async def WatchReplica(
        self, request: sampler_pb2.WatchReplicaRequest, context: Any
    ) -> AsyncIterator[sampler_pb2.ReplicaState]:
        """The state now, soon after every change and once a second. The last one says that the replica drains."""
        changed = asyncio.Event()
        self._changed.add(changed)
        held = self._held()
        try:
            while True:
                changed.clear()
                state = self._state()
                state.held.extend(held)
                held = []
                yield state
                if self._is_draining:
                    return
                await asyncio.sleep(LEAST_STATE_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), REPLICA_STATE_S - LEAST_STATE_S)
        finally:
            self._changed.discard(changed)

    def _state(self) -> sampler_pb2.ReplicaState:
        pool, times, waiting = self._model.pool, self._times, self._num_waiting()
        began_s = [run.began_s for run in self._runs.values() if run.began_s is not None]
        resident = tunings_of(pool.resident())
        return sampler_pb2.ReplicaState(
            resident=resident,
            engines=pool.size,
            waiting=waiting,
            draining=self._is_draining,
            epoch=self._epoch,
            running=len(began_s),
            loading=self._loading(resident),
            kept=self._decoded.digests()[-KEPT_TOLD:],
            queued_s=times.queued_s(pool.size, began_s, waiting),
            edit_s=times.edit_s,
            refit_s=times.refit_s,
            kept_refit_s=times.kept_refit_s,
        )

    def _held(self) -> list[tuning_pb2.WeightsRef]:
        """All tunings' weights of which anything is in an engine or in memory."""
        held = {*self._decoded.digests(), *self._weights.held()}
        for pool in self._pools:
            held.update(tunings_of(pool.resident()))
        used = held | {run.weights for run in self._runs.values()}
        self._paths = {digest: path for digest, path in self._paths.items() if digest in used}
        return [tuning_pb2.WeightsRef(digest=digest, path=self._paths.get(digest, "")) for digest in sorted(held)]

    def _loading(self, resident: Collection[str]) -> list[str]:
        """The weights that runs need and that are not resident yet."""
        return sorted({run.weights for run in self._runs.values() if run.weights}.difference(resident))

    def _num_waiting(self) -> int:
        return sum(run.began_s is None for run in self._runs.values())

    def _sample(
        self,
        request: sampler_pb2.SampleRequest,
        wanted: Request,
        asked: float,
        mailbox: "Mailbox[sampler_pb2.SampleEvent]",
        stages: RunStages,
        cancelled: threading.Event,
    ) -> None:
        """One run, in a worker thread. It always ends with exactly one of `done` or `failed`."""
        timings = edit_pb2.Timings(queue_s=time.perf_counter() - asked)
        stages.begin(LOADING)
        last = sampler_pb2.SampleEvent()
        try:
            config = Flat(request.config)
            made_by = tuned_by(config.method, config.inversion)
            tuned = request.weights if request.HasField("weights") and made_by else None
            refits = made_by not in REFITS_NOTHING
            with (
                self._lease(
                    tuned if refits else None,
                    is_controlled=wanted.attention is not None,
                    has_fast_lora=config.fast_lora,
                ) as lease,
                self._super_resolution(request.prompt, wanted, tuned, cancelled) as large,
            ):
                timings.refit_s = lease.refit_s
                stages.begin(PREPARING)
                if refits or config.fast_lora:
                    mailbox.put(wire.loading_event(lease))
                extras = None
                if tuned is not None:
                    extras = self._weights.extras(tuned.path, tuned.digest).require_method(made_by)

                def on_event(event: Event | ScoredImage) -> None:
                    if isinstance(event, Step):
                        is_last = event.index + 1 == event.total
                        stages.step(event.index, event.total)
                        stages.begin(DECODING if is_last else SAMPLING)
                        mailbox.put(event)
                    elif isinstance(event, Warned):
                        mailbox.put(wire.warning_event(event))
                    elif isinstance(event, (EditedImage, ScoredImage)):
                        shown = self._checked(event) if request.content_filter else event
                        for message in wire.result_events(shown, request.config):
                            mailbox.put(message)
                    else:
                        timings.encode_s, timings.denoise_s = event.encode_s, event.denoise_s
                        timings.decode_s, timings.super_resolution_s = event.decode_s, event.super_resolution_s

                self._edit(request, wanted, lease, extras, large, cancelled, on_event)
            stages.end()
            timings.total_s = time.perf_counter() - asked
            self._times.edited(timings.total_s - timings.queue_s - timings.refit_s)
            for stage in STAGES:
                if (seconds := getattr(timings, f"{stage}_s")) > 0:
                    metrics.EDIT_STAGE_S.labels(stage).observe(seconds)
            last.done.CopyFrom(timings)
            telemetry.event(logger, "sampled", edit=request.edit, warm=lease.warm, seconds=timings.total_s)
        except UniTuneError as error:
            last.failed.CopyFrom(to_status(error))
        except Exception:
            telemetry.failure(logger, "sampling failed", edit=request.edit)
            last.failed.CopyFrom(to_status(Internal("the sampler made a mistake; see its log", reason="INTERNAL")))
        stages.close()
        mailbox.put(last)
        mailbox.close()

    def _edit(
        self,
        request: sampler_pb2.SampleRequest,
        wanted: Request,
        lease: Lease,
        extras: TunedWeights | None,
        large: tuple[SuperResolution, ...],
        cancelled: threading.Event,
        on_event: Callable[[Event | ScoredImage], None],
    ) -> None:
        """One run, or all attempts that the CLIP filter needs. `extras` are of the method's weights, if it has any."""
        model, config, words = self._model, request.config, request.rare_tokens
        embed: Embed = model.graphs.embed
        if extras is not None:
            refuse_unbound(extras, wanted)
            embed = embedding(model.graphs, extras, wanted.prompt, config.eta)
            words = extras.manifest.rare_tokens  # some methods have them within the prompt; CLIP does not know them
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
            super_resolution=large,
        )
        if model.clip_filter is None or not (config.automatic or config.HasField("clip_filter")):
            sample(wanted, tools, on_event)
            return
        # Attempts are chosen among before super-resolution, which takes longer than they do.
        edit, enlarged = PreparedEdit(wanted, replace(tools, super_resolution=())), PreparedEdit(wanted, tools)
        resamples = config.clip_filter.resamples if config.clip_filter.HasField("resamples") else DEFAULT_RESAMPLES
        attempts = attempts_of(wanted, model.clip_filter, is_automatic=config.automatic, resamples=resamples)
        sample_filtered(
            lambda attempt, on_event: sample(attempt, edit.tools, on_event, edit),
            model.clip_filter,
            edit.picture,
            without(request.prompt, words),
            attempts,
            on_event,
            tries_all=config.automatic,
            finish=(lambda chosen, on_event: sample(chosen, tools, on_event, enlarged)) if large else None,
        )

    def _checked(self, result: EditedImage | ScoredImage) -> EditedImage | ScoredImage:
        """The result, without its files if the content filter refuses the picture."""
        image = result.image if isinstance(result, ScoredImage) else result
        assert self._model.content_filter is not None  # wire.read_request has refused the rest
        if not self._model.content_filter.refuses(images.decode(image.png, max_bytes=None)):
            return result
        blocked = replace(image, png=b"", mask=b"", is_blocked=True)
        return replace(result, image=blocked) if isinstance(result, ScoredImage) else blocked

    def _finder(self, wanted: Request, lease: Lease, cancelled: threading.Event) -> Find | None:
        """What finds the objects that the mask is of; None for a mask of another source."""
        model, named = self._model, named_objects(wanted.mask_text)
        if wanted.mask_source not in MASKS_OF_WORDS:
            return None
        if model.clipseg is not None and wanted.mask_source == "word":
            return partial(model.clipseg.find, objects=named)
        # Tuned weights have learnt one picture, not what words mean.
        denoiser = lease.engine.run if lease.engine.weights == BASE else model.pool.run_base
        return finder(model.graphs, model.schedule, denoiser, named, wanted.untuned_prompt, cancelled.is_set)

    @contextlib.contextmanager
    def _super_resolution(
        self, prompt: str, wanted: Request, weights: tuning_pb2.WeightsRef | None, cancelled: threading.Event
    ) -> Iterator[tuple[SuperResolution, ...]]:
        """The stages of super-resolution that an edit asks for, each with an engine of its own. `prompt` is as it was
        sent, `weights` are those that the method samples with.

        A tuned stage gets the text that it was tuned with: the prompt after UniTune's rare tokens, or Imagic's own
        embedding of the prompt (arXiv 2210.09276, section 3.2). An untuned one gets the prompt without the words that
        the tuning bound, which it does not know.
        """
        asked, graphs = wanted.super_resolution, self._model.graphs
        if asked is None:
            yield ()
            return
        tuned = self._weights.extras(weights.path, weights.digest) if weights is not None else None
        with contextlib.ExitStack() as leases:
            ready = []
            for stage in self._model.super_resolution[: asked.num_stages]:
                if weights is not None and tuned is not None and tuned.tunes(stage.spec.name):
                    context = embedding(graphs, tuned, wanted.prompt, eta=1.0)(wanted.prompt)
                    leased = stage.pool.lease(weights.digest, partial(self._tuned_stage, stage, weights))
                else:
                    context = graphs.embed(without(prompt, tuned.manifest.rare_tokens if tuned is not None else ""))
                    leased = stage.pool.lease(BASE, stage.base_weights)
                run, empty = leases.enter_context(leased).engine.run, graphs.embed("")
                ready.append(SuperResolution(stage.spec, run, asked, context, empty, cancelled.is_set))
            yield tuple(ready)

    def _tuned_stage(self, stage: SuperResolutionStage, weights: tuning_pb2.WeightsRef) -> WeightSet:
        """A tuning's weights of a super-resolution stage."""

        def read() -> WeightSet:
            tuned = self._weights.read(weights.path, weights.digest)
            return tuned_super_resolution(tuned, stage.spec.name, stage.base, self._model.spec.digest)

        return self._decoded_or(weights.digest, stage.spec.name, read)

    @contextlib.contextmanager
    def _lease(
        self, weights: tuning_pb2.WeightsRef | None, *, is_controlled: bool = False, has_fast_lora: bool = False
    ) -> Iterator[Lease]:
        """A lease for these weights, or the base weights, with the base model's fast LoRA if asked for. With
        `is_controlled` its engine is a ControlledEngine."""
        model, base = self._model, self._model.base
        pool, lora = model.controlled if is_controlled else model.pool, model.fast_lora if has_fast_lora else None
        if weights is None:
            leased = pool.lease(
                BASE if lora is None else with_fast_lora(BASE), lambda: base if lora is None else lora.added_to(base)
            )
            with leased as lease:
                yield lease
            return
        path, digest = weights.path, weights.digest
        was_kept = digest in self._decoded.digests()

        def plain() -> WeightSet:
            return self._decoded_or(
                digest, "", lambda: tuned_weights(self._weights.read(path, digest), base, model.spec.digest)
            )

        def with_lora() -> WeightSet:
            assert lora is not None
            alone = plain()  # first: it reads the extras, too
            return lora.added_to_tuned(self._weights.extras(path, digest), alone)

        leased = pool.lease(digest, plain) if lora is None else pool.lease(with_fast_lora(digest), with_lora)
        with contextlib.ExitStack() as stack:
            try:
                lease = stack.enter_context(leased)
            except DataLoss:  # perhaps of the memory that they were kept in
                self._decoded.forget(digest)
                raise
            if not lease.warm:
                self._times.refitted(lease.refit_s, was_kept=was_kept)
                self._loop.call_soon_threadsafe(self._notify_watchers)
            yield lease

    def _decoded_or(self, digest: str, model: str, read: Callable[[], WeightSet]) -> WeightSet:
        """The set that is kept, or the one that is read and kept from now on."""
        return self._decoded.find(digest, model) or self._decoded.keep(read(), model)

    def _submit(self, work: Callable[[], T], weights: tuning_pb2.WeightsRef) -> "Future[T]":
        """Queue work for a worker thread. Raises Unavailable (DRAINING) during a drain."""
        if self._is_draining:
            raise Unavailable("this replica is shutting down; another one answers", reason="DRAINING")
        self._loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        loop, number = self._loop, next(self._numbers)
        if weights.digest:
            self._paths[weights.digest] = weights.path

        def begin() -> T:
            loop.call_soon_threadsafe(self._begun, number)
            return context.run(work)  # in the call's trace

        self._runs[number] = _Run(weights.digest)
        self._notify_watchers()
        run = self._workers.submit(begin)
        run.add_done_callback(lambda run: loop.call_soon_threadsafe(self._ended, number))
        return run

    def _begun(self, number: int) -> None:
        self._runs[number].began_s = time.monotonic()
        self._notify_watchers()

    def _ended(self, number: int) -> None:
        run = self._runs.pop(number)
        if run.is_evicted:  # it may have read them anew since
            self._forget(run.weights)
        self._notify_watchers()

    def _forget(self, digest: str) -> None:
        self._weights.forget(digest)
        self._decoded.forget(digest)

    def _notify_watchers(self) -> None:
        self._tell_metrics()
        for changed in self._changed:
            changed.set()

    def _tell_metrics(self) -> None:
        """What pickers of endpoints read (docs/routing.md)."""
        pool, waiting = self._model.pool, self._num_waiting()
        metrics.RUNS.labels("waiting").set(waiting)
        metrics.RUNS.labels("running").set(len(self._runs) - waiting)
        resident = tunings_of(pool.resident())
        metrics.tell_adapters(pool.size, resident, self._loading(resident))
