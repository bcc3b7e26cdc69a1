"""The options of a request, as the contract declares them: protos/unitune/v1/option.proto.

Checks raise InvalidField naming the field, its value and what would be right; bytes that are too many are
UPLOAD_TOO_LARGE. A text longer than a word may be a prompt, which no error repeats: it appears by its length.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from operator import ge, gt, le, lt
from typing import Any, cast

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from unitune.errors import InvalidArgument, InvalidField
from unitune.v1 import edit_pb2, option_pb2, server_pb2, tuning_pb2

WORD_CHARACTERS = 64  # a text that may have more may be a prompt
_FILE = edit_pb2.DESCRIPTOR  # in whose package, and pool, the fields are that another one is like


@dataclass(frozen=True)
class Field:
    """One field and what is declared of it."""

    descriptor: FieldDescriptor
    declared: option_pb2.Option  # what it says itself
    limits: option_pb2.Option  # its range, length or set, and remedy: its own, or those of the field that it is like

    @property
    def name(self) -> str:
        """The field's name."""
        return self.descriptor.name

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """What a text may be; empty for a field that is no choice."""
        return tuple(getattr(self.limits, "in"))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods that read it; empty for all."""
        return tuple(self.declared.methods)

    @cached_property
    def is_required(self) -> bool:
        """Whether an empty text is refused."""
        behavior = self.descriptor.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        return field_behavior_pb2.REQUIRED in behavior

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole."""
        return self._of_values.cpp_type not in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)

    @property
    def most(self) -> float:
        """The most that a number may be. Raises ValueError for a field without such an end."""
        if not self.limits.HasField("lte"):
            raise ValueError(f"{self.descriptor.full_name} has no lte")
        return _number(self.limits.lte)

    def is_read_by(self, method: str) -> bool:
        """Whether a method reads it."""
        return not self.methods or method in self.methods

    def is_set(self, message: Message) -> bool:
        """Whether a message says something for it."""
        if self.descriptor.has_presence:
            return message.HasField(self.name)
        return bool(getattr(message, self.name))

    def violations(self, value: Any, place: str) -> Iterator[InvalidArgument]:
        """Everything that is wrong with a value; `place` is the field's own place in the request."""
        if self.descriptor.is_repeated:
            if self.limits.max_items and len(value) > self.limits.max_items:
                number = f"{len(value)} {self.name.rpartition('_')[2]}"
                yield InvalidField(place, number, f"give at most {self.limits.max_items}")
            is_map = isinstance(value, Mapping)
            for index, item in enumerate(value.values() if is_map else value):
                yield from self._violations(item, place if is_map else f"{place}[{index}]")
            return
        yield from self._violations(value, place)

    def _violations(self, value: Any, place: str) -> Iterator[InvalidArgument]:
        limits, is_wrong, shown = self.limits, False, value
        if isinstance(value, bytes):
            if limits.max_len and len(value) > limits.max_len:
                yield InvalidArgument.of_field(place, f"{len(value)} bytes", self._remedy(), reason="UPLOAD_TOO_LARGE")
            return
        if isinstance(value, str):
            is_wrong = bool(self.choices) and value not in self.choices
            if len(value.strip()) < limits.min_len:
                is_wrong, shown = True, "blank" if value else ""
            elif limits.max_len and len(value) > limits.max_len:
                is_wrong, shown = True, f"{len(value)} characters"
            elif limits.printable and not value.isprintable():
                is_wrong = True
        elif isinstance(value, int | float):
            # Written so that what is no number (NaN) is wrong.
            is_wrong = any(
                limits.HasField(end) and not holds(value, getattr(limits, end)) for end, holds in _ENDS.items()
            )
        if is_wrong:
            yield InvalidField(place, shown, self._remedy())

    def _remedy(self) -> str:
        words = range_in_words(self)
        if self.limits.remedy:
            return self.limits.remedy.replace("{}", words)
        return f"{'use' if self.limits.max_len else 'it must be'} {words}"

    @property
    def _of_values(self) -> FieldDescriptor:
        entry = self.descriptor.message_type
        return entry.fields_by_name["value"] if entry is not None and entry.GetOptions().map_entry else self.descriptor


_ENDS: Mapping[str, Callable[[float, float], bool]] = {"gte": ge, "gt": gt, "lte": le, "lt": lt}


def options_of(kind: type[Message]) -> Mapping[str, Field]:
    """The fields of a message, by name, in the order of the contract."""
    return _fields(kind.DESCRIPTOR)


@cache
def _fields(descriptor: Descriptor) -> Mapping[str, Field]:
    fields = {}
    for field in descriptor.fields:
        declared = limits = _declared(field)
        if declared.like:
            limits = _declared(_FILE.pool.FindFieldByName(f"{_FILE.package}.{declared.like}"))
        fields[field.name] = Field(field, declared, limits)
    return fields


def _declared(field: FieldDescriptor) -> option_pb2.Option:
    return cast(option_pb2.Option, field.GetOptions().Extensions[option_pb2.option])  # type: ignore[index]


SAMPLING = options_of(edit_pb2.SamplingConfig)
TUNING = options_of(tuning_pb2.TuningConfig)
EDIT = options_of(edit_pb2.EditRequest)
BASE_MODEL = options_of(server_pb2.BaseModel)


def range_in_words(field: Field) -> str:
    """`0 to 1`, `above 0, to 0.1`, `one of a, b`, `1 to 64 visible characters`; empty for a field without a range."""
    limits = field.limits
    if field.choices:
        return f"one of {', '.join(field.choices)}"
    if limits.max_len:
        unit = "bytes" if field.descriptor.type == FieldDescriptor.TYPE_BYTES else "characters"
        unit = f"visible {unit}" if limits.printable else unit
        return f"{limits.min_len} to {limits.max_len} {unit}" if limits.min_len else f"at most {limits.max_len} {unit}"
    low = _number(limits.gte) if limits.HasField("gte") else None
    high = _number(limits.lte) if limits.HasField("lte") else None
    parts = [f"above {_number(limits.gt)}"] * limits.HasField("gt") + [f"below {_number(limits.lt)}"] * limits.HasField(
        "lt"
    )
    if low is not None and high is not None:
        return f"{low} to {high}"
    parts += [f"{low} or more"] * (low is not None)
    parts += [f"{'to' if parts else 'at most'} {high}"] * (high is not None)
    return ", ".join(parts)


def violations(message: Message, prefix: str = "", only: Iterable[str] = ()) -> Iterator[InvalidArgument]:
    """Everything that is wrong with the fields that are set, each by itself, and with a text that must be set."""
    names = set(only)
    for field in options_of(type(message)).values():
        if (not names or field.name in names) and (field.is_set(message) or field.is_required):
            yield from field.violations(getattr(message, field.name), f"{prefix}{field.name}")


def check(message: Message, prefix: str = "", only: Iterable[str] = ()) -> None:
    """Raise the first of `violations`. `prefix` is the message's own place in the request, as `config.`."""
    for error in violations(message, prefix, only):
        raise error


def check_values(fields: Mapping[str, Field], values: Mapping[str, Any], prefix: str = "") -> None:
    """`check` for values by name that are no message; each counts as set."""
    for name, value in values.items():
        for error in fields[name].violations(value, f"{prefix}{name}"):
            raise error


def read_by(fields: Mapping[str, Field], method: str) -> tuple[str, ...]:
    """The names of the options that a method reads."""
    return tuple(name for name, field in fields.items() if field.is_read_by(method))


def refuse_unread(config: Message, method: str, prefix: str) -> None:
    """Refuse what is set and nothing would read: of other methods, beside what excludes it, without what it needs."""
    fields = options_of(type(config))
    given = {name: field for name, field in fields.items() if field.is_set(config)}
    for name, field in given.items():
        if not field.is_read_by(method):
            why = f"it is an option of method {' or '.join(field.methods)}, not of {method}"
            raise InvalidField(f"{prefix}{name}", shown(field, getattr(config, name)), f"leave it unset: {why}")
    for name, field in given.items():
        for other, why in sorted(field.declared.refused_with.items()):
            if getattr(config, other):
                raise InvalidField(f"{prefix}{name}", shown(field, getattr(config, name)), f"leave it unset: {why}")
        needed = field.declared.needs
        if needed and not getattr(config, needed):
            remedy = f"leave it unset, or set {needed}, too"
            raise InvalidField(f"{prefix}{name}", shown(field, getattr(config, name)), remedy)


def check_base_model(config: Message, base_model: server_pb2.BaseModel, prefix: str) -> None:
    """Refuse what is set and needs something that this base model does not bring."""
    for name, field in options_of(type(config)).items():
        needed = field.declared.needs_base_model
        if needed and field.is_set(config) and not getattr(base_model, needed):
            remedy = BASE_MODEL[needed].declared.remedy
            raise InvalidField(f"{prefix}{name}", shown(field, getattr(config, name)), remedy)


def clear_unread(config: Message, method: str) -> None:
    """Unset in place what `refuse_unread` would refuse of a filled config, but for what excludes it."""
    for name, field in options_of(type(config)).items():
        needed = field.declared.needs
        if not field.is_read_by(method) or (needed and not getattr(config, needed)):
            config.ClearField(name)


def shown(field: Field, value: Any) -> str | float:
    """A value, as an error shows it: a list by its number, and what may be a prompt by its length."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        is_long = len(value) > WORD_CHARACTERS or field.limits.max_len > WORD_CHARACTERS
        return f"{len(value)} characters" if is_long else value
    return value if isinstance(value, int | float) else f"{len(value)} of them"


def _number(value: float) -> float:
    """A whole number as one."""
    return int(value) if value == int(value) else value
