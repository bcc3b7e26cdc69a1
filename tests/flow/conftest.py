"""The three services, as real processes on the tiny cascade, started once for all tests here."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from unitune_client import Client
from unitune_client.home import Home
from unitune_client.local import LocalServices


@pytest.fixture(scope="session")
def services(tiny_cascade: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """The three services on the tiny base model with its second stage, and a preset of its own for fast edits."""
    folder = Path(shutil.copytree(tiny_cascade, tmp_path_factory.mktemp("fast") / "tiny"))
    (folder / "unitune_preset.json").write_text('{"methods": {"unitune": {"fast_steps": 3}}}')
    with LocalServices(str(folder), home=Home(tmp_path_factory.mktemp("home"))) as services:
        yield services


@pytest.fixture
def client(services: LocalServices) -> Iterator[Client]:
    """A client of the services."""
    with Client(services.address) as client:
        yield client
