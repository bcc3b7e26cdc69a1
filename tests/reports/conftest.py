"""What the reports share: a photograph, and the command line as a user runs it, on the services of the session."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from unitune_client.cli.main import main
from unitune_client.local.services import LocalServices

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240  # a busy machine starts Python slowly

Done = subprocess.CompletedProcess[str]
Unitune = Callable[..., Done]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """photo.png, 60x44: a PNG of smooth colours that no other test has, so that its tuning is its own."""
    file = tmp_path / "photo.png"
    seed = int.from_bytes(os.urandom(4))
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    small.resize((60, 44), Image.Resampling.BICUBIC).save(file)
    return file


@pytest.fixture
def command_environment(services: LocalServices, tmp_path: Path) -> dict[str, str]:
    """The environment of a user's command: the services by UNITUNE_ADDRESS, and a home of its own."""
    machine = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    own = {"UNITUNE_ADDRESS": services.address, "UNITUNE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    return machine | own


@pytest.fixture
def unitune(command_environment: dict[str, str], tmp_path: Path) -> Unitune:
    """Run `unitune ARGUMENTS` to its end, as a process in `tmp_path`: unitune("edit", photo, "a cat", env={...}).

    `env` adds to the environment; other keywords go to `subprocess.run`. Standard output and error are text.
    """

    def run(*arguments: object, env: dict[str, str] | None = None, **options: object) -> Done:
        command = [sys.executable, "-m", "unitune_client", *map(str, arguments)]
        given = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": PATIENCE_S} | options
        return subprocess.run(command, env=command_environment | (env or {}), **given)

    return run


@pytest.fixture
def unitune_in_process(command_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unitune:
    """The command line in this process, which saves the seconds that each start of Python takes. `env` as above."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, env: dict[str, str | None] | None = None) -> Done:
        words = [str(argument) for argument in arguments]
        done = CliRunner().invoke(main, words, env={**command_environment, **(env or {})})
        return Done([], done.exit_code, done.stdout, done.stderr)

    return run
