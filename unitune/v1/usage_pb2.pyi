from google.api import field_behavior_pb2 as _field_behavior_pb2
from unitune.v1 import scope_pb2 as _scope_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Usage(_message.Message):
    __slots__ = ("parent", "start_day", "end_day", "images", "tunings", "edits", "tuner_s", "sampler_s", "image_bytes", "weight_bytes", "result_bytes")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    START_DAY_FIELD_NUMBER: _ClassVar[int]
    END_DAY_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TUNINGS_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    TUNER_S_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_S_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
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
    def __init__(self, parent: _Optional[str] = ..., start_day: _Optional[str] = ..., end_day: _Optional[str] = ..., images: _Optional[int] = ..., tunings: _Optional[int] = ..., edits: _Optional[int] = ..., tuner_s: _Optional[float] = ..., sampler_s: _Optional[float] = ..., image_bytes: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., result_bytes: _Optional[int] = ...) -> None: ...

class ListUsageRequest(_message.Message):
    __slots__ = ("parent", "start_day", "end_day", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    START_DAY_FIELD_NUMBER: _ClassVar[int]
    END_DAY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    start_day: str
    end_day: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., start_day: _Optional[str] = ..., end_day: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListUsageResponse(_message.Message):
    __slots__ = ("usage", "next_page_token")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    usage: _containers.RepeatedCompositeFieldContainer[Usage]
    next_page_token: str
    def __init__(self, usage: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
