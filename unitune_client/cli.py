"""The command line. Entry point: `main`."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Never

import click

from unitune import __version__
from unitune.errors import InvalidArgument, UniTuneError
from unitune_client.cli_compare import compare_command
from unitune_client.cli_edit import edit_command, tune_command
from unitune_client.cli_local import build_command, doctor_command, up_command
from unitune_client.cli_show import show_command
from unitune_client.cli_tunings import tunings_group
from unitune_client.display import Display, JsonDisplay
from unitune_client.machine import LocalError

INTERRUPTED = 130
WRONG_INPUT = 2


class Commands(click.Group):
    """Turns every foreseeable error into one line and an exit code: 2 for wrong input, 130 for Ctrl-C, else 1."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Never:
        """Run a command as a program and leave with its exit code."""
        show = JsonDisplay() if "--json" in (sys.argv if args is None else args) else Display()
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = super().main(args, *more, **extra | {"standalone_mode": False}) or 0
        except click.Abort:
            click.echo("interrupted", err=True)
            code = INTERRUPTED
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            show.error(error.format_message(), error)
            code = error.exit_code
        except UniTuneError as error:
            show.error(error.message, error)
            code = WRONG_INPUT if isinstance(error, InvalidArgument) else 1
        except (LocalError, OSError) as error:
            show.error(str(error), error)
            code = 1
        finally:
            signal.signal(signal.SIGTERM, before)
        sys.exit(code)


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
    show_command,
    tune_command,
    tunings_group,
    up_command,
    build_command,
    doctor_command,
):
    main.add_command(command)
