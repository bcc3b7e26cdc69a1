"""Stops a cancelled edit between two passes of the denoiser."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from unitune.errors import Cancelled

P = ParamSpec("P")
T = TypeVar("T")


def stop_if(cancelled: Callable[[], bool]) -> None:
    """Raises Cancelled (EDIT_CANCELLED) if the edit is cancelled."""
    if cancelled():
        raise Cancelled("the edit was cancelled", reason="EDIT_CANCELLED")


def stopping(run: Callable[P, T], cancelled: Callable[[], bool]) -> Callable[P, T]:
    """`run`, with `stop_if` before each call."""

    def run_on(*args: P.args, **more: P.kwargs) -> T:
        stop_if(cancelled)
        return run(*args, **more)

    return run_on
