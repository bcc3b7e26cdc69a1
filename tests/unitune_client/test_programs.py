"""Programs of ours as child processes: what they find, wherever the caller stands and however it was started."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unitune
import unitune_client
from gateway.config import GatewayConfig
from sampler_svc.config import SamplerConfig
from tuner_svc.config import TunerConfig
from unitune.settings import NAMES, load
from unitune_client.local import programs
from unitune_client.local.programs import NOT_INHERITED
from unitune_client.local.services import WITHOUT_CREDENTIALS

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


def test_services_of_this_machine_take_no_credentials_of_another_server() -> None:
    """What a user has set for a server elsewhere would have `unitune up` ask for keys, or refuse to start."""
    of_servers = ("CA", "KEY", "ADMIN_KEY_FILE", "INSECURE", "OIDC_", "PEER_", "TLS_")
    named = {name for name in NAMES if name.removeprefix("UNITUNE_").startswith(of_servers)}
    assert len(named) == 14 and {"UNITUNE_OIDC_TENANT_CLAIM"} == named - NOT_INHERITED - WITHOUT_CREDENTIALS.keys()
    for kind in (GatewayConfig, TunerConfig, SamplerConfig):
        config = load(kind, {"UNITUNE_STORE": "s", "UNITUNE_STATE": "t", "UNITUNE_ENGINE": "e", **WITHOUT_CREDENTIALS})
        assert config.peer_files is None and not config.insecure


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
