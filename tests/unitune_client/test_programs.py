"""Programs of ours as child processes: what they find, wherever the caller stands and however it was started."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unitune
import unitune_client
from unitune_client.local import programs

PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{packages!r}]
from unitune_client.local import programs
from unitune_client.local.stage_log import StageLog
print(programs.run(["finds"], Path("log"), StageLog(print)))
"""
FINDS = """
import os
import unitune, unitune_client
assert os.environ["PYTHONPATH"].split(os.pathsep)[-1] == {packages!r}, os.environ["PYTHONPATH"]
print(os.path.dirname(unitune_client.__file__))
"""


def test_a_program_finds_our_packages_where_its_parent_has_them(tmp_path: Path) -> None:
    """A source tree that is not installed is passed on: its own folder, and nothing inside of it."""
    packages = tmp_path / "tree"
    for package in (unitune, unitune_client):
        folder = Path(package.__file__ or "").parent
        shutil.copytree(folder, packages / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    (packages / "finds.py").write_text(FINDS.format(packages=str(packages)))
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(packages=str(packages))], capture_output=True, text=True, cwd=tmp_path
    )
    assert (ended.stdout.strip(), ended.stderr) == (str(packages / "unitune_client"), ""), ended.stderr


def test_a_port_of_one_service_is_not_given_to_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed port of health or metrics stays with the caller; any free port, and everything else, is passed on."""
    monkeypatch.setenv("UNITUNE_METRICS_ADDRESS", "127.0.0.1:9464")
    monkeypatch.setenv("UNITUNE_HEALTH_ADDRESS", "127.0.0.1:0")
    monkeypatch.setenv("UNITUNE_CONFIG", "/etc/unitune.toml")
    monkeypatch.setenv("UNITUNE_HOME", "/home")
    passed_on = programs._environment({"UNITUNE_STORE": "x"})
    ours = {name: value for name, value in passed_on.items() if name.startswith("UNITUNE_")}
    assert ours["UNITUNE_HEALTH_ADDRESS"] == "127.0.0.1:0" and ours["UNITUNE_CONFIG"] == "/etc/unitune.toml"
    assert ours["UNITUNE_STORE"] == "x" and not {"UNITUNE_METRICS_ADDRESS", "UNITUNE_HOME"} & ours.keys()
