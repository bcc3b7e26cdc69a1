"""Ends an edit between two passes of the denoiser, when its caller has cancelled it."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from unitune.errors import Cancelled

P = ParamSpec("P")
T = TypeVar("T")


def stop_if(cancelled: Callable[[], bool]) -> None:
    """Raises Cancelled (EDIT_CANCELLED) if it is."""
    if cancelled():
        raise Cancelled("the edit was cancelled", reason="EDIT_CANCELLED")


def stopping(run: Callable[P, T], cancelled: Callable[[], bool]) -> Callable[P, T]:
    """The same, asking before each pass whether to go on."""

    def run_on(*args: P.args, **more: P.kwargs) -> T:
        stop_if(cancelled)
        return run(*args, **more)

    return run_on
