"""Three real services on the tiny base model, which the tests of this folder may kill, stop and fill."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.soak.services import Services
from unitune_client.local.home import Home

LEASE_S = 3.0


@pytest.fixture(scope="module")
def engine(built_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the module's own: a sampler writes beside it."""
    engines = shutil.copytree(built_home.engines, tmp_path_factory.mktemp("engine") / "engines")
    return next(path for path in engines.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def own(services_model: Path, engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The services. What a test ends it starts again."""
    folder = tmp_path_factory.mktemp("own")
    settings = {"UNITUNE_THREADS": "1", "UNITUNE_LEASE_S": f"{LEASE_S:g}"}
    with Services(services_model, engine, folder / "data", folder / "logs", settings) as services:
        yield services
