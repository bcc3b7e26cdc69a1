"""`unitune up` on the real services: what is killed is started again, and an edit then works as before."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reports.conftest import ROOT
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

PATIENCE_S = 600  # three services start, on a busy machine
SERVICES = ("tuner", "sampler", "gateway")


@pytest.fixture(scope="module")
def environment(home: Home) -> dict[str, str]:
    """Of every command here."""
    machine = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    return machine | {"UNITUNE_HOME": str(home.root), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def up(services: LocalServices, home: Home, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`unitune up`, once it listens; what it says goes into the file `said`."""
    command = [sys.executable, "-m", "unitune_client", "up", "--port", "0", "--base-model", str(services._base_model)]
    with (
        (home.root / "said").open("w") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as process,
    ):
        assert process.stdout is not None and process.stdout.readline().startswith("listening 127.0.0.1:")
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(60)


def pid_of(service: str, parent: int) -> int:
    """The process of a service: the child that runs its module."""
    module = service if service == "gateway" else f"{service}_svc"
    for children in Path(f"/proc/{parent}/task").glob("*/children"):  # the supervisor's thread starts some
        for pid in children.read_text().split():
            if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pid)
    raise AssertionError(f"{service} does not run")


def test_what_is_killed_is_started_again_and_an_edit_works(
    home: Home, up: subprocess.Popen[str], environment: dict[str, str], photo: Path, tmp_path: Path
) -> None:
    """SIGKILL to each service in turn: `up` says so, each listens again where it did, and a tuning and an edit work
    (r12)."""
    before = home.running()
    for service in SERVICES:
        os.kill(pid_of(service, up.pid), signal.SIGKILL)
    said, gives_up_at = home.root / "said", time.monotonic() + PATIENCE_S
    while not all(f"the {service} listens again, after" in said.read_text() for service in SERVICES):
        assert time.monotonic() < gives_up_at and up.poll() is None, said.read_text()
        time.sleep(0.1)

    command = [sys.executable, "-m", "unitune_client", "edit", str(photo), "a cat", "--updates", "1", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=PATIENCE_S)

    assert before is not None and before == home.running()
    told = said.read_text()
    assert all(f"the {one} ended with status -9; it is started again (1 of at most 5" in told for one in SERVICES), told
    assert 0 == done.returncode, done.stderr
    assert f"using the services of `unitune up` at {before.address}, process {up.pid}" in done.stderr
    assert all((tmp_path / path).is_file() for path in done.stdout.splitlines())
