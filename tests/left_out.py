"""Hooks of pytest that tell how many exhaustive tests a run leaves out, so that none is left out silently."""

from collections.abc import Sequence
from typing import Any

import pytest

LEFT_OUT = pytest.StashKey[int]()  # how many exhaustive tests this run, or this worker, has left out


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what `make test` leaves to `make test-all`."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.config.stash[LEFT_OUT] = item.config.stash.get(LEFT_OUT, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Each worker collects all tests, and tells what it has left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker has told is what the run has left out."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line tells how many tests were left out, so that none is silently."""
    if number := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{number} exhaustive tests are left to `make test-all`")
