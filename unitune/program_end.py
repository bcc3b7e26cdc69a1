"""How a program ends that writes one folder."""

import sys
from collections.abc import Callable
from pathlib import Path

from unitune.system_errors import failure_sentence


def exit_code(program: str, write: Callable[[], Path], out: Path, *expected: type[Exception]) -> int:
    """Print the path that `write` gives, or on standard error in one line why it failed. `out` is what it writes to.

    Raises an error that is neither of the expected ones nor the system's.
    """
    try:
        print(write())
    except Exception as error:
        print(f"{program}: {failure_sentence(error, out, *expected)}", file=sys.stderr)
        return 1
    return 0
