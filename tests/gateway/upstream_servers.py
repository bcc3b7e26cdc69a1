"""A tuner and a sampler that answer at once: real calls over real sockets, without a diffusion model behind them.

The gateway's tests ask for moments that a real model does not give on demand: a run that hangs at its third
update, diverges, crashes or is cancelled between two steps. Weights files, manifests and PNGs are real.
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import numpy as np

from tests.configs import sampling_config, tuning_config
from unitune import image_pieces, images, peers, serving, weights
from unitune.errors import NotFound, UniTuneError, to_status
from unitune.object_store import ObjectStore
from unitune.options import Flat, put_words
from unitune.v1 import sampler_pb2, sampler_pb2_grpc, tuner_pb2, tuner_pb2_grpc
from unitune.v1.edit_pb2 import EditEvent, Timings
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import TuningConfig, TuningProgress, WeightsRef

BASE_MODEL = BaseModel(
    name="tiny", digest=hashlib.sha256(b"tiny").hexdigest(), width=64, height=64, has_clip_filter=True
)
TUNING_DEFAULTS = tuning_config(
    method="unitune", mode="attn_out", updates=5, batch=4, learning_rate=2e-4, rare_tokens="beikkpic"
)
METHOD_DEFAULTS = [
    TUNING_DEFAULTS,
    tuning_config(
        method="imagic",
        mode="full",
        updates=4,
        batch=1,
        learning_rate=2e-6,
        embedding_updates=3,
        embedding_learning_rate=1e-3,
    ),
    tuning_config(
        method="dreambooth",
        mode="full",
        updates=3,
        batch=1,
        learning_rate=5e-6,
        rare_tokens="beikkpic",
        num_class_images=20,
        prior_weight=1,
    ),
    tuning_config(
        method="textual_inversion",
        updates=3,
        batch=4,
        learning_rate=5e-3,
        rare_tokens="beikkpic",
        num_vectors=1,
        scale_learning_rate=True,
    ),
    tuning_config(method="null_text", updates=3, learning_rate=0.01, num_inference_steps=50, guidance_scale=7.5),
]
SAMPLING_DEFAULTS = sampling_config(
    method="unitune",
    scheduler="ddim",
    num_inference_steps=20,
    guidance_scale=7.5,
    strength=0.75,
    interpolation=0.25,
    prompt_guidance_scale=0,
    unconditional_model="tuned",
    base_mixture=0,
    mask_blur=0,
    mask_padding=32,
    repeats=1,
)


class Tuner:
    """Each update is one progress report. A test may hold it, make it fail, crash or let go."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.base_model = BASE_MODEL
        self.warm_start: dict[str, Any] = {}  # how its defaults differ with a warm start; empty: it has none
        self.place, self.instance = f"place {secrets.token_hex(8)}", secrets.token_hex(8)
        self.requests: list[tuner_pb2.Assignment] = []
        self.stopped: list[str] = []  # names of runs that ended before `done`
        self.update_s = 0.0
        self.go_on = asyncio.Event()  # cleared: every run waits after its second update
        self.go_on.set()
        self.failure: UniTuneError | None = None
        self.crashes = 0  # so many runs are still to be lost after an update, with the tuner, which starts again
        self.losses = 0  # so many runs are still to be lost after an update, and the tuner lives on
        self.lets_go = 0  # so many runs are still to be given back by the tuner itself
        self.spoil_manifest = False
        self.repeats_done = 0  # so many times `done` is reported again, as if its answer had been lost
        self.orders: list[str | None] = []  # the answers to what ended a run

    async def missed(self) -> None:
        """Return once its gateway knows that no tuner is there; by default at once."""

    async def work(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        """Take and run tunings of a gateway, until cancelled."""
        async with serving.channel(address, credentials=credentials, name=peers.GATEWAY) as channel:
            pool: Any = tuner_pb2_grpc.TunerPoolServiceStub(channel)
            while True:
                try:
                    await self._ask(pool)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)

    async def _ask(self, pool: Any) -> None:
        info = tuner_pb2.TunerInfo(
            base_model=self.base_model, tuning_defaults=TUNING_DEFAULTS, method_defaults=METHOD_DEFAULTS
        )
        if self.warm_start:
            info.warm_start_defaults.CopyFrom(TUNING_DEFAULTS)
            put_words(info.warm_start_defaults, {**self.warm_start, "warm_start": True})
        await pool.Announce(tuner_pb2.AnnounceRequest(info=info), timeout=5)
        request = tuner_pb2.TakeTuningRequest(tuner=self.process, base_model=self.base_model.digest)
        request.wait.FromMilliseconds(200)
        taken = await pool.TakeTuning(request, timeout=5)
        if taken.HasField("assignment"):
            await self._run(pool, taken.assignment)

    @property
    def process(self) -> tuner_pb2.TunerProcess:
        return tuner_pb2.TunerProcess(place=self.place, instance=self.instance)

    async def _run(self, pool: Any, taken: tuner_pb2.Assignment) -> None:
        self.requests.append(taken)
        updates, holding = asyncio.create_task(self._updates(pool, taken)), asyncio.create_task(self._hold(pool, taken))
        is_done = False
        try:
            await asyncio.wait({updates, holding}, return_when=asyncio.FIRST_COMPLETED)
            if not updates.done() and self.store.has(f"{taken.path}/{weights.MANIFEST_FILE}"):
                await updates  # which are over, and are reported
            is_done = updates.done() and updates.result()
        finally:
            for task in (updates, holding):
                task.cancel()
            await asyncio.gather(updates, holding, return_exceptions=True)
            if not is_done:
                self.stopped.append(taken.name)

    async def _report(
        self, pool: Any, taken: tuner_pb2.Assignment, wait_s: float = 0.0, once: bool = False, **report: Any
    ) -> str | None:
        """Report until it is answered, or once; the order, or to go on."""
        request = tuner_pb2.ReportTuningRequest(name=taken.name, attempt=taken.attempt, tuner=self.process, **report)
        while True:
            try:
                return (await pool.ReportTuning(request, timeout=wait_s + 5)).WhichOneof("order")
            except grpc.aio.AioRpcError:
                if once:
                    return "noted"
                await asyncio.sleep(0.05)

    async def _hold(self, pool: Any, taken: tuner_pb2.Assignment) -> None:
        """Return once the gateway has another order than to go on."""
        alive = tuner_pb2.ReportTuningRequest.Alive()
        alive.wait.FromMilliseconds(300)
        while await self._report(pool, taken, 0.3, alive=alive) == "noted":
            await asyncio.sleep(0.05)

    async def _updates(self, pool: Any, taken: tuner_pb2.Assignment) -> bool:
        """Whether the run came to `done`."""
        pictures = [image for image in taken.images if not self.store.has(image.path)]
        if pictures:
            missing = NotFound("there is no such image", reason="IMAGE_NOT_FOUND")
            await self._report(pool, taken, failed=to_status(missing))
            return False
        total = taken.config.updates
        for update in range(1, total + 1):
            progress = TuningProgress(update=update, total=total, loss=1 / update, left_s=float(total - update))
            if await self._report(pool, taken, once=True, progress=progress) != "noted":
                return False
            await asyncio.sleep(self.update_s)
            if update == 2:
                await self.go_on.wait()
            if self.crashes:
                self.crashes -= 1
                self.instance = secrets.token_hex(8)
                return False
            if self.losses:
                self.losses -= 1
                return False
            if self.lets_go:
                self.lets_go -= 1
                await self._report(pool, taken, give_back=tuner_pb2.ReportTuningRequest.GiveBack())
                return False
            if self.failure is not None:
                await self._report(pool, taken, failed=to_status(self.failure))
                return False
        data, manifest = weights.pack(
            {"down.weight": np.full((4, 4), len(self.requests), np.float32)},
            probe_tuned=np.zeros((1, 2), np.float32),
            probe_base=np.zeros((1, 2), np.float32),
            key=taken.key,
            base_model=self.base_model.digest,
            method=Flat(taken.config).method,
            rare_tokens=taken.config.rare_tokens,
            updates=total,
            probe_seed=0,
        )
        self.store.put_weights(taken.path, data, manifest)
        done = WeightsRef(
            key=taken.key,
            digest="0" * 64 if self.spoil_manifest else manifest.digest,
            path=taken.path,
            size_bytes=manifest.size_bytes,
            base_model=self.base_model.digest,
        )
        for _ in range(1 + self.repeats_done):
            self.orders.append(await self._report(pool, taken, done=done))
        if self.orders[-1] != "noted":
            self.store.delete_weights(taken.path)
        return self.orders[-1] == "noted"


class RunningTuner:
    """A stand-in tuner at work for the gateway at an address."""

    def __init__(self, tuner: Tuner, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._tuner, self.address = tuner, address
        self._task = asyncio.create_task(tuner.work(address, credentials))

    @property
    def is_running(self) -> bool:
        return not self._task.done()

    async def stop(self) -> None:
        """End it, with its connection."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._tuner.missed()


class Sampler(sampler_pb2_grpc.SamplerServiceServicer):
    """Reads the weights, counts steps, and paints each seed's picture in one colour."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.base_model = BASE_MODEL
        self.requests: list[sampler_pb2.SampleRequest] = []
        self.evicted: list[str] = []
        self.loaded: list[str] = []
        self.png = b""  # of every result; empty makes a small one
        self.step_s = 0.0
        self.turns: asyncio.Semaphore | None = None  # each step waits for one of them
        self.steps_done = 0
        self.stopped = asyncio.Event()  # a run ended before its last event
        self.failure: Exception | None = None
        self.warning = ""
        self.go_on = asyncio.Event()  # cleared: every run waits before its first event
        self.go_on.set()
        self.answers = asyncio.Event()  # cleared: Evict waits
        self.answers.set()
        self.refusals = 0  # so many runs are still to be ended as a transport does, before their first event
        self.breaks = False  # ends every run so after its first event
        self.breaks_after = ""  # ends every run so after its first event of this kind
        self.engines = 0  # that hold weights; 0 tells of none, and every run is cold
        self.resident: list[str] = []  # weights in them, the one used last at the end
        self.warm: list[bool] = []  # of each run with weights, whether an engine held them
        self.held: list[WeightsRef] = []  # told at the begin of a watch
        self.epoch = secrets.token_hex(8)
        self.told: dict[str, Any] = {"edit_s": 0.05, "refit_s": 0.25}  # further fields of its state
        self.is_told = asyncio.Event()  # cleared: no state is told any more
        self.is_told.set()
        self.is_draining = False
        self._running = 0
        self._changed = asyncio.Event()
        self.chosen: dict[str, Any] = {}  # fields of each image, as a gate would set them
        self.checked: list[sampler_pb2.SampleRequest] = []
        self.refusal: UniTuneError | None = None  # of CheckSample
        self.warnings: list[str] = []  # of CheckSample
        self.checked_tunings: list[TuningConfig] = []
        self.tuning_refusal: UniTuneError | None = None  # of CheckTuning
        self.tuning_warnings: list[str] = []  # of CheckTuning
        self.picture_s = 0.0  # that CheckSample takes for a request with an image
        self.picture_warning = ""  # of CheckSample for a request with an image

    async def GetSamplerInfo(self, request: Any, context: Any) -> sampler_pb2.SamplerInfo:
        return sampler_pb2.SamplerInfo(
            base_model=self.base_model,
            sampling_defaults=SAMPLING_DEFAULTS,
            method_defaults=[
                SAMPLING_DEFAULTS,
                sampling_config(
                    method="imagic",
                    scheduler="euler",
                    num_inference_steps=10,
                    guidance_scale=5,
                    strength=1,
                    interpolation=0,
                    eta=0.7,
                ),
                sampling_config(
                    method="prompt_to_prompt",
                    scheduler="ddim",
                    num_inference_steps=10,
                    guidance_scale=5,
                    strength=1,
                    interpolation=0,
                    inversion="direct",
                    cross_replace=0.8,
                    self_replace=0.2,
                ),
            ],
            engine="none at all",
        )

    async def WatchReplica(self, request: Any, context: Any) -> AsyncIterator[sampler_pb2.ReplicaState]:
        held = self.held
        while True:
            changed = self._changed
            await self.is_told.wait()
            yield sampler_pb2.ReplicaState(
                resident=self.resident,
                engines=max(1, self.engines),
                epoch=self.epoch,
                running=self._running,
                draining=self.is_draining,
                held=held,
                **self.told,
            )
            if self.is_draining:
                return
            held = []
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 1.0)

    def change(self) -> None:
        """Tell the watchers."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def drain(self) -> None:
        """End all watches, while runs go on."""
        self.is_draining = True
        self.change()

    def load(self, weights: str) -> bool:
        """Have an engine hold the weights; whether one did."""
        was_warm = weights in self.resident
        self.resident = [one for one in self.resident if one != weights] + [weights]
        del self.resident[: -self.engines or len(self.resident)]
        self.change()
        return was_warm

    async def Sample(self, request: sampler_pb2.SampleRequest, context: Any) -> AsyncIterator[sampler_pb2.SampleEvent]:
        self._running += 1
        self.change()
        try:
            async with contextlib.aclosing(self._sample(request, context)) as events:
                async for event in events:
                    yield event
                    if event.WhichOneof("event") == self.breaks_after:
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        finally:
            self._running -= 1
            self.change()

    async def _sample(
        self, request: sampler_pb2.SampleRequest, context: Any
    ) -> AsyncGenerator[sampler_pb2.SampleEvent, None]:
        self.requests.append(request)
        is_done = False
        try:
            await self.go_on.wait()
            if self.refusals:
                self.refusals -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Stream refused")
            if request.HasField("weights"):
                try:
                    self.store.get_weights(request.weights.path, request.weights.digest)
                except UniTuneError as error:
                    yield sampler_pb2.SampleEvent(failed=to_status(error))
                    return
            is_warm = request.HasField("weights") and self.load(request.weights.digest)
            if request.HasField("weights"):
                self.warm.append(is_warm)
            yield sampler_pb2.SampleEvent(loading=EditEvent.Loading(warm=is_warm, refit_s=0.25, probe_ratio=0.01))
            if self.breaks:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            total = int(request.config.num_inference_steps * request.config.strength)
            for index in range(total):
                await asyncio.sleep(self.step_s)
                if self.turns is not None:
                    await self.turns.acquire()
                self.steps_done = index + 1
                wants = request.preview_every and (index + 1) % request.preview_every == 0
                step = EditEvent.Step(index=index, total=total, preview=b"preview %d" % index if wants else b"")
                yield sampler_pb2.SampleEvent(step=step)
                if self.failure is not None:
                    raise self.failure
            if self.warning:
                yield sampler_pb2.SampleEvent(warning=EditEvent.Warning(text=self.warning))
            for index, seed in enumerate(request.seeds):
                png = self.png or images.encode_png(np.full((4, 6, 3), seed % 256, np.uint8))
                fields = {"index": index, "seed": seed, "png": png, "mask": request.mask} | self.chosen
                whole = EditEvent.EditedImage(**fields)
                image, parts = image_pieces.cut(whole)
                yield sampler_pb2.SampleEvent(image=image)
                for part in parts:
                    yield sampler_pb2.SampleEvent(image_part=part)
            is_done = True
            yield sampler_pb2.SampleEvent(done=Timings(refit_s=0.25, denoise_s=1.5))
        finally:
            if not is_done:
                self.stopped.set()

    async def CheckSample(self, request: sampler_pb2.SampleRequest, context: Any) -> sampler_pb2.CheckSampleResponse:
        self.checked.append(request)
        if self.refusal is not None:
            raise self.refusal
        if not request.image:
            return sampler_pb2.CheckSampleResponse(warnings=self.warnings)
        await asyncio.sleep(self.picture_s)
        return sampler_pb2.CheckSampleResponse(warnings=[*self.warnings, self.picture_warning])

    async def CheckTuning(
        self, request: sampler_pb2.CheckTuningRequest, context: Any
    ) -> sampler_pb2.CheckTuningResponse:
        self.checked_tunings.append(request.config)
        if self.tuning_refusal is not None:
            raise self.tuning_refusal
        return sampler_pb2.CheckTuningResponse(warnings=self.tuning_warnings)

    async def Load(self, request: sampler_pb2.LoadRequest, context: Any) -> sampler_pb2.LoadResponse:
        self.loaded.append(request.weights.digest)
        self.load(request.weights.digest)
        return sampler_pb2.LoadResponse()

    async def Evict(self, request: sampler_pb2.EvictRequest, context: Any) -> sampler_pb2.EvictResponse:
        await self.answers.wait()
        self.evicted.append(request.digest)
        self.resident = [one for one in self.resident if one != request.digest]
        self.change()
        return sampler_pb2.EvictResponse()


async def serve_tuner(tuner: Tuner, address: str, credentials: grpc.ChannelCredentials | None = None) -> RunningTuner:
    """Have it work for the gateway whose internal address this is; the caller stops it."""
    return RunningTuner(tuner, address, credentials)


async def serve_sampler(sampler: Sampler, address: str = "127.0.0.1:0", **settings: Any) -> serving.RunningServer:
    """Start it; the caller stops it. `settings` are those of `serving.start`."""

    def register(server: grpc.aio.Server) -> list[str]:
        sampler_pb2_grpc.add_SamplerServiceServicer_to_server(sampler, server)
        return ["unitune.v1.SamplerService"]

    return await serving.start(address, register, **settings)
