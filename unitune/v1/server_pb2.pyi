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
    __slots__ = ("version", "base_model", "tuning_defaults", "sampling_defaults", "limits", "methods", "schedulers", "method_tuning_defaults", "method_sampling_defaults")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TUNING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULERS_FIELD_NUMBER: _ClassVar[int]
    METHOD_TUNING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    METHOD_SAMPLING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    base_model: BaseModel
    tuning_defaults: _tuning_pb2.TuningConfig
    sampling_defaults: _edit_pb2.SamplingConfig
    limits: Limits
    methods: _containers.RepeatedScalarFieldContainer[_edit_pb2.SamplingConfig.Method]
    schedulers: _containers.RepeatedScalarFieldContainer[_edit_pb2.SamplingConfig.Scheduler]
    method_tuning_defaults: _containers.RepeatedCompositeFieldContainer[_tuning_pb2.TuningConfig]
    method_sampling_defaults: _containers.RepeatedCompositeFieldContainer[_edit_pb2.SamplingConfig]
    def __init__(self, version: _Optional[str] = ..., base_model: _Optional[_Union[BaseModel, _Mapping]] = ..., tuning_defaults: _Optional[_Union[_tuning_pb2.TuningConfig, _Mapping]] = ..., sampling_defaults: _Optional[_Union[_edit_pb2.SamplingConfig, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., methods: _Optional[_Iterable[_Union[_edit_pb2.SamplingConfig.Method, str]]] = ..., schedulers: _Optional[_Iterable[_Union[_edit_pb2.SamplingConfig.Scheduler, str]]] = ..., method_tuning_defaults: _Optional[_Iterable[_Union[_tuning_pb2.TuningConfig, _Mapping]]] = ..., method_sampling_defaults: _Optional[_Iterable[_Union[_edit_pb2.SamplingConfig, _Mapping]]] = ...) -> None: ...

class BaseModel(_message.Message):
    __slots__ = ("name", "digest", "width", "height", "vocabulary", "has_clip_filter", "has_clipseg", "has_content_filter", "super_resolution_width", "super_resolution_height", "fast_steps", "has_known_pictures", "size_step")
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
    FAST_STEPS_FIELD_NUMBER: _ClassVar[int]
    HAS_KNOWN_PICTURES_FIELD_NUMBER: _ClassVar[int]
    SIZE_STEP_FIELD_NUMBER: _ClassVar[int]
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
    fast_steps: int
    has_known_pictures: bool
    size_step: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., vocabulary: _Optional[_Iterable[str]] = ..., has_clip_filter: _Optional[bool] = ..., has_clipseg: _Optional[bool] = ..., has_content_filter: _Optional[bool] = ..., super_resolution_width: _Optional[int] = ..., super_resolution_height: _Optional[int] = ..., fast_steps: _Optional[int] = ..., has_known_pictures: _Optional[bool] = ..., size_step: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("upload_bytes", "upload_pixels", "chunk_bytes", "prompt_characters", "seeds", "upload_side", "upload_webp_pixels", "upload_heif_pixels")
    UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_PIXELS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_SIDE_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_WEBP_PIXELS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_HEIF_PIXELS_FIELD_NUMBER: _ClassVar[int]
    upload_bytes: int
    upload_pixels: int
    chunk_bytes: int
    prompt_characters: int
    seeds: int
    upload_side: int
    upload_webp_pixels: int
    upload_heif_pixels: int
    def __init__(self, upload_bytes: _Optional[int] = ..., upload_pixels: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., prompt_characters: _Optional[int] = ..., seeds: _Optional[int] = ..., upload_side: _Optional[int] = ..., upload_webp_pixels: _Optional[int] = ..., upload_heif_pixels: _Optional[int] = ...) -> None: ...
