"""A server's refusals in the words of the command line: its options in place of the API's fields.

A refusal carries field, value and remedy (google.rpc.ErrorInfo), and every server words a remedy alike: `leave FIELD
unset`, `set FIELD`, or the field's path. So the command line needs the names alone, and reads them from its own
options: an option is called as the field is, or stands in ALIASES.
"""

import re
from collections.abc import Iterator, Sequence

import click

from unitune.errors import UniTuneError
from unitune.options import name_of, options_of
from unitune.v1 import edit_pb2, image_pb2, tuning_pb2, usage_pb2
from unitune_client.cli.options import shown, with_numbers
from unitune_client.cli.refused_value import problem_of
from unitune_client.options import OwnTuningOptions

# Fields whose option is called otherwise in the code of some command.
ALIASES = {
    "guidance_sigma_low": "guidance_interval",
    "guidance_sigma_high": "guidance_interval",
    "header": "photo",
    "image": "photo",
    "image_data": "photo",
    "images": "further_photos",
    "mask_image": "mask",
    "parent": "tenant",
    "prompt": "prompts",
    "super_resolution_width": "super_resolution",
    "target": "photo",
    "tuning": "name",
}
# The options of a method in a comparison, and of a tuning, as a whole.
METHODS, TUNING_CONFIG = "methods", "tuning_config"

# What an edit has as well is no option of its tuning.
OWN_TUNING_OPTIONS = OwnTuningOptions.__annotations__.keys()

FIELDS = frozenset(
    name
    for message in (
        edit_pb2.EditRequest,
        edit_pb2.CompareRequest,
        edit_pb2.SamplingConfig,
        tuning_pb2.TuningConfig,
        tuning_pb2.CreateTuningRequest,
        image_pb2.UploadImageRequest,
        usage_pb2.ListUsageRequest,
    )
    for name in options_of(message)
)

_WORD = r"[a-z]+(?:_[a-z0-9]+)*"
_NAME = rf"(?:methods\[\d+\]\.)?{_WORD}(?:\.{_WORD})*"  # of a field: alone, or by its path
_LEAVE_UNSET = re.compile(rf"leave ({_NAME}(?: (?:and|or) {_NAME})*) unset")
_SET = re.compile(rf"\bset ({_NAME}(?: (?:and|or) {_NAME})*)(?: to (?=\d))?")
# Never a word of a sentence.
_LONG_NAME = re.compile(rf"\b(?:methods\[\d+\]\.)?(?:tuning_)?config(?:\.{_WORD})+|\b[a-z]+(?:_[a-z0-9]+)+\b")


class Flags:
    """The options of one command."""

    def __init__(self, command: click.Command, arguments: Sequence[str] = ()) -> None:
        """`arguments` are those that it was called with."""
        self._command = command
        self._by_name = {param.name: param for param in command.params}
        self._arguments = arguments

    def option_of(self, field: str) -> str | None:
        """The option, or the argument, that sets a field of the API, as `--seed` does `seeds[2]`; None without one."""
        first, last = re.split(r"[.[]", field)[0], name_of(field)
        if first == METHODS and last == "method":
            last = METHODS
        if last == TUNING_CONFIG:
            return ", ".join(self._given_of_tuning()) or None
        param = self._param(last) or (self._param(first) if first in ALIASES else None)
        return shown(param) if param is not None else None

    def message(self, error: UniTuneError) -> str:
        """The error's message, if it refuses a field, by the command's own names; else as it is."""
        field, remedy = error.field, error.metadata.get("remedy", "")
        begins = error.message.startswith((f"{field} is ", f"{field} has "))
        if field is None or not begins or not error.message.endswith(remedy):
            return error.message
        value = error.message.removeprefix(field).removesuffix(remedy)
        if self._arguments:
            value = problem_of(value, error.metadata.get("value", ""), self._texts_of(field))
        option, remedy = self.option_of(field) or field, self.words(remedy, field)
        return f"{option}{value}{remedy.replace('leave it out', 'leave them out') if ', ' in option else remedy}"

    def _texts_of(self, field: str) -> list[str]:
        """What the user gave the option of a field, as it was typed."""
        option, words = self.option_of(field) or field, list(self._arguments)
        if self._command.name in words:
            del words[: words.index(self._command.name) + 1]
        try:
            typed, _, _ = self._command.make_parser(click.Context(self._command)).parse_args(with_numbers(words))
        except click.ClickException:
            return []
        given = [typed.get(param.name or "") for param in self._command.params if option in (*param.opts, shown(param))]
        return list(_texts(given))

    def words(self, told: str, field: str = "") -> str:
        """A server's sentence, a warning or the remedy of a refused field, by the command's own names."""
        own = name_of(field)

        def left_out(match: re.Match[str]) -> str:
            names = [own if name == "it" else name for name in re.split(r" (?:and|or) ", match[1])]
            if match[1] != "it" and not all(name_of(name) in FIELDS for name in names):
                return match[0]
            shown = []
            for name in names:
                param = self._param(name_of(name))
                if isinstance(param, click.Option) and param.secondary_opts:
                    shown.append(f"give {param.secondary_opts[-1]}")
                elif match[1] == "it":
                    shown.append("leave it out")
                else:
                    shown.append(f"leave out {self.option_of(name) or name}")
            return " and ".join(shown)

        def given(match: re.Match[str]) -> str:
            words = re.split(r"( (?:and|or) )", match[1])
            if not all(name_of(word) in FIELDS for word in words[::2]):
                return match[0]
            return "give " + "".join(self.option_of(word) or word for word in words) + " " * match[0].endswith(" to ")

        def named(match: re.Match[str]) -> str:
            option = name_of(match[0])
            name = self.option_of(match[0]) if option in FIELDS else None
            param = self._param(option)
            if name is not None and param is not None and param.nargs > 1 and name == self.option_of(field):
                return option.rpartition("_")[2].upper()  # another value of the same option, as LOW
            return name or match[0]

        return _LONG_NAME.sub(named, _SET.sub(given, _LEAVE_UNSET.sub(left_out, told)))

    def _param(self, field: str) -> click.Parameter | None:
        return self._by_name.get(field) or self._by_name.get(ALIASES.get(field, field))

    def _given_of_tuning(self) -> list[str]:
        """The options of a tuning alone, as they were typed."""
        flags = {shown(param) for name, param in self._by_name.items() if name in OWN_TUNING_OPTIONS}
        return list(dict.fromkeys(flag for word in self._arguments if (flag := word.split("=")[0]) in flags))


def _texts(value: object) -> Iterator[str]:
    """The texts in what click's parser found: a text, or texts in lists or tuples."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)


def in_words(told: UniTuneError | str) -> str:
    """An error's message, or a server's warning, by the names of the command that runs."""
    context = click.get_current_context(silent=True)
    if isinstance(told, str):
        return Flags(context.command).words(told) if context is not None else told
    return Flags(context.command).message(told) if context is not None else told.message
