"""A backup of a fleet's state and store, as docs/deploy.md makes it, and what a gateway does with what is restored."""

import asyncio
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.retention import OWNER
from tests.gateway.conftest import World, edit, eventually, picture
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


async def test_a_fleet_goes_on_from_its_backup(world: World, postgres_server: PostgresServer, tmp_path: Path) -> None:
    """Dumped and copied while a gateway runs, restored into an empty database and another store: the READY tuning edits
    without being tuned again, the tuner goes on with its run, the queued one is run, what came after the backup is not
    there, and the store is the state's own."""

    async def on(state: str, store: str) -> None:
        world.tuner.store = world.sampler.store = ObjectStore(str(tmp_path / store))
        world.config = replace(world.config, state=state, store=str(tmp_path / store))
        await world.open()

    await world.close()
    source, target = postgres_server.new_database(), postgres_server.new_database()
    await on(source, "fleet")
    ready = await world.tuned()
    await eventually(world.gateway.retention._is_own_store)
    world.tuner.go_on.clear()
    busy = await world.tune(picture("navy"))
    await asyncio.wait_for(world.running(busy.name), 20)
    waiting = await world.tune(picture("tan"))

    (dump,), (restore,) = commands("Back up"), commands("Restore")
    await asyncio.to_thread(run, dump, tmp_path, DATABASE=source)
    later = await world.tune(picture("red"))
    shutil.copytree(tmp_path / "fleet", tmp_path / "copy")  # after the database, so that it has all that is in the dump
    await world.close()
    await asyncio.to_thread(run, restore, tmp_path, DATABASE=target)
    await on(target, "copy")

    tuned = len(world.tuner.requests)
    events = await edit(world, tuning=ready.name)
    assert events[-1].HasField("done") and len(world.tuner.requests) == tuned
    assert (await world.tunings.GetTuning(GetTuningRequest(name=ready.name))).etag == ready.etag
    world.tuner.go_on.set()
    for name in (busy.name, waiting.name):
        await world.until(name, Tuning.STATE_READY)
        assert await world.attempts(name) == [1]
    names = {one.name for one in (await world.tunings.ListTunings(ListTuningsRequest())).tunings}
    assert names == {ready.name, busy.name, waiting.name} and later.name not in names
    assert await world.gateway.retention._is_own_store() and (tmp_path / "copy" / OWNER).exists()
