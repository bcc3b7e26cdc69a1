"""Messages with extreme values in their fields, for any type of message of the contract."""

import base64
import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_INT32 = (-(1 << 31), -1, 0, (1 << 31) - 1)
_INT64 = (-(1 << 63), -1, 0, 1 << 31, (1 << 63) - 1)
_UINT64 = (0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_REALS = (float("nan"), float("inf"), float("-inf"), -1.0, -0.0, 5e-324, 1e308)
_TOKENS = tuple(
    base64.urlsafe_b64encode(text.encode()).decode()
    for text in (
        json.dumps(["default", 0, 10**23]),
        json.dumps(["default", 0, -1]),
        json.dumps(["default", 0, 1 << 63]),
        json.dumps(["default", 0, True]),
        json.dumps({"default": 1, "0": 2, "1": 3}),
        '["default", 0, 1e400]',
        '["default", 0, NaN]',
        '"\\ud800"',
        "1" * 5000,
        "[" * 100_000,
    )
)
_TEXTS = ("", " ", "x" * 100_000, "\0", "\u202e\ufeff", "[" * 3000, "../" * 50, "tenants/a/tunings/" + "b" * 5000)
_BYTES = (b"", b"\0" * 2000, b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, b"[" * 100_000)
_MANY = 300

Path = tuple[str, ...]


def extremes(message: Message, path: Path = ()) -> Iterator[tuple[str, Message]]:
    """The message once for each field and extreme value, with that field set so, and what was done in words."""
    for field in message.DESCRIPTOR.fields:
        for value in _values(field):
            changed = type(message)()
            changed.CopyFrom(message)
            _set(changed, field, value)
            yield f"{'.'.join((*path, field.name))}={value!r}"[:120], changed
        if field.message_type is not None and not _is_map(field):
            inner = _empty(message, field)
            if not field.is_repeated:
                inner.CopyFrom(getattr(message, field.name))
            for name, value in extremes(inner, (*path, field.name)):
                changed = type(message)()
                changed.CopyFrom(message)
                if field.is_repeated:
                    getattr(changed, field.name).append(value)
                else:
                    getattr(changed, field.name).CopyFrom(value)
                yield name, changed


def _values(field: Any) -> list[Any]:
    if _is_map(field):
        key, value = field.message_type.fields
        pairs = [{k: v} for k in _texts(key) for v in _values(value)[:3]]
        pairs += [{"key": v} for v in _values(value)]
        return [*pairs, {str(number): _values(value)[0] for number in range(_MANY)}]
    by_type: dict[int, tuple[Any, ...]] = {
        FieldDescriptor.TYPE_INT32: _INT32,
        FieldDescriptor.TYPE_INT64: _INT64,
        FieldDescriptor.TYPE_UINT64: _UINT64,
        FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
        FieldDescriptor.TYPE_ENUM: _INT32,
        FieldDescriptor.TYPE_DOUBLE: _REALS,
        FieldDescriptor.TYPE_FLOAT: _REALS,
        FieldDescriptor.TYPE_BOOL: (False, True),
        FieldDescriptor.TYPE_STRING: _texts(field),
        FieldDescriptor.TYPE_BYTES: _BYTES,
        FieldDescriptor.TYPE_MESSAGE: (None,),
    }
    values = list(by_type[field.type])
    return [[value] for value in values] + [[values[0]] * _MANY] if field.is_repeated else values


def _texts(field: Any) -> tuple[str, ...]:
    return (*_TEXTS, *_TOKENS) if field.name == "page_token" else _TEXTS


def _set(message: Message, field: Any, value: Any) -> None:
    if field.message_type is not None and not _is_map(field):
        if field.is_repeated:
            for _ in value:
                getattr(message, field.name).add()
        else:
            message.ClearField(field.name)
            getattr(message, field.name).SetInParent()
    elif _is_map(field):
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    else:
        setattr(message, field.name, value)


def _empty(message: Message, field: Any) -> Message:
    found = getattr(type(message)(), field.name)
    return found.add() if field.is_repeated else found


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
