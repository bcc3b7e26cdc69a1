from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
OPTION_FIELD_NUMBER: _ClassVar[int]
option: _descriptor.FieldDescriptor

class Option(_message.Message):
    __slots__ = ("gte", "gt", "lte", "lt", "name", "min_len", "max_len", "max_items", "printable", "like", "methods", "needs", "needs_base_model", "among_base_model", "refused_with", "flag", "help", "default", "remedy", "keyword", "is_group", "is_switch")
    class RefusedWithEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GTE_FIELD_NUMBER: _ClassVar[int]
    GT_FIELD_NUMBER: _ClassVar[int]
    LTE_FIELD_NUMBER: _ClassVar[int]
    LT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MIN_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    PRINTABLE_FIELD_NUMBER: _ClassVar[int]
    LIKE_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    AMONG_BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_WITH_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    KEYWORD_FIELD_NUMBER: _ClassVar[int]
    IS_GROUP_FIELD_NUMBER: _ClassVar[int]
    IS_SWITCH_FIELD_NUMBER: _ClassVar[int]
    gte: float
    gt: float
    lte: float
    lt: float
    name: str
    min_len: int
    max_len: int
    max_items: int
    printable: bool
    like: str
    methods: _containers.RepeatedScalarFieldContainer[str]
    needs: str
    needs_base_model: str
    among_base_model: _containers.RepeatedScalarFieldContainer[str]
    refused_with: _containers.ScalarMap[str, str]
    flag: str
    help: str
    default: str
    remedy: str
    keyword: str
    is_group: bool
    is_switch: bool
    def __init__(self, gte: _Optional[float] = ..., gt: _Optional[float] = ..., lte: _Optional[float] = ..., lt: _Optional[float] = ..., name: _Optional[str] = ..., min_len: _Optional[int] = ..., max_len: _Optional[int] = ..., max_items: _Optional[int] = ..., printable: _Optional[bool] = ..., like: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ..., needs: _Optional[str] = ..., needs_base_model: _Optional[str] = ..., among_base_model: _Optional[_Iterable[str]] = ..., refused_with: _Optional[_Mapping[str, str]] = ..., flag: _Optional[str] = ..., help: _Optional[str] = ..., default: _Optional[str] = ..., remedy: _Optional[str] = ..., keyword: _Optional[str] = ..., is_group: _Optional[bool] = ..., is_switch: _Optional[bool] = ...) -> None: ...
