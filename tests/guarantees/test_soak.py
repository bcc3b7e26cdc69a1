"""`make soak`, in short: clients and faults, and then everything holds."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unitune_client.local.home import Home

pytestmark = [
    pytest.mark.slow,  # real services
    pytest.mark.exhaustive,  # one fault at a time is in test_processes.py and tests/gateway/test_lives.py
]
SEED = "842"  # a full disk, a killed sampler, a stopped gateway, cut connections and a frozen tuner, in 12 s
ROOT = Path(__file__).resolve().parents[2]


def test_everything_holds_under_clients_and_faults(services_model: Path, built_home: Home, tmp_path: Path) -> None:
    """Services are killed, stopped and frozen, connections cut and the disk filled while clients work: nothing is lost,
    nothing is left, and the report tells it."""
    home, out = tmp_path / "home", tmp_path / "out"
    for folder in (built_home.engines, built_home.graphs):
        shutil.copytree(folder, home / folder.name)
    command = [sys.executable, "-m", "bench.soak", "--seconds", "12", "--seed", SEED, "--clients", "4"]
    command += ["--fault-every", "2", "--base-model", str(services_model), "--home", str(home), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (out / "report.md").read_text()
    assert page.startswith("# Soak: no violation") and "| gateway " in page and (out / "resources.png").is_file()
