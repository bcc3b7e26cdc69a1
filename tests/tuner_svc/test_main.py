"""The program: it starts on a folder, listens, and stops on a signal."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import pytest

from tests.configs import tuning_config
from tests.gateway.conftest import sha256
from tests.tuner_svc.scripted_pool import Pool, serve_pool
from tuner_svc.config import TunerConfig
from unitune import settings
from unitune.object_store import ObjectStore
from unitune.settings import BadSetting
from unitune.v1.tuner_pb2 import Assignment, StoredImage

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tuner_svc"]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with other UNITUNE variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    return {**kept, "UNITUNE_TUNER_ADDRESS": "127.0.0.1:0", "UNITUNE_THREADS": "1", **variables}


async def started(*program: str, log: Any = PIPE, **variables: str) -> Process:
    """A tuner's process, once it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, env=environment(**variables), cwd=ROOT, stdout=PIPE, stderr=log
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"listening 127.0.0.1:")
    return process


async def test_it_works_until_a_signal(tiny_model: Path, tmp_path: Path, picture: bytes) -> None:
    """One line on stdout, once the model is loaded; it says at the gateway what it is, and takes a tuning. SIGTERM
    gives that back, and ends the program with exit code 0 (F21)."""
    pool = Pool()
    server = await serve_pool(pool)
    store = tmp_path / "store"
    process = await started(
        "-m",
        "tuner_svc",
        UNITUNE_BASE_MODEL=str(tiny_model),
        UNITUNE_STORE=str(store),
        UNITUNE_GATEWAY=server.address,
    )
    try:
        run = pool.assign(assignment(ObjectStore(str(store)), picture, updates=5000))
        async with asyncio.timeout(60):
            async for report in run:
                if report.progress.update:
                    break
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None and await process.stdout.read() == b""
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        await server.stop()
        if process.returncode is None:
            process.kill()
    assert pool.info.base_model.name == "tiny"
    assert run.reports[-1].HasField("give_back")


def assignment(store: ObjectStore | None, picture: bytes, updates: int) -> Assignment:
    """A tuning of a picture, which is put into the store."""
    config = tuning_config(
        method="unitune", mode="attn_out", updates=updates, batch=1, learning_rate=1e-3, rare_tokens="r"
    )
    image = StoredImage(name="i", path=f"images/t/{sha256(picture)}/file", sha256=sha256(picture))
    if store is not None:
        store.put(image.path, picture)
    return Assignment(
        name="tenants/t/tunings/t-001", attempt=1, key="k", path="tunings/t/t-001/1", images=[image], config=config
    )


HURRIED_TUNER = """
import functools, sys
from unitune import serving
serving.serve, serving.LEAVE_S = functools.partial(serving.serve, drain_s=0.5), 0.5
from tuner_svc.__main__ import main
sys.exit(main())
"""


async def test_a_signal_ends_it_in_the_midst_of_what_nothing_interrupts(
    tiny_model: Path, tmp_path: Path, picture: bytes
) -> None:
    """While it waits for a bucket that does not answer, SIGTERM ends a tuner after its drain and the time to leave, and
    says in its log what held it up (r19)."""
    pool = Pool()
    server = await serve_pool(pool)
    with socket.create_server(("127.0.0.1", 0)) as silent, (tmp_path / "log").open("w") as log:
        silent.settimeout(120)
        process = await started(
            "-c",
            HURRIED_TUNER,
            log=log,
            UNITUNE_BASE_MODEL=str(tiny_model),
            UNITUNE_GATEWAY=server.address,
            UNITUNE_STORE="s3://silent",
            AWS_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            AWS_ALLOW_HTTP="true",
            AWS_ACCESS_KEY_ID="nobody",
            AWS_SECRET_ACCESS_KEY="nothing",
            NO_PROXY="127.0.0.1",
        )
        try:
            pool.assign(assignment(None, picture, updates=1))
            connection, _ = await asyncio.to_thread(silent.accept)
            process.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(process.wait(), 60)
            connection.close()
        finally:
            await server.stop()
            if process.returncode is None:
                process.kill()

    told = (tmp_path / "log").read_text()
    assert 1 == code
    assert "_read" in told[told.index('"draining"') :]


def test_a_folder_that_is_no_model_stops_the_start(tmp_path: Path) -> None:
    """One line names the variable and what the folder lacks, before PyTorch is loaded, which takes seconds."""
    variables = environment(UNITUNE_BASE_MODEL=str(tmp_path), UNITUNE_STORE=str(tmp_path / "store"))
    variables["PYTHONPROFILEIMPORTTIME"] = "1"

    done = subprocess.run(COMMAND, env=variables, cwd=ROOT, capture_output=True, text=True)

    imported = re.findall(r"^import time: .*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert "tuner_svc.config" in imported and not {"torch", "diffusers"} & {*imported}
    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.splitlines()[-1].startswith("tuner: UNITUNE_BASE_MODEL")
    assert "no model_index.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({}, "UNITUNE_STORE is not set"),
        ({"UNITUNE_STORE": ""}, "UNITUNE_STORE is empty"),
        ({"UNITUNE_STORE": "s", "UNITUNE_THREADS": "-1"}, "UNITUNE_THREADS is -1"),
        ({"UNITUNE_STORE": "s", "UNITUNE_GATEWAY": " , "}, "UNITUNE_GATEWAY is empty"),
        ({"UNITUNE_STORE": "s", "UNITUNE_TUNING_MEMORY_GB": "-1"}, "UNITUNE_TUNING_MEMORY_GB is -1: it must be 0"),
    ],
)
def test_wrong_settings_are_refused(variables: dict[str, str], complaint: str) -> None:
    """Each is one line that names the variable."""
    with pytest.raises(BadSetting, match=complaint):
        settings.load(TunerConfig, variables)


def test_the_embedded_model_is_the_default() -> None:
    """Without a setting the tuner takes stickerbook, and all cores."""
    config = settings.load(TunerConfig, {"UNITUNE_STORE": "s"})

    assert ROOT / "stickerbook" / "model" == config.base_model
    assert config.num_threads() >= 1
