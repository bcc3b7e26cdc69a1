"""Protobuf messages to the plain values of `events`, and options to messages. Nothing else here knows their fields."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from unitune.errors import InvalidArgument, InvalidField, UniTuneError, from_status
from unitune.image_pieces import Assembly
from unitune.options import SAMPLING, TUNING, Field, Flat, options_of, range_in_words, refuse_without_switch, to_words
from unitune.v1 import edit_pb2, image_pb2, key_pb2, server_pb2, tuning_pb2, usage_pb2
from unitune_client import events
from unitune_client.options import SHARED_OPTIONS, EditOptions

# Which methods to compare: names, or names with options of their own; None is every one that can run.
Methods = Sequence[str] | Mapping[str, EditOptions] | None

REQUEST_OPTIONS = ("seeds", "preview_every", "mask", "omit_metadata")
OPTIONS_OF_THE_WHOLE = {"method", *REQUEST_OPTIONS, "timeout_s"}  # of a comparison

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class UnknownOption(InvalidField, TypeError):
    """A keyword that no option has: INVALID_ARGUMENT as from a server, and a TypeError as of any function."""


def tuning_config(options: Mapping[str, Any], place: str = "config.") -> tuning_pb2.TuningConfig | None:
    """The config of a tuning; None if no tuning option is given. `place` is where a request has it.

    Raises InvalidField for a value of a wrong type, and for an unknown word.
    """
    given = {name: options[field.keyword] for name, field in TUNING.items() if options.get(field.keyword) is not None}
    return _filled(tuning_pb2.TuningConfig(), given, place) if given else None


def tuning_options(config: tuning_pb2.TuningConfig) -> dict[str, Any]:
    """The options of a tuning with this config: `tuning_config`, the other way."""
    return {TUNING[name].keyword: value for name, value in to_words(config).items()}


def edit_request(parent: str, prompt: str, options: Mapping[str, Any], place: str = "") -> edit_pb2.EditRequest:
    """The request of an edit, still without its target; `mask` is the file's bytes.

    Raises as `tuning_config` does.
    """
    asked = {name: options[name] for name in REQUEST_OPTIONS if options.get(name) is not None}
    request = _filled(edit_pb2.EditRequest(parent=parent), {"prompt": prompt, **asked}, place)
    if given := {name: options[name] for name in SAMPLING if options.get(name) is not None}:
        request.config.SetInParent()
        _filled(request.config, given, f"{place}config.")
    of_tuning = {option: value for option, value in options.items() if option not in SHARED_OPTIONS}
    if (config := tuning_config(of_tuning, f"{place}tuning_config.")) is not None:
        request.tuning_config.CopyFrom(config)
    return request


def compare_request(
    parent: str, prompt: str, methods: Methods, seeds: Sequence[int] | None, words: Mapping[str, str | None]
) -> edit_pb2.CompareRequest:
    """The request of a comparison, still without its picture. `words` are class_noun, initial_word and base_prompt.

    Raises as `tuning_config` does, and TypeError for an option that no method has for itself.
    """
    given = {word: value for word, value in words.items() if value is not None}
    request = _filled(
        edit_pb2.CompareRequest(parent=parent), {"prompt": prompt, "seeds": () if seeds is None else seeds, **given}
    )
    by_method = methods if isinstance(methods, Mapping) else {}
    for index, method in enumerate(methods or ()):
        options, place = by_method.get(method, {}), f"methods[{index}]."
        refuse_unknown(options, EditOptions)
        if shared := OPTIONS_OF_THE_WHOLE & options.keys():
            raise TypeError(f"{', '.join(sorted(shared))} is no option of a single method in a comparison")
        edit = edit_request("", "", options, place)
        entry = _filled(request.methods.add(), {"method": method}, place)
        for name in ("config", "tuning_config"):
            if edit.HasField(name):
                getattr(entry, name).CopyFrom(getattr(edit, name))
    return request


def narrow_comparison(request: edit_pb2.CompareRequest, methods: Sequence[str]) -> None:
    """Ask for these methods alone, with the options that the request has for each, and without words of others, which
    would be refused."""
    for name, field in options_of(type(request)).items():
        if not any(field.is_read_by(method) for method in methods):
            request.ClearField(name)
    own = {Flat(one).method: one.SerializeToString() for one in request.methods}
    request.ClearField("methods")
    for method in methods:
        entry = _filled(request.methods.add(), {"method": method})
        entry.MergeFromString(own.get(method, b""))


def update_tuning_request(
    name: str, labels: Mapping[str, str], expire_time: datetime | None, etag: str
) -> tuning_pb2.UpdateTuningRequest:
    """The request that replaces what a caller owns of a tuning."""
    tuning = tuning_pb2.Tuning(name=name, labels=labels, etag=etag)
    if expire_time is not None:
        tuning.expire_time.FromDatetime(expire_time.astimezone(UTC))
    return tuning_pb2.UpdateTuningRequest(tuning=tuning)


def create_key_request(tenant: str, scopes: Sequence[str], expire_time: datetime | None) -> key_pb2.CreateKeyRequest:
    """The request of a new API key. Raises InvalidField for an unknown scope."""
    known = options_of(key_pb2.CreateKeyRequest)["scopes"].choices
    for index, word in enumerate(scopes):
        if word not in known:
            raise InvalidField(f"scopes[{index}]", word, f"give one of {', '.join(known)}")
    names = [f"SCOPE_{word.upper()}" for word in scopes]
    request = key_pb2.CreateKeyRequest(parent=f"tenants/{tenant}", scopes=names)
    if expire_time is not None:
        request.expire_time.FromDatetime(expire_time.astimezone(UTC))
    return request


def rotate_key_request(
    name: str, old_expire_time: datetime | None, expire_time: datetime | None
) -> key_pb2.RotateKeyRequest:
    """The request of an API key in place of another."""
    request = key_pb2.RotateKeyRequest(name=name)
    if old_expire_time is not None:
        request.old_expire_time.FromDatetime(old_expire_time.astimezone(UTC))
    if expire_time is not None:
        request.expire_time.FromDatetime(expire_time.astimezone(UTC))
    return request


def api_key(message: key_pb2.ApiKey) -> events.ApiKey:
    """What a server tells of a key."""
    return _read(events.ApiKey, message)


def refuse_unknown(options: Mapping[str, Any], known: type) -> None:
    """Raises UnknownOption for a keyword that `known`, a TypedDict, does not have."""
    for option, value in options.items():
        if option not in known.__annotations__:
            near = nearest_option(option, list(known.__annotations__))
            hint = f"did you mean {near}? " if near else ""
            remedy = f"{hint}no option is called {option!r}; there are {', '.join(known.__annotations__)}"
            raise UnknownOption(option, value, remedy)


def nearest_option(option: str, known: Sequence[str]) -> str:
    """What was most likely meant: an option spelled nearly so, or with that as one of its words; empty for none."""
    spelled = difflib.get_close_matches(option, known, n=1, cutoff=0.8)
    with_word = [name for name in known if option in name.split("_")]
    return next(iter((*spelled, *with_word, *difflib.get_close_matches(option, known, n=1))), "")


def _filled(message: M, values: Mapping[str, Any], place: str = "") -> M:
    """The message with options set by name. `place` is its own in the request."""
    known = options_of(type(message))
    for name, value in values.items():
        field = known[name]
        try:
            field.put(message, value, place)
        except (TypeError, ValueError, AttributeError):  # the last for a map's value without keys
            raise InvalidField(field.keyword, value, f"give {_wanted(field)}{_why_not_text(value)}") from None
        refuse_without_switch(field, known, values, place)
    return message


def _wanted(field: Field) -> str:
    """What a field takes."""
    if field.is_map:
        return "a mapping from words to numbers, such as {'dog': 2.0}"
    if field.choices:
        return range_in_words(field)
    if field.descriptor.is_repeated:
        one, example = _LISTS[field.descriptor.type]
        return f"a list of {one}, such as {example}"
    return _KINDS[field.descriptor.type]


def _why_not_text(value: Any) -> str:
    """Why a text is refused: only a lone surrogate is no Unicode."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    surrogates = any("\ud800" <= letter <= "\udfff" for text in texts if isinstance(text, str) for letter in text)
    return "; this one has bytes that are no Unicode" if surrogates else ""


_KINDS = {
    FieldDescriptor.TYPE_STRING: "a text",
    FieldDescriptor.TYPE_BYTES: "the file's bytes",
    FieldDescriptor.TYPE_BOOL: "True or False",
    FieldDescriptor.TYPE_MESSAGE: "True or False",
    FieldDescriptor.TYPE_DOUBLE: "a number",
    FieldDescriptor.TYPE_INT32: "a whole number of at most 2^31",
    FieldDescriptor.TYPE_INT64: "a whole number of at most 2^63",
}
_LISTS = {
    FieldDescriptor.TYPE_STRING: ("texts", "['dog']"),
    FieldDescriptor.TYPE_INT64: ("whole numbers", "[0, 1]"),
}


def file_error(error: InvalidArgument, field: str) -> InvalidArgument:
    """What a file is refused for, naming the field that it is for."""
    return error if error.field != "image" or field == "image" else error.in_field(field)


def image(message: image_pb2.Image) -> events.Image:
    """An uploaded picture."""
    return _read(events.Image, message)


def upload(message: image_pb2.Upload) -> events.Upload:
    """Where a picture's file may be put."""
    return _read(events.Upload, message)


def usage(message: usage_pb2.Usage) -> events.Usage:
    """What a tenant uses."""
    return _read(events.Usage, message)


def tuning(message: tuning_pb2.Tuning) -> events.Tuning:
    """A tuning as it was when the server answered."""
    return _read(events.Tuning, message)


def edit(message: edit_pb2.Edit) -> events.Edit:
    """An edit as it was when the server answered."""
    return _read(events.Edit, message)


def server_info(message: server_pb2.ServerInfo) -> events.ServerInfo:
    """What a server is. The defaults of what is in a switch are told, and the switch is off."""
    info = _read(events.ServerInfo, message)
    off: Any = {name: False for name, field in SAMPLING.items() if field.is_switch}
    by_method = {method: replace(config, **off) for method, config in info.method_sampling_defaults.items()}
    defaults = replace(info.sampling_defaults, **off)
    return replace(info, sampling_defaults=defaults, method_sampling_defaults=by_method)


# The value of each kind of event that is no more than its message. A kind that a newer server invented is not here.
TUNING_EVENTS: Mapping[str, type[events.TuningEvent]] = {
    "snapshot": events.TuningSnapshot,
    "queued": events.TuningQueued,
    "started": events.TuningStarted,
    "progress": events.TuningProgress,
    "ready": events.TuningReady,
    "failed": events.TuningFailed,
    "cancelled": events.TuningCancelled,
    "heartbeat": events.Heartbeat,
}
EDIT_EVENTS: Mapping[str, type[events.EditEvent]] = {
    "loading": events.EditLoading,
    "step": events.EditStep,
    "warning": events.EditWarning,
    "done": events.EditDone,
    "heartbeat": events.Heartbeat,
}
COMPARE_EVENTS: Mapping[str, type[events.CompareEvent]] = {
    "accepted": events.CompareAccepted,
    "result": events.CompareResult,
    "done": events.CompareDone,
    "heartbeat": events.Heartbeat,
}


def tuning_event(message: tuning_pb2.TuningEvent) -> events.TuningEvent | None:
    """One event of a tuning; None for a kind that a newer server invented."""
    return _event(TUNING_EVENTS, message)


def edit_event(message: edit_pb2.EditEvent, assembly: Assembly) -> events.EditEvent | UniTuneError | events.Edit | None:
    """One event of an edit; its error if it failed, the edit if it was cancelled, None for a kind not known here, and
    for a picture that is not whole yet. `assembly` is one for the stream. Raises DataLoss when pieces of one are lost.
    """
    match message.WhichOneof("event"):
        case "tuning":
            return tuning_event(message.tuning)
        case "image" | "image_part" as kind:
            assembly.begin([message.image]) if kind == "image" else assembly.add(message.image_part)
            return _read(events.EditedImage, assembly.take()[0], _when(message)) if assembly.is_whole else None
        case "accepted":
            needed = message.accepted
            options = tuning_options(needed.tuning_config) if needed.HasField("tuning_config") else None
            return _read(events.EditAccepted, needed, {"tuning_options": options, **_when(message)})
        case "done":
            assembly.take()
        case "failed":
            return from_status(message.failed)
        case "cancelled":
            return edit(message.cancelled)
    return _event(EDIT_EVENTS, message)


class ComparisonReader:
    """Reads the events of one comparison."""

    def __init__(self) -> None:
        self._assembly = Assembly()
        self._result = edit_pb2.CompareEvent()  # whose pictures are not whole yet

    def event(self, message: edit_pb2.CompareEvent) -> events.CompareEvent | UniTuneError | None:
        """One event; the error of a comparison that failed, None for a kind not known here, and for a result whose
        pictures are not whole yet. Raises DataLoss when pieces of a picture are lost.
        """
        kind = message.WhichOneof("event")
        if kind == "result":
            self._assembly.begin(message.result.images)
            self._result = message
        elif kind == "image_part":
            self._assembly.add(message.image_part)
        else:
            return _compare_event(message)
        if not self._assembly.is_whole:
            return None
        self._assembly.take()  # the pictures are the result's own messages
        return _compare_event(self._result)


def _compare_event(message: edit_pb2.CompareEvent) -> events.CompareEvent | UniTuneError | None:
    match message.WhichOneof("event"):
        case "edit":
            event = edit_event(message.edit, Assembly())
            if event is None or isinstance(event, (UniTuneError, events.Edit)):
                return None  # the end of an edit, which its method's result tells
            return events.CompareEdit(method=Flat(message).method, event=event, **_when(message))
        case "failed":
            return from_status(message.failed)
    return _event(COMPARE_EVENTS, message)


def _event(kinds: Mapping[str, type[T]], message: Message) -> T | None:
    """An event by the kind that it is; None for one that is not there."""
    name = message.WhichOneof("event")
    kind = kinds.get(name or "")
    if kind is None:
        return None
    body, when = getattr(message, name), _when(message)
    own = [one for one in _hints(kind) if one not in when]
    if len(own) == 1 and own[0] not in body.DESCRIPTOR.fields_by_name:  # the body itself
        return kind(**{own[0]: _converted(_hints(kind)[own[0]], body)}, **when)
    return _read(kind, body, when | ({"method": Flat(message).method} if "method" in own else {}))


def _when(message: Message) -> dict[str, Any]:
    """What every event has."""
    whole = Flat(message)
    return {
        "sequence": whole.sequence,
        "create_time": _converted(datetime, whole.create_time) if whole.has("create_time") else None,
    }


def _read(kind: type[T], message: Message, given: Mapping[str, Any] | None = None) -> T:
    """A value whose fields have the names of the message's options, except those that are given and have a default."""
    known = options_of(type(message))
    values = {name: _value(hint, known[name], message) for name, hint in _hints(kind).items() if name in known}
    return kind(**values | dict(given or {}))


def _hints_of(kind: Any) -> Mapping[str, Any]:
    """The type of each field."""
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


_hints: Callable[[Any], Mapping[str, Any]] = cache(_hints_of)


def _value(hint: Any, field: Field, message: Message) -> Any:
    """What a message says for a field, as the type that is hinted. What may be None is None where it is unset."""
    if get_origin(hint) is UnionType:
        if not field.is_set(message):
            return None
        hint = next(one for one in get_args(hint) if one is not type(None))
    value = field.value(message)
    if get_origin(hint) is tuple:
        return tuple(_converted(get_args(hint)[0], one) for one in value)
    if get_origin(hint) is Mapping and not field.is_map:  # configs, each under its method
        return {Flat(one).method: _converted(get_args(hint)[1], one) for one in value}
    return _converted(hint, value)


def _converted(kind: Any, value: Any) -> Any:
    if kind is datetime:
        return value.ToDatetime(tzinfo=UTC)
    if kind is UniTuneError:
        return from_status(value)
    if kind in (events.TuningState, events.EditState):  # a newer server may have one that is not known here
        return kind(value.upper()) if value.upper() in kind.__members__ else kind.UNKNOWN
    return _read(kind, value) if is_dataclass(kind) and isinstance(kind, type) else value
