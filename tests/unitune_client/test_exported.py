"""The public face of the client is complete, and shows neither protobuf nor gRPC nor numpy."""

import dataclasses
import enum
import subprocess
import sys
import typing

import unitune_client
from unitune import errors
from unitune.options import SAMPLING, TUNING
from unitune.v1 import edit_pb2, tuning_pb2
from unitune_client import events, messages, options


def test_every_value_and_option_is_exported() -> None:
    """Whatever a method may return, yield or take can be imported from unitune_client."""
    values = {
        name
        for name, value in vars(events).items()
        if isinstance(value, type) and (dataclasses.is_dataclass(value) or issubclass(value, enum.Enum))
        if value.__module__ == events.__name__
    }

    assert values | {"TuningEvent", "EditEvent", "TuningOptions", "EditOptions"} <= set(unitune_client.__all__)


def test_every_error_is_exported() -> None:
    """The whole tree of unitune.errors can be caught from unitune_client."""

    def tree(kind: type[errors.UniTuneError]) -> set[type[errors.UniTuneError]]:
        return {kind}.union(*(tree(one) for one in kind.__subclasses__() if one.__module__ == errors.__name__))

    for error in tree(errors.UniTuneError):
        assert getattr(unitune_client, error.__name__) is error


def test_the_list_of_exports_is_true() -> None:
    """Every name in __all__ is there, once, and nothing else of ours is public."""
    public = {
        name
        for name, value in vars(unitune_client).items()
        if not name.startswith("_") and not isinstance(value, type(unitune_client))
    }

    assert public == set(unitune_client.__all__)
    assert len(public) == len(unitune_client.__all__)


def test_values_hold_only_plain_python() -> None:
    """No field of any value has a type of protobuf, gRPC or numpy."""
    for name in unitune_client.__all__:
        value = getattr(unitune_client, name)
        if dataclasses.is_dataclass(value):
            for field, kind in typing.get_type_hints(value).items():
                shown = str(kind)
                assert not any(word in shown for word in ("_pb2", "grpc", "numpy", "google")), (name, field, shown)


def test_the_import_brings_in_neither_pillow_nor_numpy() -> None:
    """A program that only calls a server does not load what reads pixels."""
    code = "import sys, unitune_client; sys.exit(sum(name in sys.modules for name in ('PIL', 'numpy')))"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_message_field_of_a_config_has_an_option() -> None:
    """A setting that the contract offers can be given by keyword."""
    tuning = {field.keyword for field in TUNING.values()}

    assert tuning == set(options.TuningOptions.__annotations__)
    assert SAMPLING.keys() | tuning <= set(options.EditOptions.__annotations__)


def test_a_state_of_a_newer_server_is_unknown_and_no_error() -> None:
    """What a message says beyond this client's states has an answer, too, and known ones are what they are (N1)."""
    assert messages.tuning(tuning_pb2.Tuning(state=99)).state is events.TuningState.UNKNOWN
    assert messages.edit(edit_pb2.Edit(state=99)).state is events.EditState.UNKNOWN
    assert messages.tuning(tuning_pb2.Tuning(state=tuning_pb2.Tuning.STATE_READY)).state is events.TuningState.READY
