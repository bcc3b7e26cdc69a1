import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.rpc import status_pb2 as _status_pb2
from unitune.v1 import server_pb2 as _server_pb2
from unitune.v1 import tuning_pb2 as _tuning_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TunerInfo(_message.Message):
    __slots__ = ("base_model", "tuning_defaults", "warm_start_defaults", "method_defaults", "version")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TUNING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    WARM_START_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    METHOD_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    base_model: _server_pb2.BaseModel
    tuning_defaults: _tuning_pb2.TuningConfig
    warm_start_defaults: _tuning_pb2.TuningConfig
    method_defaults: _containers.RepeatedCompositeFieldContainer[_tuning_pb2.TuningConfig]
    version: str
    def __init__(self, base_model: _Optional[_Union[_server_pb2.BaseModel, _Mapping]] = ..., tuning_defaults: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., warm_start_defaults: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., method_defaults: _Optional[_Iterable[_Union[_tuning_pb2.TuningConfig, _Mapping]]] = ..., version: _Optional[str] = ...) -> None: ...

class TunerProcess(_message.Message):
    __slots__ = ("place", "instance")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    place: str
    instance: str
    def __init__(self, place: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: TunerInfo
    def __init__(self, info: _Optional[_Union[TunerInfo, _Mapping]] = ...) -> None: ...

class AnnounceResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _duration_pb2.Duration
    def __init__(self, lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TakeTuningRequest(_message.Message):
    __slots__ = ("tuner", "base_model", "wait")
    TUNER_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    tuner: TunerProcess
    base_model: str
    wait: _duration_pb2.Duration
    def __init__(self, tuner: _Optional[_Union[TunerProcess, _Mapping]] = ..., base_model: _Optional[str] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TakeTuningResponse(_message.Message):
    __slots__ = ("assignment",)
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("name", "attempt", "key", "config", "images", "path", "checkpoint", "trace")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    name: str
    attempt: int
    key: str
    config: _tuning_pb2.TuningConfig
    images: _containers.RepeatedCompositeFieldContainer[StoredImage]
    path: str
    checkpoint: Checkpoint
    trace: str
    def __init__(self, name: _Optional[str] = ..., attempt: _Optional[int] = ..., key: _Optional[str] = ..., config: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., images: _Optional[_Iterable[_Union[StoredImage, _Mapping]]] = ..., path: _Optional[str] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., trace: _Optional[str] = ...) -> None: ...

class StoredImage(_message.Message):
    __slots__ = ("name", "path", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    sha256: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("path", "sha256", "update")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    update: int
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ..., update: _Optional[int] = ...) -> None: ...

class ReportTuningRequest(_message.Message):
    __slots__ = ("name", "attempt", "tuner", "progress", "alive", "done", "failed", "give_back", "checkpoint")
    class Alive(_message.Message):
        __slots__ = ("wait",)
        WAIT_FIELD_NUMBER: _ClassVar[int]
        wait: _duration_pb2.Duration
        def __init__(self, wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    class GiveBack(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TUNER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    GIVE_BACK_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    attempt: int
    tuner: TunerProcess
    progress: _tuning_pb2.TuningProgress
    alive: ReportTuningRequest.Alive
    done: _tuning_pb2.WeightsRef
    failed: _status_pb2.Status
    give_back: ReportTuningRequest.GiveBack
    checkpoint: Checkpoint
    def __init__(self, name: _Optional[str] = ..., attempt: _Optional[int] = ..., tuner: _Optional[_Union[TunerProcess, _Mapping]] = ..., progress: _Optional[_Union[_tuning_pb2.TuningProgress, _Mapping]] = ..., alive: _Optional[_Union[ReportTuningRequest.Alive, _Mapping]] = ..., done: _Optional[_Union[_tuning_pb2.WeightsRef, _Mapping]] = ..., failed: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., give_back: _Optional[_Union[ReportTuningRequest.GiveBack, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class ReportTuningResponse(_message.Message):
    __slots__ = ("noted", "cancel", "lease_lost")
    NOTED_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    LEASE_LOST_FIELD_NUMBER: _ClassVar[int]
    noted: _empty_pb2.Empty
    cancel: _empty_pb2.Empty
    lease_lost: _empty_pb2.Empty
    def __init__(self, noted: _Optional[_Union[_empty_pb2.Empty, _Mapping]] = ..., cancel: _Optional[_Union[_empty_pb2.Empty, _Mapping]] = ..., lease_lost: _Optional[_Union[_empty_pb2.Empty, _Mapping]] = ...) -> None: ...
