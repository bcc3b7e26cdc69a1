import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from unitune.v1 import option_pb2 as _option_pb2
from unitune.v1 import scope_pb2 as _scope_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tuning(_message.Message):
    __slots__ = ("name", "image", "base_model", "config", "state", "key", "progress", "queue_position", "error", "weights", "labels", "create_time", "start_time", "end_time", "expire_time", "etag", "images", "warnings")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Tuning.State]
        STATE_QUEUED: _ClassVar[Tuning.State]
        STATE_RUNNING: _ClassVar[Tuning.State]
        STATE_READY: _ClassVar[Tuning.State]
        STATE_FAILED: _ClassVar[Tuning.State]
        STATE_CANCELLED: _ClassVar[Tuning.State]
        STATE_EXPIRED: _ClassVar[Tuning.State]
    STATE_UNSPECIFIED: Tuning.State
    STATE_QUEUED: Tuning.State
    STATE_RUNNING: Tuning.State
    STATE_READY: Tuning.State
    STATE_FAILED: Tuning.State
    STATE_CANCELLED: Tuning.State
    STATE_EXPIRED: Tuning.State
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    image: str
    base_model: str
    config: TuningConfig
    state: Tuning.State
    key: str
    progress: TuningProgress
    queue_position: int
    error: _status_pb2.Status
    weights: WeightsRef
    labels: _containers.ScalarMap[str, str]
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    etag: str
    images: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., image: _Optional[str] = ..., base_model: _Optional[str] = ..., config: _Optional[_Union[TuningConfig, _Mapping]] = ..., state: _Optional[_Union[Tuning.State, str]] = ..., key: _Optional[str] = ..., progress: _Optional[_Union[TuningProgress, _Mapping]] = ..., queue_position: _Optional[int] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., weights: _Optional[_Union[WeightsRef, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., images: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class TuningConfig(_message.Message):
    __slots__ = ("method", "mode", "updates", "batch", "learning_rate", "rare_tokens", "seed", "prompt", "class_noun", "num_class_images", "prior_weight", "initial_word", "num_vectors", "embedding_updates", "embedding_learning_rate", "scale_learning_rate", "stop_loss_ratio", "base_prompt", "num_inference_steps", "guidance_scale", "super_resolution_updates", "super_resolution_2_updates", "warm_start")
    class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        METHOD_UNSPECIFIED: _ClassVar[TuningConfig.Method]
        METHOD_UNITUNE: _ClassVar[TuningConfig.Method]
        METHOD_IMAGIC: _ClassVar[TuningConfig.Method]
        METHOD_DREAMBOOTH: _ClassVar[TuningConfig.Method]
        METHOD_TEXTUAL_INVERSION: _ClassVar[TuningConfig.Method]
        METHOD_NULL_TEXT: _ClassVar[TuningConfig.Method]
    METHOD_UNSPECIFIED: TuningConfig.Method
    METHOD_UNITUNE: TuningConfig.Method
    METHOD_IMAGIC: TuningConfig.Method
    METHOD_DREAMBOOTH: TuningConfig.Method
    METHOD_TEXTUAL_INVERSION: TuningConfig.Method
    METHOD_NULL_TEXT: TuningConfig.Method
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[TuningConfig.Mode]
        MODE_FULL: _ClassVar[TuningConfig.Mode]
        MODE_ATTN_OUT: _ClassVar[TuningConfig.Mode]
        MODE_LORA: _ClassVar[TuningConfig.Mode]
    MODE_UNSPECIFIED: TuningConfig.Mode
    MODE_FULL: TuningConfig.Mode
    MODE_ATTN_OUT: TuningConfig.Mode
    MODE_LORA: TuningConfig.Mode
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    RARE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CLASS_NOUN_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASS_IMAGES_FIELD_NUMBER: _ClassVar[int]
    PRIOR_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    INITIAL_WORD_FIELD_NUMBER: _ClassVar[int]
    NUM_VECTORS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_UPDATES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SCALE_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    STOP_LOSS_RATIO_FIELD_NUMBER: _ClassVar[int]
    BASE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_UPDATES_FIELD_NUMBER: _ClassVar[int]
    SUPER_RESOLUTION_2_UPDATES_FIELD_NUMBER: _ClassVar[int]
    WARM_START_FIELD_NUMBER: _ClassVar[int]
    method: TuningConfig.Method
    mode: TuningConfig.Mode
    updates: int
    batch: int
    learning_rate: float
    rare_tokens: str
    seed: int
    prompt: str
    class_noun: str
    num_class_images: int
    prior_weight: float
    initial_word: str
    num_vectors: int
    embedding_updates: int
    embedding_learning_rate: float
    scale_learning_rate: bool
    stop_loss_ratio: float
    base_prompt: str
    num_inference_steps: int
    guidance_scale: float
    super_resolution_updates: int
    super_resolution_2_updates: int
    warm_start: bool
    def __init__(self, method: _Optional[_Union[TuningConfig.Method, str]] = ..., mode: _Optional[_Union[TuningConfig.Mode, str]] = ..., updates: _Optional[int] = ..., batch: _Optional[int] = ..., learning_rate: _Optional[float] = ..., rare_tokens: _Optional[str] = ..., seed: _Optional[int] = ..., prompt: _Optional[str] = ..., class_noun: _Optional[str] = ..., num_class_images: _Optional[int] = ..., prior_weight: _Optional[float] = ..., initial_word: _Optional[str] = ..., num_vectors: _Optional[int] = ..., embedding_updates: _Optional[int] = ..., embedding_learning_rate: _Optional[float] = ..., scale_learning_rate: _Optional[bool] = ..., stop_loss_ratio: _Optional[float] = ..., base_prompt: _Optional[str] = ..., num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., super_resolution_updates: _Optional[int] = ..., super_resolution_2_updates: _Optional[int] = ..., warm_start: _Optional[bool] = ...) -> None: ...

class TuningProgress(_message.Message):
    __slots__ = ("update", "total", "loss", "left_s", "learning_rate", "stopped_early", "stage", "warning", "attempt", "resumed_update")
    class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STAGE_UNSPECIFIED: _ClassVar[TuningProgress.Stage]
        STAGE_PREPARING: _ClassVar[TuningProgress.Stage]
        STAGE_UPDATING: _ClassVar[TuningProgress.Stage]
        STAGE_PACKING: _ClassVar[TuningProgress.Stage]
        STAGE_STORING: _ClassVar[TuningProgress.Stage]
    STAGE_UNSPECIFIED: TuningProgress.Stage
    STAGE_PREPARING: TuningProgress.Stage
    STAGE_UPDATING: TuningProgress.Stage
    STAGE_PACKING: TuningProgress.Stage
    STAGE_STORING: TuningProgress.Stage
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    STOPPED_EARLY_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_UPDATE_FIELD_NUMBER: _ClassVar[int]
    update: int
    total: int
    loss: float
    left_s: float
    learning_rate: float
    stopped_early: bool
    stage: TuningProgress.Stage
    warning: str
    attempt: int
    resumed_update: int
    def __init__(self, update: _Optional[int] = ..., total: _Optional[int] = ..., loss: _Optional[float] = ..., left_s: _Optional[float] = ..., learning_rate: _Optional[float] = ..., stopped_early: _Optional[bool] = ..., stage: _Optional[_Union[TuningProgress.Stage, str]] = ..., warning: _Optional[str] = ..., attempt: _Optional[int] = ..., resumed_update: _Optional[int] = ...) -> None: ...

class WeightsRef(_message.Message):
    __slots__ = ("key", "digest", "path", "size_bytes", "base_model")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    key: str
    digest: str
    path: str
    size_bytes: int
    base_model: str
    def __init__(self, key: _Optional[str] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., base_model: _Optional[str] = ...) -> None: ...

class CreateTuningRequest(_message.Message):
    __slots__ = ("parent", "image", "config", "request_id", "labels", "images", "validate_only")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PARENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    parent: str
    image: str
    config: TuningConfig
    request_id: str
    labels: _containers.ScalarMap[str, str]
    images: _containers.RepeatedScalarFieldContainer[str]
    validate_only: bool
    def __init__(self, parent: _Optional[str] = ..., image: _Optional[str] = ..., config: _Optional[_Union[TuningConfig, _Mapping]] = ..., request_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., images: _Optional[_Iterable[str]] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class GetTuningRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListTuningsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "state")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    state: Tuning.State
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[Tuning.State, str]] = ...) -> None: ...

class ListTuningsResponse(_message.Message):
    __slots__ = ("tunings", "next_page_token")
    TUNINGS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tunings: _containers.RepeatedCompositeFieldContainer[Tuning]
    next_page_token: str
    def __init__(self, tunings: _Optional[_Iterable[_Union[Tuning, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchTuningRequest(_message.Message):
    __slots__ = ("name", "after_sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_sequence: int
    def __init__(self, name: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class TuningEvent(_message.Message):
    __slots__ = ("sequence", "create_time", "snapshot", "queued", "started", "progress", "ready", "failed", "cancelled", "heartbeat")
    class Queued(_message.Message):
        __slots__ = ("position",)
        POSITION_FIELD_NUMBER: _ClassVar[int]
        position: int
        def __init__(self, position: _Optional[int] = ...) -> None: ...
    class Started(_message.Message):
        __slots__ = ("attempt",)
        ATTEMPT_FIELD_NUMBER: _ClassVar[int]
        attempt: int
        def __init__(self, attempt: _Optional[int] = ...) -> None: ...
    class Heartbeat(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    create_time: _timestamp_pb2.Timestamp
    snapshot: Tuning
    queued: TuningEvent.Queued
    started: TuningEvent.Started
    progress: TuningProgress
    ready: Tuning
    failed: _status_pb2.Status
    cancelled: Tuning
    heartbeat: TuningEvent.Heartbeat
    def __init__(self, sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., snapshot: _Optional[_Union[Tuning, _Mapping]] = ..., queued: _Optional[_Union[TuningEvent.Queued, _Mapping]] = ..., started: _Optional[_Union[TuningEvent.Started, _Mapping]] = ..., progress: _Optional[_Union[TuningProgress, _Mapping]] = ..., ready: _Optional[_Union[Tuning, _Mapping]] = ..., failed: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., cancelled: _Optional[_Union[Tuning, _Mapping]] = ..., heartbeat: _Optional[_Union[TuningEvent.Heartbeat, _Mapping]] = ...) -> None: ...

class CancelTuningRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UpdateTuningRequest(_message.Message):
    __slots__ = ("tuning",)
    TUNING_FIELD_NUMBER: _ClassVar[int]
    tuning: Tuning
    def __init__(self, tuning: _Optional[_Union[Tuning, _Mapping]] = ...) -> None: ...

class DeleteTuningRequest(_message.Message):
    __slots__ = ("name", "allow_missing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    allow_missing: bool
    def __init__(self, name: _Optional[str] = ..., allow_missing: _Optional[bool] = ...) -> None: ...
