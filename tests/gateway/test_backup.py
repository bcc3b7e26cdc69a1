"""A backup of a fleet's state and store, as docs/deploy.md makes it, and what a gateway does with what is restored."""

import asyncio
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.retention import OWNER
from tests.gateway.conftest import World, edit, picture
from tests.gateway.upstream_servers import Sampler, Tuner
from tests.postgres_server import BIN, PostgresServer
from unitune.object_store import ObjectStore
from unitune.v1.tuning_pb2 import GetTuningRequest, ListTuningsRequest, Tuning

pytestmark = pytest.mark.slow  # a real server

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


def commands(heading: str) -> list[str]:
    """The lines of the page below a heading that begin with a program of PostgreSQL."""
    section = PAGE.read_text().partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    return re.findall(r"^    ((?:pg_dump|pg_restore) .+)$", section, re.MULTILINE)


def run(line: str, folder: Path, **variables: str) -> None:
    """Run a line of the page in a folder, with the programs of the tests' own server."""
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", **variables}
    done = subprocess.run(["bash", "-euc", line], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


async def test_a_fleet_goes_on_from_its_backup(
    world: World, postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dumped and copied while a gateway runs, restored into an empty database and another store: the READY tuning edits
    without being tuned again, a queued one is run, what came after the backup is not there, and keys and store are
    the state's own."""
    await world.close()
    source, target = postgres_server.new_database(), postgres_server.new_database()
    world.config = replace(world.config, state=source, admin_key_file=None)
    await world.open()
    ready = await world.tuned()
    world.tuner.go_on.clear()
    busy = await world.tune(picture("navy"))
    await asyncio.wait_for(world.running(busy.name), 20)
    waiting = await world.tune(picture("tan"))

    (dump,), (restore,) = commands("Back up"), commands("Restore")
    await asyncio.to_thread(run, dump, tmp_path, DATABASE=source)
    later = await world.tune(picture("red"))
    shutil.copytree(tmp_path / "store", tmp_path / "copy")  # after the database, so that it has all that is in the dump

    world.tuner.go_on.set()
    await world.close()
    await asyncio.to_thread(run, restore, tmp_path, DATABASE=target)
    copy = ObjectStore(str(tmp_path / "copy"))
    for service, kind in ((world.tuner, Tuner), (world.sampler, Sampler)):
        assert isinstance(service, kind)
        monkeypatch.setattr(service, "store", copy)
    world.config = replace(world.config, state=target, store=str(tmp_path / "copy"))
    await world.open()

    tuned = len(world.tuner.requests)
    events = await edit(world, tuning=ready.name)
    assert events[-1].HasField("done") and len(world.tuner.requests) == tuned
    assert (await world.until(waiting.name, Tuning.STATE_READY)).name == waiting.name
    names = {one.name for one in (await world.tunings.ListTunings(ListTuningsRequest())).tunings}
    assert names == {ready.name, busy.name, waiting.name} and later.name not in names
    assert (await world.tunings.GetTuning(GetTuningRequest(name=ready.name))).etag == ready.etag
    assert await world.gateway.retention._is_own_store() and (tmp_path / "copy" / OWNER).exists()
