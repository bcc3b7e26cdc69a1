"""A scripted server and a picture, for every test that asks for one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unitune_client import scripted_server
from tests.unitune_client.scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server; its script must be used up at the end of the test."""
    with scripted_server.running() as script:
        yield script


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of 64 x 48 pixels."""
    path = tmp_path / "my cat.png"
    path.write_bytes(scripted_server.png((200, 40, 40)))
    return path


@pytest.fixture
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings or cache reaches a test."""
    for name in [name for name in os.environ if name.startswith("UNITUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UNITUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
