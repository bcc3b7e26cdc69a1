from google.api import annotations_pb2 as _annotations_pb2
from unitune.v1 import edit_pb2 as _edit_pb2
from unitune.v1 import option_pb2 as _option_pb2
from unitune.v1 import scope_pb2 as _scope_pb2
from unitune.v1 import tuning_pb2 as _tuning_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("version", "base_model", "tuning_defaults", "sampling_defaults", "limits", "methods", "schedulers", "defaults_without_warm_start", "method_tuning_defaults", "method_sampling_defaults", "queue", "upstreams", "is_read_only")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TUNING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_WITHOUT_WARM_START_FIELD_NUMBER: _ClassVar[int]
    METHOD_TUNING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    METHOD_SAMPLING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    IS_READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    version: str
    base_model: BaseModel
    tuning_defaults: _tuning_pb2.TuningConfig
    sampling_defaults: _edit_pb2.SamplingConfig
    limits: Limits
    methods: _containers.RepeatedScalarFieldContainer[_edit_pb2.SamplingConfig.Method]
    schedulers: _containers.RepeatedScalarFieldContainer[_edit_pb2.SamplingConfig.Scheduler]
    defaults_without_warm_start: _tuning_pb2.TuningConfig
    method_tuning_defaults: _containers.RepeatedCompositeFieldContainer[_tuning_pb2.TuningConfig]
    method_sampling_defaults: _containers.RepeatedCompositeFieldContainer[_edit_pb2.SamplingConfig]
    queue: Queue
    upstreams: _containers.RepeatedCompositeFieldContainer[Upstream]
    is_read_only: bool
    def __init__(self, version: _Optional[str] = ..., base_model: _Optional[_Union[BaseModel, _Mapping]] = ..., tuning_defaults: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., sampling_defaults: _Optional[_Union[_edit_pb2.SamplingConfig, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., methods: _Optional[_Iterable[_Union[_edit_pb2.SamplingConfig.Method, str]]] = ..., schedulers: _Optional[_Iterable[_Union[_edit_pb2.SamplingConfig.Scheduler, str]]] = ..., defaults_without_warm_start: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., method_tuning_defaults: _Optional[_Iterable[_Union[_tuning_pb2.TuningConfig, _Mapping]]] = ..., method_sampling_defaults: _Optional[_Iterable[_Union[_edit_pb2.SamplingConfig, _Mapping]]] = ..., queue: _Optional[_Union[Queue, _Mapping]] = ..., upstreams: _Optional[_Iterable[_Union[Upstream, _Mapping]]] = ..., is_read_only: _Optional[bool] = ...) -> None: ...

class Queue(_message.Message):
    __slots__ = ("tunings_queued", "tunings_running", "edits_waiting", "edits_running", "oldest_tuning_s", "oldest_edit_s")
    TUNINGS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    TUNINGS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    EDITS_WAITING_FIELD_NUMBER: _ClassVar[int]
    EDITS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    OLDEST_TUNING_S_FIELD_NUMBER: _ClassVar[int]
    OLDEST_EDIT_S_FIELD_NUMBER: _ClassVar[int]
    tunings_queued: int
    tunings_running: int
    edits_waiting: int
    edits_running: int
    oldest_tuning_s: float
    oldest_edit_s: float
    def __init__(self, tunings_queued: _Optional[int] = ..., tunings_running: _Optional[int] = ..., edits_waiting: _Optional[int] = ..., edits_running: _Optional[int] = ..., oldest_tuning_s: _Optional[float] = ..., oldest_edit_s: _Optional[float] = ...) -> None: ...

class Upstream(_message.Message):
    __slots__ = ("name", "version", "is_answering", "engine", "address", "base_model", "is_left_out")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_ANSWERING_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    IS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    is_answering: bool
    engine: str
    address: str
    base_model: str
    is_left_out: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., is_answering: _Optional[bool] = ..., engine: _Optional[str] = ..., address: _Optional[str] = ..., base_model: _Optional[str] = ..., is_left_out: _Optional[bool] = ...) -> None: ...

class BaseModel(_message.Message):
    __slots__ = ("name", "digest", "width", "height", "vocabulary", "has_clip_filter", "has_clipseg", "has_content_filter", "super_resolution_width", "super_resolution_height", "super_resolution_2_width", "super_resolution_2_height", "fast_steps", "has_known_pictures", "size_step", "fast_lora", "fast_lora_defaults")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    HAS_CLIP_FILTER_FIELD_NUMBER: _ClassVar[int]
    HAS_CLIPSEG_FIELD_NUMBER: _ClassVar[int]
    HAS_CONTENT_FILTER_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_WIDTH_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_2_WIDTH_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_2_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FAST_STEPS_FIELD_NUMBER: _ClassVar[int]
    HAS_KNOWN_PICTURES_FIELD_NUMBER: _ClassVar[int]
    SIZE_STEP_FIELD_NUMBER: _ClassVar[int]
    FAST_LORA_FIELD_NUMBER: _ClassVar[int]
    FAST_LORA_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    width: int
    height: int
    vocabulary: _containers.RepeatedScalarFieldContainer[str]
    has_clip_filter: bool
    has_clipseg: bool
    has_content_filter: bool
    super_resolution_width: int
    super_resolution_height: int
    super_resolution_2_width: int
    super_resolution_2_height: int
    fast_steps: int
    has_known_pictures: bool
    size_step: int
    fast_lora: str
    fast_lora_defaults: _edit_pb2.SamplingConfig
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., vocabulary: _Optional[_Iterable[str]] = ..., has_clip_filter: _Optional[bool] = ..., has_clipseg: _Optional[bool] = ..., has_content_filter: _Optional[bool] = ..., super_resolution_width: _Optional[int] = ..., super_resolution_height: _Optional[int] = ..., super_resolution_2_width: _Optional[int] = ..., super_resolution_2_height: _Optional[int] = ..., fast_steps: _Optional[int] = ..., has_known_pictures: _Optional[bool] = ..., size_step: _Optional[int] = ..., fast_lora: _Optional[str] = ..., fast_lora_defaults: _Optional[_Union[_edit_pb2.SamplingConfig, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("upload_bytes", "upload_pixels", "chunk_bytes", "prompt_characters", "seeds", "upload_side", "upload_webp_pixels", "upload_heif_pixels", "tenant_tunings", "tenant_edits", "tenant_requests_per_s", "tenant_bytes", "open_tunings", "open_edits", "edit_steps", "tuning_pixels", "tenant_kept_tunings", "tenant_running_tunings")
    UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_PIXELS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_SIDE_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_WEBP_PIXELS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_HEIF_PIXELS_FIELD_NUMBER: _ClassVar[int]
    TENANT_TUNINGS_FIELD_NUMBER: _ClassVar[int]
    TENANT_EDITS_FIELD_NUMBER: _ClassVar[int]
    TENANT_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    TENANT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_TUNINGS_FIELD_NUMBER: _ClassVar[int]
    OPEN_EDITS_FIELD_NUMBER: _ClassVar[int]
    EDIT_STEPS_FIELD_NUMBER: _ClassVar[int]
    TUNING_PIXELS_FIELD_NUMBER: _ClassVar[int]
    TENANT_KEPT_TUNINGS_FIELD_NUMBER: _ClassVar[int]
    TENANT_RUNNING_TUNINGS_FIELD_NUMBER: _ClassVar[int]
    upload_bytes: int
    upload_pixels: int
    chunk_bytes: int
    prompt_characters: int
    seeds: int
    upload_side: int
    upload_webp_pixels: int
    upload_heif_pixels: int
    tenant_tunings: int
    tenant_edits: int
    tenant_requests_per_s: float
    tenant_bytes: int
    open_tunings: int
    open_edits: int
    edit_steps: int
    tuning_pixels: int
    tenant_kept_tunings: int
    tenant_running_tunings: int
    def __init__(self, upload_bytes: _Optional[int] = ..., upload_pixels: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., prompt_characters: _Optional[int] = ..., seeds: _Optional[int] = ..., upload_side: _Optional[int] = ..., upload_webp_pixels: _Optional[int] = ..., upload_heif_pixels: _Optional[int] = ..., tenant_tunings: _Optional[int] = ..., tenant_edits: _Optional[int] = ..., tenant_requests_per_s: _Optional[float] = ..., tenant_bytes: _Optional[int] = ..., open_tunings: _Optional[int] = ..., open_edits: _Optional[int] = ..., edit_steps: _Optional[int] = ..., tuning_pixels: _Optional[int] = ..., tenant_kept_tunings: _Optional[int] = ..., tenant_running_tunings: _Optional[int] = ...) -> None: ...
