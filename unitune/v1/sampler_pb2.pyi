from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.rpc import status_pb2 as _status_pb2
from unitune.v1 import edit_pb2 as _edit_pb2
from unitune.v1 import server_pb2 as _server_pb2
from unitune.v1 import tuning_pb2 as _tuning_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetSamplerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SamplerInfo(_message.Message):
    __slots__ = ("base_model", "sampling_defaults", "engine", "method_defaults", "version")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    METHOD_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    base_model: _server_pb2.BaseModel
    sampling_defaults: _edit_pb2.SamplingConfig
    engine: str
    method_defaults: _containers.RepeatedCompositeFieldContainer[_edit_pb2.SamplingConfig]
    version: str
    def __init__(self, base_model: _Optional[_Union[_server_pb2.BaseModel, _Mapping]] = ..., sampling_defaults: _Optional[_Union[_edit_pb2.SamplingConfig, _Mapping]] = ..., engine: _Optional[str] = ..., method_defaults: _Optional[_Iterable[_Union[_edit_pb2.SamplingConfig, _Mapping]]] = ..., version: _Optional[str] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("edit", "weights", "image", "rare_tokens", "prompt", "config", "seeds", "preview_every", "mask", "tuning_config", "content_filter")
    EDIT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    RARE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    TUNING_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FILTER_FIELD_NUMBER: _ClassVar[int]
    edit: str
    weights: _tuning_pb2.WeightsRef
    image: bytes
    rare_tokens: str
    prompt: str
    config: _edit_pb2.SamplingConfig
    seeds: _containers.RepeatedScalarFieldContainer[int]
    preview_every: int
    mask: bytes
    tuning_config: _tuning_pb2.TuningConfig
    content_filter: bool
    def __init__(self, edit: _Optional[str] = ..., weights: _Optional[_Union[_tuning_pb2.WeightsRef, _Mapping]] = ..., image: _Optional[bytes] = ..., rare_tokens: _Optional[str] = ..., prompt: _Optional[str] = ..., config: _Optional[_Union[_edit_pb2.SamplingConfig, _Mapping]] = ..., seeds: _Optional[_Iterable[int]] = ..., preview_every: _Optional[int] = ..., mask: _Optional[bytes] = ..., tuning_config: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., content_filter: _Optional[bool] = ...) -> None: ...

class CheckSampleResponse(_message.Message):
    __slots__ = ("warnings",)
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, warnings: _Optional[_Iterable[str]] = ...) -> None: ...

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

class SampleEvent(_message.Message):
    __slots__ = ("loading", "step", "image", "done", "failed", "warning", "heartbeat", "image_part")
    LOADING_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PART_FIELD_NUMBER: _ClassVar[int]
    loading: _edit_pb2.EditEvent.Loading
    step: _edit_pb2.EditEvent.Step
    image: _edit_pb2.EditEvent.EditedImage
    done: _edit_pb2.Timings
    failed: _status_pb2.Status
    warning: _edit_pb2.EditEvent.Warning
    heartbeat: _edit_pb2.EditEvent.Heartbeat
    image_part: _edit_pb2.EditEvent.ImagePart
    def __init__(self, loading: _Optional[_Union[_edit_pb2.EditEvent.Loading, _Mapping]] = ..., step: _Optional[_Union[_edit_pb2.EditEvent.Step, _Mapping]] = ..., image: _Optional[_Union[_edit_pb2.EditEvent.EditedImage, _Mapping]] = ..., done: _Optional[_Union[_edit_pb2.Timings, _Mapping]] = ..., failed: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., warning: _Optional[_Union[_edit_pb2.EditEvent.Warning, _Mapping]] = ..., heartbeat: _Optional[_Union[_edit_pb2.EditEvent.Heartbeat, _Mapping]] = ..., image_part: _Optional[_Union[_edit_pb2.EditEvent.ImagePart, _Mapping]] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("weights",)
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    weights: _tuning_pb2.WeightsRef
    def __init__(self, weights: _Optional[_Union[_tuning_pb2.WeightsRef, _Mapping]] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("loading",)
    LOADING_FIELD_NUMBER: _ClassVar[int]
    loading: _edit_pb2.EditEvent.Loading
    def __init__(self, loading: _Optional[_Union[_edit_pb2.EditEvent.Loading, _Mapping]] = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class EvictResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchReplicaRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplicaState(_message.Message):
    __slots__ = ("resident", "engines", "waiting", "draining", "epoch", "running", "loading", "kept", "queued_s", "edit_s", "refit_s", "kept_refit_s", "held")
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    EDIT_S_FIELD_NUMBER: _ClassVar[int]
    REFIT_S_FIELD_NUMBER: _ClassVar[int]
    KEPT_REFIT_S_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    resident: _containers.RepeatedScalarFieldContainer[str]
    engines: int
    waiting: int
    draining: bool
    epoch: str
    running: int
    loading: _containers.RepeatedScalarFieldContainer[str]
    kept: _containers.RepeatedScalarFieldContainer[str]
    queued_s: float
    edit_s: float
    refit_s: float
    kept_refit_s: float
    held: _containers.RepeatedCompositeFieldContainer[_tuning_pb2.WeightsRef]
    def __init__(self, resident: _Optional[_Iterable[str]] = ..., engines: _Optional[int] = ..., waiting: _Optional[int] = ..., draining: _Optional[bool] = ..., epoch: _Optional[str] = ..., running: _Optional[int] = ..., loading: _Optional[_Iterable[str]] = ..., kept: _Optional[_Iterable[str]] = ..., queued_s: _Optional[float] = ..., edit_s: _Optional[float] = ..., refit_s: _Optional[float] = ..., kept_refit_s: _Optional[float] = ..., held: _Optional[_Iterable[_Union[_tuning_pb2.WeightsRef, _Mapping]]] = ...) -> None: ...
