"""The options of a request, as the contract declares them: protos/unitune/v1/option.proto.

The options of a config lie flat here, by names of one word each: `mask_blur` is `mask.blur` of a SamplingConfig. A
choice is a word in lower case, `ddim` for SCHEDULER_DDIM. `to_words` and `put_words` go from messages to words and
back, and `Flat` reads a message by these names. An error names a field by its path in the request.

Checks raise InvalidField naming the field, its value and what would be right; bytes that are too many are
UPLOAD_TOO_LARGE. No error repeats a prompt, or a text longer than a word: it appears by its length. No text has control
characters, except tabs and new lines.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from operator import ge, gt, le, lt
from typing import Any, TypeVar, cast

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumValueDescriptor, FieldDescriptor
from google.protobuf.message import Message

from unitune.errors import InvalidArgument, InvalidField, Size, length_of
from unitune.v1 import edit_pb2, option_pb2, server_pb2, tuning_pb2

WORD_CHARACTERS = 64  # the most of a text that an error repeats
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # except tab, new line and carriage return
M = TypeVar("M", bound=Message)

_FILE = edit_pb2.DESCRIPTOR  # `like` names a field of its package, which is looked up in its descriptor pool


@dataclass(frozen=True)
class Field:
    """One option and what is declared of it. A message that is set in it counts with its own fields (`parents`)."""

    descriptor: FieldDescriptor
    declared: option_pb2.Option  # what it says itself
    limits: option_pb2.Option  # its range or length, and remedy: its own, or those of the field that it is like
    parents: tuple["Field", ...] = ()  # the messages of the config in which it lies, outermost first

    @property
    def name(self) -> str:
        """Its name among the options of a config, which lie flat."""
        return self.declared.name or self.descriptor.name

    @property
    def keyword(self) -> str:
        """What the SDK calls it."""
        return self.declared.keyword or self.name

    @cached_property
    def path(self) -> str:
        """Its place in the config, as `mask.blur`."""
        return ".".join(field.descriptor.name for field in (*self.parents, self))

    @property
    def is_switch(self) -> bool:
        """Whether it is a message that turns something on when it is set; flat, it is a bool."""
        return self.declared.is_switch

    @cached_property
    def switch(self) -> "Field | None":
        """The switch without which it is not read."""
        return next((parent for parent in self.parents if parent.is_switch), None)

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be; empty for a field that is no choice."""
        return tuple(self._numbers)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods that read it; empty for all."""
        return next((tuple(field.declared.methods) for field in (self, *self.parents) if field.declared.methods), ())

    @cached_property
    def needs(self) -> str:
        """The option without which it is not read; empty for none."""
        return self.declared.needs or (self.switch.name if self.switch is not None else "")

    @cached_property
    def is_required(self) -> bool:
        """Whether an empty text is refused, and a choice that is not made."""
        behavior = self.descriptor.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        return field_behavior_pb2.REQUIRED in behavior

    @property
    def is_prompt(self) -> bool:
        """Whether it is a prompt, of any length, which no error repeats."""
        return self.descriptor.name.endswith("prompt")

    @property
    def is_map(self) -> bool:
        """Whether it maps texts to values."""
        kind = self.descriptor.message_type
        return kind is not None and kind.GetOptions().map_entry

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
        holder = self._holder(message)
        if self.descriptor.has_presence:
            return holder.HasField(self.descriptor.name)
        return bool(getattr(holder, self.descriptor.name))

    def value(self, message: Message) -> Any:
        """What a message says for it; what is unset is 0, False or empty. A choice is its word, or its number as a
        text where that is not known here.
        """
        raw = self.raw(message)
        if self.is_switch:
            return self.is_set(message)
        if self.choices:
            return [self.word(one) for one in raw] if self.descriptor.is_repeated else self.word(raw)
        return dict(raw) if self.is_map else list(raw) if self.descriptor.is_repeated else raw

    def raw(self, message: Message) -> Any:
        """The same as it is in the message: a choice as its number."""
        return getattr(self._holder(message), self.descriptor.name)

    def word(self, number: int) -> str:
        """The word of a choice by its number; empty for 0, which is unset."""
        words = {known: word for word, known in self._numbers.items()}
        return words.get(number, str(number)) if number else ""

    def number(self, word: str) -> int:
        """The number of a choice by its word, of which the empty one is 0. Raises ValueError for an unknown one."""
        if word and word not in self._numbers:
            raise ValueError(f"{word} is none of {', '.join(self._numbers)}")
        return self._numbers.get(word, 0)

    def put(self, message: Message, value: Any, prefix: str = "") -> None:
        """Set it, a choice by its word. `prefix` is the message's own place in the request.

        Raises InvalidField for an unknown word; TypeError, ValueError or AttributeError for what is of another type.
        """
        name = self.descriptor.name
        if self.is_switch and not isinstance(value, bool | int):
            raise TypeError(f"{name} is True or False")
        if self.choices:
            if not isinstance(value, str):
                raise TypeError(f"{name} is a word")
            for error in self.violations(value, f"{prefix}{self.path}") if value else ():
                raise error
        holder = self._holder(message)
        if self.is_switch:
            getattr(holder, name).SetInParent() if value else holder.ClearField(name)
        elif self.choices:
            setattr(holder, name, self.number(value))
        elif self.is_map:
            getattr(holder, name).clear()
            getattr(holder, name).update(value)
        elif self.descriptor.is_repeated:
            if isinstance(value, str | bytes | bytearray | Mapping):  # whose letters or keys Python would take
                raise TypeError("one value where several belong")
            del getattr(holder, name)[:]
            getattr(holder, name).extend(list(value))
        else:
            setattr(holder, name, value)
        if not self.is_set(message):
            self.clear(message)  # a group with nothing in it

    def clear(self, message: Message) -> None:
        """Unset it, and the groups that have nothing else in them."""
        for depth in range(len(self.parents), -1, -1):
            field = (*self.parents, self)[depth]
            holder = field._holder(message)
            is_done = depth == len(self.parents) or not (field.is_switch or field.raw(message).ByteSize())
            if is_done and holder.ByteSize():  # what is set in a message within an unset one would set that
                holder.ClearField(field.descriptor.name)

    def violations(self, value: Any, place: str) -> Iterator[InvalidArgument]:
        """Everything that is wrong with a value; `place` is the field's own place in the request.

        A choice is a word or a number.
        """
        if self.descriptor.is_repeated:
            if self.limits.max_items and len(value) > self.limits.max_items:
                yield InvalidField(place, self.number_of(value), f"give at most {self.limits.max_items}")
            for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
                if isinstance(key, str):
                    yield from control_characters(key, element(place, key))
                yield from self._violations(item, element(place, key))
            return
        yield from self._violations(value, place)

    def _violations(self, value: Any, place: str) -> Iterator[InvalidArgument]:
        limits, is_wrong, shown = self.limits, False, value
        if isinstance(value, bytes):
            if limits.max_len and len(value) > limits.max_len:
                size = Size(f"{len(value)} bytes")
                yield InvalidArgument.field_error(place, size, self._remedy(), reason="UPLOAD_TOO_LARGE")
            return
        if self.choices:
            known: Iterable[object] = self._numbers if isinstance(value, str) else self._numbers.values()
            is_wrong, shown = value not in known, value or ""
        elif isinstance(value, str):
            if len(value.strip()) < limits.min_len:
                is_wrong, shown = True, "blank" if value else ""
            elif limits.max_len and len(value) > limits.max_len:
                is_wrong, shown = True, length_of(value)
            elif limits.printable and not value.isprintable():
                is_wrong = True
            else:
                yield from control_characters(value, place)
        elif isinstance(value, int | float):
            # Written so that what is no number (NaN) is wrong.
            is_wrong = any(
                limits.HasField(end) and not holds(value, getattr(limits, end)) for end, holds in _ENDS.items()
            )
        if is_wrong:
            yield InvalidField(place, shown, self._remedy())

    def number_of(self, value: Any) -> Size:
        """How many elements a list or a map has: `9 seeds`, `1 seed`."""
        elements = self.name.rpartition("_")[2]
        return Size(f"{len(value)} {elements.removesuffix('s') if len(value) == 1 else elements}")

    def _remedy(self) -> str:
        words = range_in_words(self)
        if self.limits.remedy:
            return self.limits.remedy.replace("{}", words)
        return f"{'use' if self.limits.max_len else 'it must be'} {words}"

    def _holder(self, message: Message) -> Message:
        """The message in which it lies itself."""
        for parent in self.parents:
            message = getattr(message, parent.descriptor.name)
        return message

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        """The number of each word."""
        kind = self.descriptor.enum_type
        return {} if kind is None else {_word(value): value.number for value in kind.values if value.number}

    @property
    def _of_values(self) -> FieldDescriptor:
        kind = self.descriptor.message_type
        return kind.fields_by_name["value"] if kind is not None and self.is_map else self.descriptor


def _word(value: EnumValueDescriptor) -> str:
    """`dpmpp_2m` of SCHEDULER_DPMPP_2M, a value of Scheduler."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", value.type.name).upper()
    return value.name.removeprefix(f"{prefix}_").lower()


_ENDS: Mapping[str, Callable[[float, float], bool]] = {"gte": ge, "gt": gt, "lte": le, "lt": lt}


def options_of(kind: type[Message]) -> Mapping[str, Field]:
    """The options of a message, by name, in the order of the contract. Those in a group or a switch lie flat."""
    return _fields(kind.DESCRIPTOR)


@cache
def _fields(descriptor: Descriptor) -> Mapping[str, Field]:
    return {field.name: field for field in _flat(descriptor, ())}


def _flat(descriptor: Descriptor, parents: tuple[Field, ...]) -> Iterator[Field]:
    for one in descriptor.fields:
        declared = _declared(one)
        field = Field(one, declared, limits_of(one), parents)
        if not declared.is_group:
            yield field
        if one.message_type is not None and (declared.is_group or declared.is_switch):
            yield from _flat(one.message_type, (*parents, field))


def limits_of(field: FieldDescriptor) -> option_pb2.Option:
    """Range or length of a field of any message: its own, or those of the field that it is like."""
    declared = _declared(field)
    return _declared(_FILE.pool.FindFieldByName(f"{_FILE.package}.{declared.like}")) if declared.like else declared


def _declared(field: FieldDescriptor) -> option_pb2.Option:
    return cast(option_pb2.Option, field.GetOptions().Extensions[option_pb2.option])  # type: ignore[index]


SAMPLING = options_of(edit_pb2.SamplingConfig)
TUNING = options_of(tuning_pb2.TuningConfig)
EDIT = options_of(edit_pb2.EditRequest)
BASE_MODEL = options_of(server_pb2.BaseModel)


_BY_PATH = {field.path: name for name, field in SAMPLING.items()}
_KEY = re.compile(r'\["(?:[^"\\]|\\.)*(?:"\]|$)|\[[^]]*(?:\]|$)')  # in a place, which may be cut


def element(place: str, key: str | int) -> str:
    """The place of one element: `blend_words[1]` of a list, `word_weights["cat"]` of a map."""
    if isinstance(key, str):
        quoted = json.dumps(key, ensure_ascii=False)
        return f"{place}[{quoted if len(quoted) <= WORD_CHARACTERS + 2 else length_of(key)}]"
    return f"{place}[{key}]"


def control_characters(text: str, place: str) -> Iterator[InvalidField]:
    """The error for the first control character of a text, if it has one."""
    if found := _CONTROL.search(text):
        shown = Size(f"U+{ord(found[0]):04X} as character {found.start() + 1}")
        yield InvalidField(place, shown, "leave it out: it is a control character")


def name_of(place: str) -> str:
    """The name of the option at a place in a request: `mask_blur` of `config.mask.blur`, `seeds` of `seeds[2]`."""
    parts = _KEY.sub("", place).split(".")
    ends = [".".join(parts[index:]) for index in range(len(parts))]
    return next((_BY_PATH[end] for end in ends if end in _BY_PATH), parts[-1])


def with_paths(remedy: str, fields: Mapping[str, Field], prefix: str) -> str:
    """A remedy that names options as errors name fields, by their paths: `config.mask.source` for mask_source.

    A name that is a plain word, such as automatic, stays, unless its path differs.
    """

    def path(match: re.Match[str]) -> str:
        field = fields.get(match[0])
        return match[0] if field is None or not ("_" in match[0] or field.parents) else f"{prefix}{field.path}"

    return re.sub(r"(?<![\w.])[a-z]+(?:_[a-z0-9]+)*(?![\w.])", path, remedy)


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


class Flat:
    """Reads the options of a message by their names, as `Flat(config).mask_source`. Values are as `Field.value`."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._fields = options_of(type(message))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._fields[name].value(self._message)
        except KeyError:
            raise AttributeError(name) from None

    def has(self, name: str) -> bool:
        """Whether the message says something for an option."""
        return self._fields[name].is_set(self._message)


def to_words(message: Message) -> dict[str, Any]:
    """All that is set of a config, by name: texts, numbers, lists and dicts."""
    return {name: field.value(message) for name, field in options_of(type(message)).items() if field.is_set(message)}


def put_words(message: M, words: Mapping[str, Any], prefix: str = "") -> M:
    """The message, with options set by name: what `to_words` gives, and again. `prefix` is its place in the request.

    Raises InvalidField for an unknown word, and for an option without the switch that it needs; KeyError for an unknown
    option; otherwise as `Field.put`.
    """
    fields = options_of(type(message))
    for name, value in words.items():
        fields[name].put(message, value, prefix)
        refuse_without_switch(fields[name], fields, words, prefix)
    return message


def refuse_without_switch(field: Field, fields: Mapping[str, Field], words: Mapping[str, Any], prefix: str) -> None:
    """Refuse an option of `words` in a switch that is not on among them: in the message it would turn that on."""
    if field.switch is not None and not words.get(field.switch.name):
        raise _needless(field, fields, words[field.name], prefix)


def _needless(field: Field, fields: Mapping[str, Field], value: Any, prefix: str) -> InvalidField:
    remedy = f"leave it unset, or set {prefix}{fields[field.needs].path}, too"
    return InvalidField(f"{prefix}{field.path}", shown(field, value), remedy)


def violations(message: Message, prefix: str = "", only: Iterable[str] = ()) -> Iterator[InvalidArgument]:
    """Everything that is wrong with the fields that are set, each by itself, and with a text that must be set."""
    names = set(only)
    for field in options_of(type(message)).values():
        if (not names or field.name in names) and (field.is_set(message) or field.is_required):
            yield from field.violations(field.raw(message), f"{prefix}{field.path}")


def check(message: Message, prefix: str = "", only: Iterable[str] = ()) -> None:
    """Raise the first of `violations`. `prefix` is the message's own place in the request, as `config.`."""
    for error in violations(message, prefix, only):
        raise error


def check_values(fields: Mapping[str, Field], values: Mapping[str, Any], prefix: str = "") -> None:
    """`check` for values by name that are no message, and choices by their words; each counts as set."""
    for name, value in values.items():
        for error in fields[name].violations(value, f"{prefix}{name}"):
            raise error


def read_by(fields: Mapping[str, Field], method: str) -> tuple[str, ...]:
    """The names of the options that a method reads."""
    return tuple(name for name, field in fields.items() if field.is_read_by(method))


def refuse_unread(config: Message, method: str, prefix: str) -> None:
    """Refuse what is set and nothing would read: of other methods, beside what excludes it, without what it needs."""
    fields, flat = options_of(type(config)), Flat(config)
    given = [field for field in fields.values() if field.is_set(config)]
    for field in given:
        if not field.is_read_by(method):
            why = f"it is an option of method {' or '.join(field.methods)}, not of {method}"
            raise refused(field, config, prefix, f"leave it unset: {why}")
    for field in given:
        for other, why in sorted(field.declared.refused_with.items()):
            if getattr(flat, other):
                raise refused(field, config, prefix, f"leave it unset: {why}")
        if field.needs and not getattr(flat, field.needs):
            raise _needless(field, fields, field.value(config), prefix)


def refused(field: Field, config: Message, prefix: str, remedy: str) -> InvalidField:
    """The error for what is set of a field; `prefix` is the config's own place in the request."""
    others = {name: other for name, other in options_of(type(config)).items() if name != field.name}
    remedy = with_paths(remedy, others, prefix)
    return InvalidField(f"{prefix}{field.path}", shown(field, field.value(config)), remedy)


def check_base_model(config: Message, base_model: server_pb2.BaseModel, prefix: str) -> None:
    """Refuse what is set and needs something that this base model does not bring."""
    for field in options_of(type(config)).values():
        needed = field.declared.needs_base_model
        if needed and field.is_set(config) and not getattr(base_model, needed):
            raise refused(field, config, prefix, BASE_MODEL[needed].declared.remedy)
        if field.declared.among_base_model and field.is_set(config):
            known = [getattr(base_model, one) for one in field.declared.among_base_model if getattr(base_model, one)]
            if field.value(config) not in known:
                allowed = " or ".join(map(str, known))
                raise refused(
                    field, config, prefix, f"give {allowed}, or leave it unset: this base model makes no other"
                )


def clear_unread(config: Message, method: str) -> None:
    """Unset in place what `refuse_unread` would refuse of a filled config, except for what excludes it."""
    flat = Flat(config)
    for field in options_of(type(config)).values():
        if not field.is_read_by(method) or (field.needs and not getattr(flat, field.needs)):
            field.clear(config)


def shown(field: Field, value: Any) -> str | float:
    """A value, as an error shows it: a list by its number, a prompt and what is longer than a word by its length."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return length_of(value) if field.is_prompt or len(value) > WORD_CHARACTERS else value
    return value if isinstance(value, int | float) else field.number_of(value)


def _number(value: float) -> float:
    """A whole number as one."""
    return int(value) if value == int(value) else value
