"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from unitune.errors import InvalidField

F = TypeVar("F", bound=Callable[..., Any])


class Between(click.ParamType):
    """A number from `low` to `high`; whole if both are."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
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
        if number is None or not self._low <= number <= self._high:  # not a number is not between either
            option = param.opts[-1] if param is not None else "value"
            raise InvalidField(option, value, f"give a {self.name} from {self._low} to {self._high}")
        return number


def server_options(command: F) -> F:
    """--address, --base-model and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event on standard output."),
        click.option(
            "--base-model",
            metavar="PATH",
            help="Folder of a Stable Diffusion model in diffusers layout, for services that are started here.  "
            "[env: UNITUNE_BASE_MODEL; default: the embedded model]",
        ),
        click.option(
            "--address",
            metavar="HOST:PORT",
            envvar="UNITUNE_ADDRESS",
            help="A running server.  [env: UNITUNE_ADDRESS; default: run the services here]",
        ),
    ):
        command = option(command)
    return command


def tuning_options(command: F) -> F:
    """--updates, --mode and --rare-tokens."""
    for option in (
        click.option(
            "--rare-tokens",
            metavar="T",
            help="Words that the tuning binds to the photo, at most 32 characters.  [default: the base model's own]",
        ),
        click.option(
            "--mode",
            metavar="M",
            help="Which UNet weights change: full, attn_out or lora.  [default: the base model's own]",
        ),
        click.option(
            "--updates",
            type=Between(0, 5000),
            help="Optimizer updates of the tuning: more keeps more of the photo.  [default: the base model's own, 128]",
        ),
    ):
        command = option(command)
    return command
