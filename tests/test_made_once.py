"""What is made once is made by one worker, is whole for all others, and is made again after a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made_once import made_once

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 240  # a busy machine starts Python slowly

MAKER = """
import os, sys, time
from pathlib import Path
from tests.made_once import made_once

def make(folder):
    (folder / "begun").write_text(str(os.getpid()))
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "ended").write_text(str(os.getpid()))

folder = made_once(Path(sys.argv[1]), "thing", make)
print((folder / "begun").read_text(), (folder / "ended").read_text())
"""

# Tests of two files, which two workers run. Each notes in `makers` which process has made the folder.
CONFTEST = """
import os
from pathlib import Path
import pytest
from tests.made_once import made_once, run_folder

@pytest.fixture(scope="session")
def thing(pytestconfig, tmp_path_factory):
    def make(folder):
        with open(os.environ["MAKERS"], "a") as makers:
            makers.write(f"{os.getpid()}\\n")
        (folder / "whole").touch()
    return made_once(run_folder(pytestconfig, tmp_path_factory), "thing", make)
"""
TEST = "def test_it(thing): assert [path.name for path in thing.iterdir()] == ['whole']\n"


def maker(run: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that takes these seconds to make `thing`."""
    command = [sys.executable, "-c", MAKER, str(run), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    """Both find what one of them has made, whole."""
    makers = [maker(tmp_path, 0.3) for _ in range(2)]
    first, second = (one.communicate(timeout=PATIENCE_S)[0].splitlines()[-1].split() for one in makers)

    assert first == second and len(set(first)) == 1
    assert int(first[0]) in {one.pid for one in makers}


def test_what_a_killed_worker_began_is_made_again(tmp_path: Path) -> None:
    """It has left neither a lock nor a folder that looks made."""
    killed = maker(tmp_path, PATIENCE_S)
    with killed:
        assert killed.stdout is not None and killed.stdout.readline() == "begun\n"
        killed.kill()
    folder = made_once(tmp_path, "thing", lambda folder: (folder / "whole").touch())

    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_a_failure_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    """The next who asks gets a whole folder."""

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        made_once(tmp_path, "thing", fail)
    folder = made_once(tmp_path, "thing", lambda folder: (folder / "whole").touch())

    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_each_run_makes_it_once_with_and_without_workers(tmp_path: Path) -> None:
    """Two workers share one folder, and a later run with the same --basetemp takes nothing of an earlier one."""
    tests, makers = tmp_path / "tests", tmp_path / "makers"
    tests.mkdir()
    (tests / "conftest.py").write_text(CONFTEST)
    for name in ("test_a.py", "test_b.py"):
        (tests / name).write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "run")]
    for number, workers in enumerate(([], ["--numprocesses=2", "--dist=loadfile"], []), start=1):
        done = subprocess.run(
            [*command, *workers, str(tests)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MAKERS": str(makers)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

        assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
        assert number == len(makers.read_text().split()), makers.read_text()
