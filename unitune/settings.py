"""A program's settings: a frozen dataclass filled from `UNITUNE_*` variables, read once, in `__main__`.

    @dataclass(frozen=True)
    class TunerConfig:
        address: str = field(
            default="127.0.0.1:50052", metadata={"env": "UNITUNE_TUNER_ADDRESS", "help": "HOST:PORT to listen on"}
        )

    config = load(TunerConfig, os.environ)

A field may be `str`, `int`, `float`, `bool` or `Path`, or one of them `| None`, where an empty variable means None.
If the class raises ValueError in `__post_init__`, the program ends in the same way, with one line.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

PREFIX = "UNITUNE_"

# Every variable that a program of this distribution reads. All may run in one environment, so a program ignores the
# others' variables. A name that no program reads is a typing mistake, and stops the start.
NAMES = frozenset(
    {
        "UNITUNE_ADDRESS",
        "UNITUNE_BASE_MODEL",
        "UNITUNE_CHECKPOINT_S",
        "UNITUNE_CLIPSEG",
        "UNITUNE_CONNECTION_AGE_S",
        "UNITUNE_CONTENT_FILTER",
        "UNITUNE_ENGINE",
        "UNITUNE_FILTERED_TENANTS",
        "UNITUNE_GATEWAY",
        "UNITUNE_GATEWAY_ADDRESS",
        "UNITUNE_HEALTH_ADDRESS",
        "UNITUNE_HOME",  # of the client's local services
        "UNITUNE_INTERNAL_ADDRESS",
        "UNITUNE_KEEP_UNUSED_S",
        "UNITUNE_LEASE_S",
        "UNITUNE_REFIT_MODE",
        "UNITUNE_SAMPLE_STREAMS",
        "UNITUNE_SAMPLER",
        "UNITUNE_SAMPLER_ADDRESS",
        "UNITUNE_SAMPLER_BACKEND",
        "UNITUNE_STATE",
        "UNITUNE_STORE",
        "UNITUNE_THREADS",
        "UNITUNE_TUNER_ADDRESS",
        "UNITUNE_WEIGHTS_CODEC",
    }
)

# Kubernetes adds variables like these for every Service of a namespace, such as one called `unitune-gateway`.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

T = TypeVar("T")


class BadSetting(SystemExit):
    """A setting is missing, unreadable or unknown. If uncaught, it ends the program with one line on stderr."""


def load(cls: type[T], environ: Mapping[str, str]) -> T:
    """Fill a dataclass from the environment; a variable that is not set leaves the field's default.

    Raises BadSetting naming the variable, its value and what would be right.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.metadata["env"]: field for field in dataclasses.fields(cls) if "env" in field.metadata}  # type: ignore[arg-type]
    _refuse_unknown(environ, NAMES | fields.keys())
    values: dict[str, Any] = {}
    for variable, field in fields.items():
        if variable in environ:
            values[field.name] = _parse(variable, environ[variable], hints[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadSetting(f"{variable} is not set: it must be {field.metadata.get('help', 'given')}")
    try:
        return cls(**values)
    except ValueError as error:
        raise BadSetting(str(error)) from error


def num_cores() -> int:
    """The cores that this process may use; in a container these can be fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_unknown(environ: Mapping[str, str], known: frozenset[str]) -> None:
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in known or _SERVICE_LINK.search(variable):
            continue
        words = [name.removeprefix(PREFIX) for name in known]
        nearest = difflib.get_close_matches(variable.removeprefix(PREFIX), words, n=1)
        hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}"
        raise BadSetting(f"{variable} is not a setting: {hint}")


def _parse(variable: str, text: str, kind: Any) -> Any:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and text == "":
        return None
    (kind,) = (option for option in options if option is not type(None))
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise BadSetting(f"{variable} is {text!r}: it must be one of {', '.join(_BOOLEANS)}")
        return _BOOLEANS[text.lower()]
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadSetting(f"{variable} is {text!r}: it must be {'a whole' if kind is int else 'a finite'} number")
        return number
    if kind is Path:
        if not text:
            raise BadSetting(f"{variable} is empty: it must be a path")
        return Path(text)
    if kind is str:
        return text
    raise TypeError(f"{variable} has the type {kind}, which settings cannot hold")
