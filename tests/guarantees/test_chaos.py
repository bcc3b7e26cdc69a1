"""`make chaos`, in short: a fleet under tenants and faults, and then everything holds."""

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
SEED = "1388"  # a store that hangs, a killed database, gateway and tuner, and expired leases, in 12 s
ROOT = Path(__file__).resolve().parents[2]


def test_everything_holds_in_a_fleet_under_faults(services_model: Path, built_home: Home, tmp_path: Path) -> None:
    """Two gateways, two tuners, a sampler, a database and a bucket: processes are killed and frozen, links cut and
    held, and a tuning kills its tuners. Every tuning that was accepted ends once, its weights are there once, no edit
    is lost, and counters are counts (F5, F17, F25, F47)."""
    home, out = tmp_path / "home", tmp_path / "out"
    for folder in (built_home.engines, built_home.graphs):
        shutil.copytree(folder, home / folder.name)
    command = [sys.executable, "-m", "bench.chaos", "--seconds", "12", "--seed", SEED, "--fault-every", "1.8"]
    command += ["--base-model", str(services_model), "--home", str(home), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(" 0 violations") and " FAILED" in done.stdout
    assert done.stdout.splitlines()[1:] == [*(out / "report.txt").read_text().splitlines()]
