from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.rpc import status_pb2 as _status_pb2
from unitune.v1 import server_pb2 as _server_pb2
from unitune.v1 import tuning_pb2 as _tuning_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetTunerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TunerInfo(_message.Message):
    __slots__ = ("base_model", "tuning_defaults", "method_defaults", "instance", "version")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TUNING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    METHOD_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    base_model: _server_pb2.BaseModel
    tuning_defaults: _tuning_pb2.TuningConfig
    method_defaults: _containers.RepeatedCompositeFieldContainer[_tuning_pb2.TuningConfig]
    instance: str
    version: str
    def __init__(self, base_model: _Optional[_Union[_server_pb2.BaseModel, _Mapping]] = ..., tuning_defaults: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., method_defaults: _Optional[_Iterable[_Union[_tuning_pb2.TuningConfig, _Mapping]]] = ..., instance: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class CheckTuningRequest(_message.Message):
    __slots__ = ("config",)
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    config: _tuning_pb2.TuningConfig
    def __init__(self, config: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ...) -> None: ...

class CheckTuningResponse(_message.Message):
    __slots__ = ("warnings",)
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class RunTuningRequest(_message.Message):
    __slots__ = ("name", "key", "image", "config", "path", "further_images")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FURTHER_IMAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    key: str
    image: bytes
    config: _tuning_pb2.TuningConfig
    path: str
    further_images: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, name: _Optional[str] = ..., key: _Optional[str] = ..., image: _Optional[bytes] = ..., config: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., path: _Optional[str] = ..., further_images: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RunTuningEvent(_message.Message):
    __slots__ = ("waiting", "progress", "done", "failed", "cancelled", "heartbeat")
    class Waiting(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Cancelled(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Heartbeat(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    waiting: RunTuningEvent.Waiting
    progress: _tuning_pb2.TuningProgress
    done: _tuning_pb2.WeightsRef
    failed: _status_pb2.Status
    cancelled: RunTuningEvent.Cancelled
    heartbeat: RunTuningEvent.Heartbeat
    def __init__(self, waiting: _Optional[_Union[RunTuningEvent.Waiting, _Mapping]] = ..., progress: _Optional[_Union[_tuning_pb2.TuningProgress, _Mapping]] = ..., done: _Optional[_Union[_tuning_pb2.WeightsRef, _Mapping]] = ..., failed: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., cancelled: _Optional[_Union[RunTuningEvent.Cancelled, _Mapping]] = ..., heartbeat: _Optional[_Union[RunTuningEvent.Heartbeat, _Mapping]] = ...) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
