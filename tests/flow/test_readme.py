"""The programs of README.md, pasted and run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from unitune_client.local.services import LocalServices

ROOT = Path(__file__).parents[2]
PROGRAMS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("client", ["Client", "AsyncClient"])
def test_a_program_of_the_readme_works_as_pasted(services: LocalServices, tmp_path: Path, client: str) -> None:
    """In at most 20 lines it edits a picture, shows progress and saves the results. The address alone is changed."""
    (program,) = [text for text in PROGRAMS if f"import {client}" in text]
    assert len(program.splitlines()) <= 20 and 'Client("127.0.0.1:50051")' in program
    (tmp_path / "demo").symlink_to(ROOT / "demo")

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.replace("127.0.0.1:50051", services.address)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )

    assert (0, "") == (done.returncode, done.stderr)
    names = {path.name for path in tmp_path.glob("*.png")}
    if client == "AsyncClient":
        assert {"cat.png", "dog.png"} == names and "TuningReady" in done.stdout
        return
    assert {"dog0.png", "dog1.png"} == names
    assert re.search(r"^tuning: \d+ of 128$", done.stdout, re.MULTILINE)  # the last may come with the edit's first step
    assert re.search(r"^editing: step (\d+) of \1$", done.stdout, re.MULTILINE)
