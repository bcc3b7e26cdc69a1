"""Options that several commands share."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import click

from unitune.errors import InvalidField
from unitune.options import EDIT, SAMPLING, TUNING, Field, options_of, range_in_words
from unitune.v1.tuning_pb2 import CreateTuningRequest
from unitune_client.channel import checked_address
from unitune_client.cli.credentials import credential_options
from unitune_client.cli.path_option import PathOption
from unitune_client.cli.streams import is_text

F = TypeVar("F", bound=Callable[..., Any])


class Text(click.ParamType):
    """Words for the server, which takes Unicode alone; an argument that is not UTF-8 is refused here."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text. Raises InvalidField naming the option."""
        text = str(value)
        if not is_text(text):
            remedy = "it has bytes that are no text in this terminal's encoding; type it again as UTF-8"
            raise InvalidField(shown(param), text, remedy)
        return text


class Choice(click.ParamType):
    """One of the words that the contract has for a choice."""

    name = "word"

    def __init__(self, field: Field) -> None:
        self._field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word. Raises InvalidField naming the option, in the words of a server."""
        for error in self._field.violations(str(value), shown(param)):
            raise error
        return value


class Choices(Choice):
    """Several of them, with commas between them."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """The words, in their order. Raises InvalidField naming the option and the first wrong word."""
        words = value.split(",") if isinstance(value, str) else value
        return [super(Choices, self).convert(word.strip(), param, ctx) for word in words]


class Address(Text):
    """HOST:PORT."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address. Raises InvalidField naming the option."""
        return checked_address(super().convert(value, param, ctx), shown(param))


def refuse_other_than_text(command: click.Command) -> None:
    """Have every argument and option of plain words, of this command and those below it, be Text."""
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        refuse_other_than_text(below)
    for param in command.params:
        if param.type is click.STRING:
            param.type = Text()
        elif isinstance(param.type, click.Tuple):
            param.type.types = [Text() if kind is click.STRING else kind for kind in param.type.types]


def shown(param: click.Parameter | None) -> str:
    """What --help calls it: `--seed`, or PROMPT, of which there may be several."""
    if isinstance(param, click.Argument):
        return (param.name or "").upper().removesuffix("S")
    return param.opts[-1] if param is not None else "value"


class Between(click.ParamType):
    """A number from `low` to `high`, or above `low` if that itself is not allowed; whole if both are."""

    def __init__(self, low: float, high: float, *, above_low: bool = False) -> None:
        self._low, self._high, self._above_low = low, high, above_low
        self._kind: type[int] | type[float] = int if isinstance(low, int) and isinstance(high, int) else float
        self.name = "whole number" if self._kind is int else "number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How --help shows the value."""
        return "N" if self._kind is int else "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises InvalidField naming the option."""
        try:
            number = self._kind(value)
        except ValueError:
            number = None
        is_low = number is not None and number == self._low and self._above_low
        if number is None or is_low or not self._low <= number <= self._high:  # not a number is not between either
            low, high = (f"{end:g}" if isinstance(end, float) else str(end) for end in (self._low, self._high))
            span = f"above {low}, to {high}" if self._above_low else f"from {low} to {high}"
            raise InvalidField(shown(param), value, f"give a {self.name} {span}")
        return number


def number_of(field: Field) -> Between:
    """A number in the range that the contract declares of a field."""
    limits, kind = field.limits, int if field.is_whole else float
    low = limits.gt if limits.HasField("gt") else limits.gte
    high = kind(limits.lte) if limits.HasField("lte") else 2**63 - 1
    return Between(kind(low), high, above_low=limits.HasField("gt"))


def field_option(field: Field, name: str = "", **settings: Any) -> Callable[[F], F]:
    """The option that sets a field, with the flag, range, help and default that the contract declares of it.

    `name` is what the command calls it, if otherwise; `settings` are click's, before those of the declaration.
    """
    kind: dict[str, Any] = {}
    words, default = range_in_words(field), field.declared.default
    if field.is_switch or field.descriptor.type == field.descriptor.TYPE_BOOL:
        if "/" not in field.declared.flag:  # of which click sees by itself that it is one
            kind["is_flag"] = True
    elif field.choices:
        kind["type"] = Choice(field)
    elif field.descriptor.type == field.descriptor.TYPE_BYTES:
        words = ""  # a file that is larger is uploaded
    elif words and not field.limits.max_len:
        kind["type"] = number_of(field)
    notes = "; ".join(filter(None, (words, default and f"default: {default}")))
    help_text = field.declared.help + (f"  [{notes}]" if notes else "")
    return click.option(field.declared.flag, name or field.name, **{**kind, "help": help_text, **settings})


def server_options(command: F) -> F:
    """--address with what it needs, --base-model and --json."""
    for option in (
        credential_options,
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event on standard output."),
        click.option(
            "--base-model",
            metavar="PATH",
            type=PathOption(),
            help="A Stable Diffusion model for services that are started here: a folder in diffusers layout, or a "
            ".safetensors file.  "
            "[env: UNITUNE_BASE_MODEL; default: the embedded model]",
        ),
        click.option(
            "--address",
            metavar="HOST:PORT",
            type=Address(),
            envvar="UNITUNE_ADDRESS",
            help="A running server; grpcs://HOST:PORT with TLS.  "
            "[env: UNITUNE_ADDRESS; default: run the services here]",
        ),
    ):
        command = option(command)
    return command


output_option = click.option(
    "-o",
    "--out",
    "--output",
    "output",
    metavar="OUT",
    type=PathOption(),
    default="out",
    show_default=True,
    help="Folder for what is written.",
)


def result_options(command: F) -> F:
    """--overwrite and --no-metadata."""
    for option in (
        field_option(EDIT["omit_metadata"]),
        click.option(
            "--overwrite",
            is_flag=True,
            help="Replace files of the same name; without it another picture gets a name of its own, as ...--2.png.",
        ),
    ):
        command = option(command)
    return command


class SwitchCommand(click.Command):
    """A command with a switch that may have a number after it: SwitchNumber."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As of any command, except that the word after such a switch is the next argument unless it is a number."""
        return super().parse_args(ctx, with_numbers(args))


class SwitchNumber(Between):
    """The number that a switch may have after it, in the range of the contract; 0 for the switch alone."""

    def __init__(self, field: Field) -> None:
        super().__init__(int(field.limits.gte), int(field.most))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises InvalidField naming the option."""
        return 0 if value in ("", 0) else super().convert(value, param, ctx)


def with_numbers(words: Sequence[str]) -> list[str]:
    """The words of a command, where a switch that may have a number has its number, or none, as in `--switch=`."""
    switches = {fields[0].declared.flag for fields in _sampling_flags() if is_numbered(fields)}
    end = words.index("--") if "--" in words else len(words)
    spelled: list[str] = []
    for index, word in enumerate(words):
        is_alone = word in switches and index < end and not "".join(words[index + 1 : index + 2]).isdecimal()
        spelled.append(f"{word}=" if is_alone else word)
    return spelled


def is_numbered(fields: "Sequence[Field]") -> bool:
    """Whether the fields of one flag are a switch, and a number that may be after it."""
    return len(fields) == 2 and fields[0].is_switch


def second_pass_options(command: F) -> F:
    """--second-pass and how it is sampled."""
    for name in ("second_pass_scale", "second_pass_strength", "second_pass"):
        command = field_option(SAMPLING[name])(command)
    return command


seed_option = field_option(EDIT["seeds"], multiple=True)


@cache
def _sampling_flags() -> tuple[tuple[Field, ...], ...]:
    """The fields of a SamplingConfig that have a flag; those of one flag together, such as the ends of an interval."""
    fields = [field for field in SAMPLING.values() if field.declared.flag]
    flags = dict.fromkeys(field.declared.flag for field in fields)
    return tuple(tuple(field for field in fields if field.declared.flag == flag) for flag in flags)


def _parameter(fields: Sequence[Field]) -> str:
    """What a command calls the option of fields with one flag."""
    is_one = len(fields) == 1 or is_numbered(fields)
    return fields[0].name if is_one else fields[0].parents[-1].descriptor.name


def sampling_options(command: F) -> F:
    """An option for every flag that the contract has of a SamplingConfig, in its order, and --mask."""
    for fields in reversed(_sampling_flags()):
        command = _sampling_option(fields)(command)
        if fields[0].name == "mask_source":
            command = field_option(EDIT["mask"], metavar="PNG", type=PathOption())(command)
    return command


def _sampling_option(fields: Sequence[Field]) -> Callable[[F], F]:
    field = fields[0]
    if is_numbered(fields):
        number = fields[1]
        metavar = f"[{number.descriptor.name.upper()}]"
        return field_option(field, is_flag=False, type=SwitchNumber(number), metavar=metavar)
    if len(fields) > 1:
        words = " ".join(one.descriptor.name.upper() for one in fields)
        return field_option(field, _parameter(fields), metavar=words, nargs=len(fields))
    if field.is_map:
        return field_option(field, metavar="WORD X", type=(str, number_of(field)), multiple=True)
    if field.descriptor.is_repeated:
        return field_option(field, metavar=field.name.rpartition("_")[2].removesuffix("s").upper(), multiple=True)
    return _one_option(field)


def _one_option(field: Field) -> Callable[[F], F]:
    """The option of a flag, which is unset unless it is given: of two words, as in --x/--no-x, neither."""
    return field_option(field, default=None) if "/" in field.declared.flag else field_option(field)


def sampling_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters of `sampling_options` say, by the names of the contract; None for what they do not say."""
    said: dict[str, Any] = {}
    for fields in _sampling_flags():
        field, value = fields[0], given[_parameter(fields)]
        if is_numbered(fields):
            said |= _switched(fields, value)
        elif len(fields) > 1:
            said |= zip((one.name for one in fields), value or [None] * len(fields), strict=True)
        elif field.is_map or field.descriptor.is_repeated:
            said[field.name] = (dict(value) if field.is_map else list(value)) or None
        else:
            said[field.name] = None if value is False and "/" not in field.declared.flag else value
    return said


def super_resolution_option(command: F) -> F:
    """--super-resolution, for a command of class SwitchCommand."""
    return _sampling_option(_fields_of("super_resolution"))(command)


def super_resolution_of(width: int | None) -> dict[str, Any]:
    """What its parameter says, by the names of the contract."""
    return _switched(_fields_of("super_resolution"), width)


def _switched(fields: Sequence[Field], number: int | None) -> dict[str, Any]:
    """A switch and its number: both None if it was not given, the number None if it was given alone."""
    return {fields[0].name: None if number is None else True, fields[1].name: number or None}


def _fields_of(name: str) -> Sequence[Field]:
    return next(fields for fields in _sampling_flags() if fields[0].name == name)


def tuning_options(command: F) -> F:
    """An option for every flag that the contract has of a tuning alone, and --photo."""
    photos = options_of(CreateTuningRequest)["images"]
    own = [field for field in TUNING.values() if field.keyword == field.name and field.name not in SAMPLING]
    options = [_one_option(field) for field in own if field.declared.flag]
    options.append(field_option(photos, "further_photos", metavar="FILE", type=PathOption(), multiple=True))
    for option in reversed(options):
        command = option(command)
    return command
