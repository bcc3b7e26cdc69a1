"""A run says how many exhaustive tests it leaves to `make test-all`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import pytest

def test_usual(): pass

@pytest.mark.exhaustive
def test_whole(): pass

@pytest.mark.parametrize("name", ["one", pytest.param("other", marks=pytest.mark.exhaustive)])
def test_each(name): pass
"""


@pytest.mark.parametrize("workers", [[], ["--numprocesses=2", "--dist=loadfile"]], ids=["alone", "workers"])
@pytest.mark.parametrize(
    ("chosen", "passed", "told"), [("not exhaustive", 2, True), ("exhaustive or not gpu", 4, False)]
)
def test_a_run_tells_what_it_leaves_out(
    tmp_path: Path, workers: list[str], chosen: str, passed: int, told: bool
) -> None:
    """Once, however many workers there are; and nothing when all are run."""
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    exhaustive\n    gpu\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.left_out", "-m", chosen]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    done = subprocess.run([*command, *workers], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert done.returncode == 0 and f"{passed} passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("2 exhaustive tests are left to `make test-all`") == told
