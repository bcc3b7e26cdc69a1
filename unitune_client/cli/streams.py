"""Standard output and standard error: paths keep their bytes, and output that cannot be written is an error.

A path in Python is text in which bytes that are no text stand as lone surrogates. Python refuses to print those in most
locales, and click writes question marks in others; here they are the path's own bytes again.
"""

import codecs
import os
import sys
from contextlib import suppress

import click

OWN_BYTES = "unitune-own-bytes"  # our codec error handler


class OutputLost(Exception):
    """Standard output cannot be written: its disk is full, or nobody reads it any more (`is_closed`)."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror or error}")
        self.is_closed = isinstance(error, BrokenPipeError)


def prepare() -> None:
    """Have both streams take every text. What their encoding lacks is written as the file system encodes it."""
    codecs.register_error(OWN_BYTES, _own_bytes)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a closed one is None, a test's own has no such method
        if reconfigure is not None:
            reconfigure(errors=OWN_BYTES)


def print_result(line: str) -> None:
    """Print a line on standard output at once, so that a reader sees it while the command runs. Raises OutputLost."""
    try:
        if sys.stdout is not None:  # as after `>&-`
            click.echo(line, file=sys.stdout)
    except OSError as error:
        _drop_output()
        raise OutputLost(error) from None


def print_message(line: str) -> None:
    """Print a line on standard error. If that cannot be written, nobody reads it, and the work goes on."""
    with suppress(OSError):
        if sys.stderr is not None:
            click.echo(line, file=sys.stderr)


def finish() -> None:
    """Write what click has printed itself, such as --help. Raises OutputLost."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _drop_output()
        raise OutputLost(error) from None


def is_text(value: str) -> bool:
    """Whether a text is Unicode: an argument that is not UTF-8 has lone surrogates for its bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _own_bytes(error: UnicodeError) -> tuple[bytes | str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    try:
        return os.fsencode(missing), error.end
    except UnicodeEncodeError:  # the file system has not got them either
        return missing.encode("ascii", "backslashreplace"), error.end


def _drop_output() -> None:
    """Redirect the stream to nowhere: what is still in its buffer would fail again when Python ends."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
