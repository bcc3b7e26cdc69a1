"""A disk that is full under the command line: which path, what to do, and that deleting works (N11)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.full_disk import fill, mounted
from tests.reports.conftest import PATIENCE_S, ROOT, Done
from tests.unitune_client import stand_ins
from unitune.system_errors import sentence
from unitune_client.cli.outputs import Outputs
from unitune_client.events import EditedImage

SAMPLER = """
import asyncio, os, sys
from tests.gateway.upstream_servers import Sampler
from unitune import serving
from unitune.v1 import sampler_pb2_grpc
from unitune.object_store import ObjectStore

def register(server):
    sampler_pb2_grpc.add_SamplerServiceServicer_to_server(Sampler(ObjectStore(os.environ["UNITUNE_STORE"])), server)
    return ["unitune.v1.SamplerService"]

sys.exit(asyncio.run(serving.serve("sampler", os.environ["UNITUNE_SAMPLER_ADDRESS"], register)))
"""

TUNER = """
import asyncio, os, sys
from tests.gateway.upstream_servers import RunningTuner, Tuner
from unitune import serving
from unitune.object_store import ObjectStore

async def main():
    work = RunningTuner(Tuner(ObjectStore(os.environ["UNITUNE_STORE"])), os.environ["UNITUNE_GATEWAY"])
    return await serving.serve("tuner", os.environ["UNITUNE_TUNER_ADDRESS"], lambda server: [], on_drain=work.stop)

sys.exit(asyncio.run(main()))
"""


@pytest.fixture
def small_home(tmp_path: Path) -> Iterator[Path]:
    """A home on a disk of its own, of 24 MB."""
    with mounted(tmp_path / "small", "24m") as folder:
        yield folder


@pytest.fixture
def at_home(tmp_path: Path, small_home: Path) -> Callable[..., Done]:
    """Run `unitune ARGUMENTS` with services of its own in the small home.

    Command line, gateway, state and store are the real ones; tuner and sampler are those of the gateway's tests, which
    have no model to load: a disk is full for them just as well.
    """
    stand_ins.write(tmp_path / "programs")
    shutil.rmtree(tmp_path / "programs" / "gateway")
    for name, text in (("tuner", TUNER), ("sampler", SAMPLER)):
        (tmp_path / "programs" / f"{name}_svc" / "__main__.py").write_text(text)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    machine = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    own = {
        "UNITUNE_HOME": str(small_home),
        "UNITUNE_BASE_MODEL": str(tmp_path / "model"),
        "PYTHONPATH": f"{tmp_path / 'programs'}{os.pathsep}{ROOT}",
    }

    def run(*arguments: object) -> Done:
        # The command itself must not find the stand-ins first: it starts in the source tree.
        command = [sys.executable, "-m", "unitune_client", *map(str, arguments)]
        return subprocess.run(command, env=machine | own, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)

    return run


def test_tunings_are_deleted_from_a_full_home(at_home: Callable[..., Done], small_home: Path, photo: Path) -> None:
    """On a full disk an edit names folder and remedy, and the remedy works: list, delete, and go on (N11)."""
    made = at_home("tune", photo, "--json")
    assert made.returncode == 0, made.stderr
    found = [json.loads(line) for line in made.stdout.splitlines()]
    name = next(line["tuning"]["name"] for line in found if "tuning" in line)
    ballast = fill(small_home)

    refused = at_home("edit", photo, "a cat", "-o", small_home.parent / "out")
    assert refused.returncode == 1 and "Errno" not in refused.stderr and "Traceback" not in refused.stderr
    assert f"cannot use {small_home}: its disk is full" in refused.stderr
    assert "unitune tunings delete NAME" in refused.stderr

    listed = at_home("tunings", "list")
    assert listed.returncode == 0 and name in listed.stdout, listed.stderr
    deleted = at_home("tunings", "delete", name)
    assert deleted.returncode == 0 and f"{name}  deleted" in deleted.stdout, deleted.stderr
    assert [path.name for path in (small_home / "store").rglob("*") if path.is_file()] in ([], ["owner"])
    ballast.unlink()
    assert name not in at_home("tunings", "list").stdout


def test_a_full_output_folder_is_told_with_the_picture_that_did_not_fit(tmp_path: Path) -> None:
    """The file's own name, the reason and the remedy; nothing half-written is left (N11)."""
    with mounted(tmp_path / "out", "1m") as folder:
        fill(folder).rename(folder / "a photograph")
        edited = EditedImage(index=0, seed=0, png=bytes(10_000))
        for path, save in (
            (folder / "cat--dog.png", edited.save),
            (folder / "cat--sheet.png", lambda path: Outputs(folder, "cat.jpg").save(bytes(10_000), "sheet")),
        ):
            with pytest.raises(OSError) as full:
                save(path)
            assert sentence(full.value).startswith(f"cannot use {path}: its disk is full; free some space")
        assert [path.name for path in folder.iterdir()] == ["a photograph"]
