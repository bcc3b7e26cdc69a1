"""What a server tells, as plain values: streams yield the events, calls answer with the rest.

    edit            EditAccepted, tuning events if one is needed, EditLoading, EditStep ..., EditWarning if there is
                    one, EditedImage ..., EditDone
    watch_tuning    TuningQueued, TuningStarted, TuningProgress ..., TuningReady
    compare         CompareAccepted, then for each method CompareEdit ..., CompareResult; CompareDone

`Heartbeat` may come anywhere between them. `Retrying` may come once after the first event of an edit or a comparison.
After it an edit has another EditAccepted, with its new name, and goes on with what was not told yet.
A failure is no event of its own: it is raised, as one of `unitune.errors`.
Pictures are the bytes of PNG files.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from unitune.errors import UniTuneError
from unitune.system_errors import about
from unitune_client.configs import SamplingConfig as SamplingConfig
from unitune_client.configs import TuningConfig as TuningConfig


class TuningState(StrEnum):
    """State of a tuning; it only moves forward. EXPIRED had weights, which are discarded. UNKNOWN is one that only a
    newer server has.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    READY = "READY"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    UNKNOWN = "UNKNOWN"


class EditState(StrEnum):
    """State of an edit. UNKNOWN is one that only a newer server has."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, kw_only=True)
class Image:
    """An uploaded picture. `name` is `tenants/{tenant}/images/{sha256}`; width and height are upright, in pixels.

    `warnings` are of what the file has and no edit keeps, in plain words; edits repeat them.
    """

    name: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    media_type: str
    create_time: datetime | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A place for a picture's file. `url` takes it by an HTTP PUT from whoever has the URL, until `expire_time`."""

    name: str
    url: str = field(repr=False)
    expire_time: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the CLIP filter sees of an edited picture: three cosines, -1 to 1, and three figures of its pixels, 0 to 1.

    `passed` tells whether all of them meet its thresholds. A large `round_trip` is noise, a small `detail` a blur, a
    large `saturated` burnt colours; all three are 0 from a server that does not tell them.
    """

    prompt: float
    base_prompt: float
    kept: float
    passed: bool
    round_trip: float = 0.0
    detail: float = 0.0
    saturated: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a tuning is: `update` of `total` are done; `learning_rate` is in force.

    About `left_s` seconds remain to the end of the whole tuning; None while there is no estimate. `stage` is
    `preparing`, `updating`, `packing` or `storing`. `stopped_early` tells that `stop_loss_ratio` ended it at `update`.
    `attempt` counts from 1; one that went on from an earlier one's checkpoint did so after `resumed_update`.
    `warning` says why updates take longer than they could, and a remedy; empty if they do not.
    """

    update: int
    total: int
    loss: float
    left_s: float | None
    learning_rate: float = 0.0
    stopped_early: bool = False
    stage: str = ""
    attempt: int = 0
    resumed_update: int = 0
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a tuning made. `digest` is the sha256 of the weights file; equal keys mean equal weights."""

    key: str
    digest: str
    size_bytes: int
    base_model: str


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One fine-tuning of the base model on one picture; once READY it serves any number of edits.

    `images` are DreamBooth's further ones, `warnings` name the words of its texts that are not read.
    `error` is set when it FAILED, `weights` when it is READY. `queue_position` counts the tunings ahead.
    """

    name: str
    image: str
    base_model: str
    config: TuningConfig
    state: TuningState
    key: str
    progress: Progress | None = None
    queue_position: int = 0
    error: UniTuneError | None = None
    weights: Weights | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    expire_time: datetime | None = None
    etag: str = ""
    images: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of an edit in each stage; `tune_s` is 0 if the weights were found, `refit_s` if the engine held them."""

    queue_s: float = 0.0
    tune_s: float = 0.0
    refit_s: float = 0.0
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    super_resolution_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened. `sequence` counts the events of one edit, or of one tuning, from 1."""

    sequence: int = 0
    create_time: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Event):
    """Nothing else happened for some seconds, 15 at most; the stream is alive.

    Of an edit at the sampler it tells the `stage`: `waiting` for an engine, `loading` the weights, `preparing`,
    `sampling` or `decoding`; the seconds in it, and those that are left of it, None while there is no estimate.
    """

    stage: str = ""
    stage_s: float = 0.0
    stage_left_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Retrying(Event):
    """The server, or the connection to it, was lost for the reason that `error` tells, and the client asks again.

    Its seeds are the same, and so are its pictures. It is told once, however often the client has to ask.
    """

    error: UniTuneError


@dataclass(frozen=True, kw_only=True)
class TuningSnapshot(Event):
    """Replaces events that the server no longer keeps: the tuning as it is now."""

    tuning: Tuning


@dataclass(frozen=True, kw_only=True)
class TuningQueued(Event):
    """It waits; `position` counts the tunings ahead, an estimate."""

    position: int


@dataclass(frozen=True, kw_only=True)
class TuningStarted(Event):
    """A tuner has taken it; `attempt` counts from 1."""

    attempt: int


@dataclass(frozen=True, kw_only=True)
class TuningProgress(Event):
    """It is this far."""

    progress: Progress


@dataclass(frozen=True, kw_only=True)
class TuningReady(Event):
    """It succeeded; the tuning holds its weights' reference."""

    tuning: Tuning


@dataclass(frozen=True, kw_only=True)
class TuningFailed(Event):
    """The tuning that an edit waited for failed; the edit's own error follows."""

    error: UniTuneError


@dataclass(frozen=True, kw_only=True)
class TuningCancelled(Event):
    """The tuning that an edit waited for was cancelled; the edit's own error follows."""

    tuning: Tuning


@dataclass(frozen=True, kw_only=True)
class EditAccepted(Event):
    """The edit's name, empty if it is checked only, and its settings in force.

    `effective_strength` is the share of the steps that will run, since steps are whole. `warnings` are in plain words.
    `tuning_options` are those with which `create_tuning` of the picture makes the edit's tuning, or finds it; None for
    a method without one.
    """

    edit: str
    config: SamplingConfig
    effective_strength: float
    seeds: tuple[int, ...]
    warnings: tuple[str, ...]
    tuning_options: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class EditLoading(Event):
    """The weights are in the engine, and proven to be.

    `warm` means that they were there already. `probe_ratio` is the distance of the engine's answer from the tuner's,
    over the size of the tuning's effect: 0 is perfect, 1 would be the base model, negative was too small to verify.
    """

    warm: bool
    refit_s: float
    probe_ratio: float


@dataclass(frozen=True, kw_only=True)
class EditStep(Event):
    """One denoising step is done; `index` counts from 0. `preview` is a PNG of the first seed's picture so far.

    With `automatic` or `clip_filter` they count the steps of `attempt`, from 1, of which there are at most `attempts`;
    both are 0 without.
    """

    index: int
    total: int
    preview: bytes | None = field(default=None, repr=False)
    attempt: int = 0
    attempts: int = 0


@dataclass(frozen=True, kw_only=True)
class EditWarning(Event):
    """A result that is hardly what was meant: `text` says why, with a remedy. The edit goes on."""

    text: str


BLOCKED = "the server's content filter refused the picture; another seed or prompt may give another one"


@dataclass(frozen=True, kw_only=True)
class EditedImage(Event):
    """One edited picture, as large as the base image. `index` is its place among the seeds.

    `png` says how it was made, unless `omit_metadata` was set: `unitune show` prints it, `edit --like` repeats it.

    `mask` is the PNG of the mask that was used, white where it was edited; None if there was none. `scores` are the
    CLIP filter's, `strength` and `guidance_scale` what `automatic` chose; None without them. It was sampled at
    `working_width` x `working_height` pixels. With `blocked` the server's content filter refused the picture, and `png`
    is empty. `png_url` and `mask_url` take the place of the bytes where `get_edit` was asked for URLs.
    """

    index: int
    seed: int
    blocked: bool = False
    png: bytes = field(repr=False)
    mask: bytes | None = field(default=None, repr=False)
    scores: Scores | None = None
    strength: float | None = None
    guidance_scale: float | None = None
    working_width: int = 0
    working_height: int = 0
    png_url: str = field(default="", repr=False)
    mask_url: str = field(default="", repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the PNG file; it appears whole or not at all.

        Raises OSError, and ValueError for a blocked picture and for one that has a URL in place of its bytes."""
        if self.blocked:
            raise ValueError(BLOCKED)
        if self.png_url:
            raise ValueError("this picture has its bytes at png_url alone: ask for the edit without urls")
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            with about(path):
                unfinished.write_bytes(self.png)
            return unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class EditDone(Event):
    """The edit succeeded. `tuning` is empty for methods without one."""

    timings: Timings
    tuning: str


TuningEvent = (
    TuningSnapshot
    | TuningQueued
    | TuningStarted
    | TuningProgress
    | TuningReady
    | TuningFailed
    | TuningCancelled
    | Heartbeat
)
EditEvent = EditAccepted | TuningEvent | EditLoading | EditStep | EditWarning | EditedImage | EditDone | Retrying


@dataclass(frozen=True, kw_only=True)
class CompareAccepted(Event):
    """The methods that will be compared, in the order in which they run, and the warnings of them all."""

    methods: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompareEdit(Event):
    """An event of one method's edit: any but EditedImage and EditDone, in whose place CompareResult comes."""

    method: str
    event: EditEvent


@dataclass(frozen=True, kw_only=True)
class CompareResult(Event):
    """What a method came to: `images` in the order of the seeds, or its `error`.

    `prompt` has the words that the method binds. `tuning_s` is the seconds that the tuning ran, whenever that was,
    `edit_s` those from its weights to the last picture, `size_bytes` the weights file's; 0 for methods without one.
    """

    method: str
    prompt: str
    images: tuple[EditedImage, ...] = ()
    tuning_s: float = 0.0
    edit_s: float = 0.0
    size_bytes: int = 0
    tuning: str = ""
    timings: Timings = Timings()
    error: UniTuneError | None = None


@dataclass(frozen=True, kw_only=True)
class CompareDone(Event):
    """Every method had its turn; `total_s` is the seconds from the request to the last result."""

    total_s: float


CompareEvent = CompareAccepted | CompareEdit | CompareResult | CompareDone | Heartbeat | Retrying


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An edit one came back to; the server keeps it for 10 minutes after its end."""

    name: str
    state: EditState
    images: tuple[EditedImage, ...] = ()
    timings: Timings = Timings()
    error: UniTuneError | None = None
    tuning: str = ""


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """What a whole edit gave: its pictures in the order of the seeds, the settings in force, warnings, seconds."""

    edit: str
    images: tuple[EditedImage, ...]
    config: SamplingConfig
    effective_strength: float
    warnings: tuple[str, ...]
    timings: Timings
    tuning: str


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The model before any tuning; width and height in pixels. An empty vocabulary is an open one.

    What the stages of its super-resolution make has `super_resolution_width` and `super_resolution_height`, and
    `super_resolution_2_width` and `super_resolution_2_height`; 0 where there is no such stage.
    `fast_steps` are those of an edit that is `fast`; 0 where it does not say. `fast_lora` says how its fast LoRA was
    distilled; empty without one. Sides of the sizes that it works at are
    multiples of `size_step`; 0 if it works at one size.
    """

    name: str
    digest: str
    width: int
    height: int
    vocabulary: tuple[str, ...]
    has_clip_filter: bool = False
    has_clipseg: bool = False
    has_content_filter: bool = False
    super_resolution_width: int = 0
    super_resolution_height: int = 0
    super_resolution_2_width: int = 0
    super_resolution_2_height: int = 0
    fast_steps: int = 0
    size_step: int = 0
    fast_lora: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request must keep."""

    upload_bytes: int
    upload_pixels: int
    chunk_bytes: int
    prompt_characters: int
    seeds: int
    upload_side: int = 0
    upload_webp_pixels: int = 0
    upload_heif_pixels: int = 0
    # 0 of what follows means no limit.
    tenant_tunings: int = 0
    tenant_running_tunings: int = 0
    tenant_kept_tunings: int = 0
    tenant_edits: int = 0
    tenant_requests_per_s: float = 0.0
    tenant_bytes: int = 0
    open_tunings: int = 0
    open_edits: int = 0
    edit_steps: int = 0
    tuning_pixels: int = 0


@dataclass(frozen=True, kw_only=True)
class Queue:
    """How much runs and waits on a server, of all tenants together."""

    tunings_queued: int = 0
    tunings_running: int = 0
    edits_waiting: int = 0
    edits_running: int = 0
    oldest_tuning_s: float = 0.0
    oldest_edit_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A tuner or sampler behind a server, as it last answered.

    A sampler that `is_left_out` has another base model than most, and gets no edits. Only an administrator is told an
    `address`.
    """

    name: str
    version: str = ""
    is_answering: bool = False
    engine: str = ""
    address: str = ""
    base_model: str = ""
    is_left_out: bool = False


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server is, what it can do and what it allows.

    The defaults of a method are under its name, and `tuning_defaults` and `sampling_defaults` of one that is not there.
    Where `tuning_defaults` begin at the base model's warm start, `defaults_without_warm_start` do not.
    """

    version: str
    base_model: BaseModel
    tuning_defaults: TuningConfig
    sampling_defaults: SamplingConfig
    limits: Limits
    methods: tuple[str, ...]
    schedulers: tuple[str, ...]
    defaults_without_warm_start: TuningConfig | None = None
    method_tuning_defaults: Mapping[str, TuningConfig] = field(default_factory=dict)
    method_sampling_defaults: Mapping[str, SamplingConfig] = field(default_factory=dict)
    queue: Queue = Queue()
    upstreams: tuple[Upstream, ...] = ()
    is_read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the tenant `parent` has used from `start_day` to `end_day`, both included and of UTC, and stores now.

    `tuner_s` and `sampler_s` are seconds for which a tuner had its tunings and the sampler its edits.
    """

    parent: str
    start_day: str
    end_day: str
    images: int
    tunings: int
    edits: int
    tuner_s: float
    sampler_s: float
    image_bytes: int
    weight_bytes: int
    result_bytes: int


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What a server tells of an API key; its secret is not in it. `name` is `tenants/{tenant}/keys/{key}`.

    `scopes` are of "read", "edit", "tune" and "admin". Without `expire_time` it ends when it is revoked.
    """

    name: str
    scopes: tuple[str, ...]
    create_time: datetime | None = None
    expire_time: datetime | None = None
    revoke_time: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """An API key that was just made, with the one copy of its secret."""

    api_key: ApiKey
    secret: str = field(repr=False)
