"""The command line. Entry point: `main`."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Never

import click
from PIL import Image

from unitune import __version__
from unitune.errors import InvalidArgument, UniTuneError
from unitune.system_errors import sentence
from unitune_client.cli import streams
from unitune_client.cli.calibrate import calibrate_command
from unitune_client.cli.compare import compare_command
from unitune_client.cli.display import Display, JsonDisplay
from unitune_client.cli.edit import edit_command, tune_command
from unitune_client.cli.flags import Flags
from unitune_client.cli.images import images_group
from unitune_client.cli.keys import keys_group
from unitune_client.cli.options import refuse_other_than_text, shown
from unitune_client.cli.services import build_command, doctor_command, import_command, up_command
from unitune_client.cli.show import show_command
from unitune_client.cli.tunings import tunings_group
from unitune_client.cli.usage import usage_command
from unitune_client.local.machine import LocalError

INTERRUPTED = 130
PRINTED_BY_CLICK = frozenset({"-h", "--help", "--version"})
OUTPUT_CLOSED = 141  # what a shell says of a program that SIGPIPE ended
WRONG_INPUT = 2


class Commands(click.Group):
    """Turns every foreseeable error into one line and an exit code.

    2 for wrong input, 130 for Ctrl-C, 141 for standard output that nobody reads any more, else 1.
    """

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Never:
        """Run a command as a program and leave with its exit code."""
        given = sys.argv[1:] if args is None else list(args)
        streams.prepare()
        show = JsonDisplay() if "--json" in given else Display()
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with libraries_kept_quiet(show.say):
                code = self._run(
                    show, given, lambda: super(Commands, self).main(args, *more, **extra | {"standalone_mode": False})
                )
        finally:
            signal.signal(signal.SIGTERM, before)
        sys.exit(code)

    def _run(self, show: Display, given: Sequence[str], run: Callable[[], Any]) -> int:
        """The exit code of `run`. Whatever it raises is told in a line."""
        try:
            try:
                code = run() or 0
                streams.finish()
                return code
            except (click.ClickException, UniTuneError, LocalError, OSError) as error:
                return self._report(show, given, error)
        except streams.OutputLost as error:
            if error.is_closed:  # as in `unitune tunings list | head -1`: the reader has what it wanted
                return OUTPUT_CLOSED
            streams.print_message(f"error: {error}")
            return 1
        except (click.Abort, KeyboardInterrupt):
            streams.print_message("interrupted")
            return INTERRUPTED

    def _report(self, show: Display, given: Sequence[str], error: Exception) -> int:
        """Say which error ends the command; its exit code."""
        match error:
            case click.exceptions.NoArgsIsHelpError():
                error.show()
                return error.exit_code
            case click.exceptions.NoSuchOption() if near := nearest_option(error):
                show.error(f"{error.message} Did you mean {near}?", error)
                return error.exit_code
            case click.ClickException():
                show.error(error.format_message(), error)
                return error.exit_code
            case UniTuneError():
                flags = Flags(self._command_of(given), given)
                show.error(flags.message(error), error, flags)
                return WRONG_INPUT if isinstance(error, InvalidArgument) else 1
            case OSError():
                if PRINTED_BY_CLICK.intersection(given):
                    raise streams.OutputLost(error)
                show.error(sentence(error), error)
                return 1
        show.error(str(error), error)
        return 1

    def _command_of(self, given: Sequence[str]) -> click.Command:
        """The command that the arguments name."""
        command: click.Command = self
        for word in given:
            if isinstance(command, click.Group) and word in command.commands:
                command = command.commands[word]
        return command


def nearest_option(error: click.NoSuchOption) -> str:
    """What was most likely meant: an argument, an option that begins so, or else the one most alike; empty for none."""
    params = error.ctx.command.params if error.ctx is not None else []
    for param in params:
        if isinstance(param, click.Argument) and error.option_name.lstrip("-").upper() == shown(param):
            return f"{shown(param)}, which has no flag"
    known = [option for param in params for option in (*param.opts, *param.secondary_opts)]
    begin = sorted((option for option in known if option.startswith(error.option_name)), key=len)
    return next(iter((*begin, *(error.possibilities or ()))), "")


@contextmanager
def libraries_kept_quiet(say: Callable[[str], object]) -> Iterator[None]:
    """Say each warning of a library once, as a sentence, and drop the logs of libraries: a user cannot act on either.

    Pillow's own limit of pixels is not UniTune's, which refuses larger pictures by name.
    """
    told: set[str] = set()

    def show_once(message: Warning | str, *where: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if text not in told:
            told.add(text)
            say(f"warning: {text}")

    nowhere = logging.NullHandler()  # without any handler Python prints warnings of libraries itself
    logging.getLogger().addHandler(nowhere)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
                warnings.showwarning = show_once
            yield
    finally:
        logging.getLogger().removeHandler(nowhere)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # SIGTERM ends a command as Ctrl-C does: cancel what runs, stop what was started.
    raise KeyboardInterrupt


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unitune")
def main() -> None:
    """Edit one picture by text, with a diffusion model that is tuned on it.

    \b
    Start here:
      unitune edit cat.png "a dog on a beach"     tune on the picture, edit it, write the pictures into out/
      unitune compare cat.png "a cat on a beach"  the same by several methods, side by side
      unitune show PICTURE                        how a picture was made; edit --like PICTURE makes it again
      unitune doctor                              say what this machine can run
    """


for command in (
    edit_command,
    compare_command,
    calibrate_command,
    show_command,
    tune_command,
    tunings_group,
    images_group,
    keys_group,
    usage_command,
    up_command,
    build_command,
    import_command,
    doctor_command,
):
    main.add_command(command)
refuse_other_than_text(main)
