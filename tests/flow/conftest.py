"""The three services, as real processes on the tiny cascade, started once for all tests here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from unitune_client import Client
from unitune_client.home import Home
from unitune_client.local import LocalServices


@pytest.fixture(scope="session")
def services(tiny_cascade: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """The three services on the tiny base model with its second stage."""
    with LocalServices(str(tiny_cascade), home=Home(tmp_path_factory.mktemp("home"))) as services:
        yield services


@pytest.fixture
def client(services: LocalServices) -> Iterator[Client]:
    """A client of the services."""
    with Client(services.address) as client:
        yield client
