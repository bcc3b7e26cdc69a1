"""The program: it starts on a folder, listens, and stops on a signal."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.configs import tuning_config
from tuner_svc.config import TunerConfig
from unitune import settings
from unitune.settings import BadSetting
from unitune.v1 import tuner_pb2, tuner_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tuner_svc"]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with other UNITUNE variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNITUNE_")}
    return {**kept, "UNITUNE_TUNER_ADDRESS": "127.0.0.1:0", "UNITUNE_THREADS": "1", **variables}


@pytest.fixture
def tuner(tiny_model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A tuner's process on the tiny model."""
    variables = environment(UNITUNE_BASE_MODEL=str(tiny_model), UNITUNE_STORE=str(tmp_path / "store"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(COMMAND, env=variables, cwd=ROOT, **pipes) as process:
        yield process
        process.kill()


def test_it_serves_until_a_signal(tuner: subprocess.Popen[str]) -> None:
    """One line on stdout names the address, calls are answered there, and SIGTERM ends it with exit code 0."""
    assert tuner.stdout is not None
    word, address = tuner.stdout.readline().split()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        info = tuner_pb2_grpc.TunerServiceStub(channel).GetTunerInfo(tuner_pb2.GetTunerInfoRequest(), timeout=30)
    tuner.send_signal(signal.SIGTERM)

    assert ("listening", "tiny") == (word, info.base_model.name)
    assert 0 == tuner.wait(30)
    assert "" == tuner.stdout.read()


HURRIED_TUNER = """
import functools, sys
from unitune import serving
serving.serve, serving.LEAVE_S = functools.partial(serving.serve, drain_s=0.5), 0.5
from tuner_svc.__main__ import main
sys.exit(main())
"""


def test_a_signal_ends_it_in_the_midst_of_what_nothing_interrupts(
    tiny_model: Path, tmp_path: Path, picture: bytes
) -> None:
    """While it stores weights in a bucket that does not answer, SIGTERM ends a tuner after its drain
    and the time to leave, and says in its log what held it up (r19)."""
    config = tuning_config(method="unitune", mode="attn_out", updates=1, batch=1, learning_rate=1e-3, rare_tokens="r")
    request = tuner_pb2.RunTuningRequest(name="t", key="k", path="tunings/t/t-001/1", image=picture, config=config)
    with socket.create_server(("127.0.0.1", 0)) as silent, (tmp_path / "log").open("w") as log:
        silent.settimeout(120)
        variables = environment(
            UNITUNE_BASE_MODEL=str(tiny_model),
            UNITUNE_STORE="s3://silent",
            AWS_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            AWS_ALLOW_HTTP="true",
            AWS_ACCESS_KEY_ID="nobody",
            AWS_SECRET_ACCESS_KEY="nothing",
            NO_PROXY="127.0.0.1",
        )
        command = [sys.executable, "-c", HURRIED_TUNER]
        with subprocess.Popen(command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as tuner:
            try:
                assert tuner.stdout is not None
                address = tuner.stdout.readline().split()[1]
                with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
                    run = tuner_pb2_grpc.TunerServiceStub(channel).RunTuning(request)
                    connection, _ = silent.accept()
                    tuner.send_signal(signal.SIGTERM)
                    code = tuner.wait(60)
                    run.cancel()
                    connection.close()
            finally:
                tuner.kill()

    told = (tmp_path / "log").read_text()
    assert 1 == code
    assert "put_weights" in told[told.index('"draining"') :]


def test_a_folder_that_is_no_model_stops_the_start(tmp_path: Path) -> None:
    """One line names the variable and what the folder lacks."""
    variables = environment(UNITUNE_BASE_MODEL=str(tmp_path), UNITUNE_STORE=str(tmp_path / "store"))

    done = subprocess.run(COMMAND, env=variables, cwd=ROOT, capture_output=True, text=True)

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
