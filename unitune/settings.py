"""A program's settings: a frozen dataclass filled from `UNITUNE_*` variables and one file, read once, in `__main__`.

    @dataclass(frozen=True)
    class TunerConfig:
        address: str = setting("127.0.0.1:50052", "UNITUNE_TUNER_ADDRESS", "HOST:PORT to listen on")

    config = load(TunerConfig, os.environ)

A field without a default is a `dataclasses.field` with the same metadata, `env` and `help`. A field may be `str`,
`int`, `float`, `bool` or `Path`, or one of them `| None`, where an empty variable means None. If the class raises
ValueError in `__post_init__`, the program ends in the same way, with one line.

UNITUNE_CONFIG may name a TOML file, for all programs together: a table for each (the class's TABLE), whose keys are the
names of the fields. A variable of the environment comes before it.

    [gateway]
    address = "0.0.0.0:50051"
    tenant_tunings = 20
"""

import dataclasses
import difflib
import math
import os
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

PREFIX = "UNITUNE_"
CONFIG = "UNITUNE_CONFIG"  # a TOML file with settings
EMPTY = "empty"  # stands for a default that is unset, or no text
HELP = frozenset({"-h", "--help"})
TABLES = ("gateway", "tuner", "sampler")  # of that file; a program reads its own

# Every variable that a program of this distribution reads. All may run in one environment, so a program ignores the
# others' variables. A name that no program reads is a typing mistake, and stops the start.
NAMES = frozenset(
    {
        "UNITUNE_ADDRESS",
        "UNITUNE_ADMIN_KEY_FILE",
        "UNITUNE_BASE_MODEL",
        "UNITUNE_CA",  # of the command line, as the keys
        "UNITUNE_CHECKPOINT_S",
        "UNITUNE_CLIPSEG",
        "UNITUNE_CONFIG",
        "UNITUNE_CONNECTION_AGE_S",
        "UNITUNE_CONTENT_FILTER",
        "UNITUNE_EDIT_STEPS",
        "UNITUNE_ENGINE",
        "UNITUNE_FILTERED_TENANTS",
        "UNITUNE_GATEWAY",
        "UNITUNE_GATEWAY_ADDRESS",
        "UNITUNE_HEALTH_ADDRESS",
        "UNITUNE_HOME",  # of the client's local services
        "UNITUNE_INSECURE",
        "UNITUNE_INTERNAL_ADDRESS",
        "UNITUNE_KEEP_UNUSED_S",
        "UNITUNE_KEPT_WEIGHTS_GB",
        "UNITUNE_KEY",
        "UNITUNE_KEY_FILE",
        "UNITUNE_LEASE_S",
        "UNITUNE_OIDC_AUDIENCE",
        "UNITUNE_OIDC_ISSUER",
        "UNITUNE_OIDC_JWKS",
        "UNITUNE_OIDC_TENANT_CLAIM",
        "UNITUNE_PEER_CA",
        "UNITUNE_PEER_CERT",
        "UNITUNE_PEER_KEY",
        "UNITUNE_METRICS_ADDRESS",
        "UNITUNE_OPEN_EDITS",
        "UNITUNE_OPEN_TUNINGS",
        "UNITUNE_REFIT_MODE",
        "UNITUNE_REFLECTION",
        "UNITUNE_SAMPLE_STREAMS",
        "UNITUNE_SAMPLER",
        "UNITUNE_SAMPLER_ADDRESS",
        "UNITUNE_SAMPLER_BACKEND",
        "UNITUNE_STATE",
        "UNITUNE_STATE_LISTEN",
        "UNITUNE_STORE",
        "UNITUNE_STORE_SIGNED_ENDPOINT",
        "UNITUNE_TENANT_BYTES",
        "UNITUNE_TENANT_EDITS",
        "UNITUNE_TENANT_KEPT_TUNINGS",
        "UNITUNE_TENANT_REQUESTS_PER_S",
        "UNITUNE_TENANT_RUNNING_TUNINGS",
        "UNITUNE_TENANT_TUNINGS",
        "UNITUNE_THREADS",
        "UNITUNE_TLS_CERT",
        "UNITUNE_TLS_KEY",
        "UNITUNE_TRACES",
        "UNITUNE_TUNER_ADDRESS",
        "UNITUNE_TUNING_MEMORY_GB",
        "UNITUNE_TUNING_PIXELS",
        "UNITUNE_WEIGHTS_CODEC",
    }
)

# Kubernetes adds variables like these for every Service of a namespace, such as one called `unitune-gateway`.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

_IN_TOML = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path as a text"}

T = TypeVar("T")


class BadSetting(SystemExit):
    """A setting is missing, unreadable or unknown. If uncaught, it ends the program with one line on stderr."""


def setting(default: T, env: str, help_text: str) -> T:
    """A field of a settings class: its default, its variable, and what it is for people."""
    return dataclasses.field(default=default, metadata={"env": env, "help": help_text})


def load(cls: type[T], environ: Mapping[str, str], arguments: Sequence[str] = ()) -> T:
    """Fill a dataclass from the environment and from the file that it names; what neither sets has the field's default.

    `arguments` are those of the program, which has none but --help: that prints all settings and ends it.

    Raises BadSetting naming the variable or the place in the file, its value and what would be right.
    """
    if HELP.intersection(arguments):
        print(listed(cls))
        raise SystemExit(0)
    if arguments:
        raise BadSetting(
            f"{arguments[0]!r} is an argument, and this program takes none: set a variable, or a key in the file that "
            f"{CONFIG} names; --help lists them"
        )
    hints = typing.get_type_hints(cls)
    fields = {field.metadata["env"]: field for field in dataclasses.fields(cls) if "env" in field.metadata}  # type: ignore[arg-type]
    _refuse_unknown(environ, NAMES | fields.keys())
    file = environ.get(CONFIG, "")
    table = getattr(cls, "TABLE", "")
    in_file = _read_table(Path(file), table, [field.name for field in fields.values()]) if file and table else {}
    values: dict[str, Any] = {}
    places: dict[str, str] = {}  # in the file, by the variable that would say the same
    for variable, field in fields.items():
        if variable in environ:
            values[field.name] = _parse(variable, environ[variable], hints[field.name])
        elif field.name in in_file:
            places[variable] = f"[{table}] {field.name} of {file}"
            values[field.name] = _typed(places[variable], in_file[field.name], hints[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadSetting(f"{variable} is not set: it must be {field.metadata.get('help', 'given')}")
    try:
        return cls(**values)
    except ValueError as error:
        message = str(error)
        for variable, place in places.items():
            message = re.sub(rf"\b{variable}\b", lambda _, place=place: place, message)  # type: ignore[misc]
        raise BadSetting(message) from error


def listed(cls: type[Any]) -> str:
    """All settings of a dataclass for people: variable, key, default, and what it is."""
    lines = [
        f"Settings are variables of the environment, or keys of [{cls.TABLE}] in the TOML file that {CONFIG} names."
    ]
    for field in dataclasses.fields(cls):
        if "env" not in field.metadata:
            continue
        default = "must be set" if field.default is dataclasses.MISSING else f"default: {default_of(field)}"
        told = textwrap.wrap(f"{field.metadata['help']}  [{default}]", 100)
        lines += ["", f"{field.metadata['env']}, {field.name}", *(f"    {line}" for line in told)]
    return "\n".join(lines)


def default_of(field: "dataclasses.Field[Any]") -> str:
    """The default of a field that has one, as one would write it."""
    if field.default is None or field.default == "":
        return EMPTY
    return (
        f"{field.default:.0f}"
        if isinstance(field.default, float) and field.default.is_integer()
        else f"{field.default}"
    )


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


def _read_table(file: Path, table: str, names: Sequence[str]) -> dict[str, Any]:
    """What the file says for a program. Raises BadSetting for what cannot be read, and for tables and keys that no
    program knows."""
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise BadSetting(f"{CONFIG} is {str(file)!r}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise BadSetting(f"{CONFIG} is {str(file)!r}, which is no TOML: {error}") from error
    for name, content in found.items():
        if name not in TABLES or not isinstance(content, dict):
            raise BadSetting(f"[{name}] of {file} is not a table of settings: {_nearest(name, TABLES)}")
    own: dict[str, Any] = found.get(table, {})
    for name in own:
        if name not in names:
            raise BadSetting(f"[{table}] {name} of {file} is not a setting: {_nearest(name, names)}")
    return own


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}"


def _typed(place: str, value: Any, kind: Any) -> Any:
    """A value of the file, which has types of its own: a text for a path, a whole number for any number."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and value == "":
        return None
    (kind,) = (option for option in options if option is not type(None))
    allowed: dict[Any, tuple[type, ...]] = {float: (int, float), Path: (str,)}
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed.get(kind, (kind,))):
        raise BadSetting(f"{place} is {value!r}: it must be {_IN_TOML[kind]}")
    if kind is Path or kind is str:
        return _parse(place, value, kind)
    if not math.isfinite(value):
        raise BadSetting(f"{place} is {value!r}: it must be a finite number")
    return kind(value)


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
