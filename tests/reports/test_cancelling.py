"""An edit ends for everybody, however its user leaves it: the state says so, and the sampler is free again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.reports.conftest import PATIENCE_S, ROOT
from unitune_client import Cancelled, Client, EditAccepted, EditEvent, EditState, EditStep, Unavailable
from unitune_client.local.services import LocalServices

# Thousands of steps: minutes, if nobody stops them.
LONG = {
    "method": "sdedit",
    "strength": 1.0,
    "num_inference_steps": 1000,
    "guidance_scale": 4.0,
    "seeds": list(range(8)),
}


# The same after few steps, in a second pass: how fast the tests before were says nothing of it.
LATE = {
    "method": "sdedit",
    "strength": 0.02,
    "num_inference_steps": 90,
    "second_pass": True,
    "second_pass_strength": 1.0,
    "second_pass_scale": 16.0,
}


def until_it_runs(events: Iterator[EditEvent]) -> str:
    """Read up to the first step; the edit's name."""
    name = ""
    for event in events:
        if isinstance(event, EditAccepted):
            name = event.edit
        if isinstance(event, EditStep):
            return name
    raise AssertionError("the edit ended before its first step")


def assert_cancelled(client: Client, name: str, photo: Path) -> None:
    """The edit becomes CANCELLED, and another one is answered."""
    gives_up_at = time.monotonic() + PATIENCE_S
    while (state := client.get_edit(name).state) is EditState.RUNNING:
        assert time.monotonic() < gives_up_at, state
        time.sleep(0.05)
    assert EditState.CANCELLED == state
    assert client.edit_to_end(photo, "a cat", method="sdedit", num_inference_steps=2).images


def test_a_closed_stream_cancels(client: Client, photo: Path) -> None:
    """Who leaves the loop over the events early has cancelled the edit."""
    events = client.edit(photo, "a cat", **LONG)
    name = until_it_runs(events)

    events.close()

    assert_cancelled(client, name, photo)


def test_another_connection_cancels(client: Client, services: LocalServices, photo: Path) -> None:
    """CancelEdit by name needs no connection to the stream, whose reader is told."""
    events = client.edit(photo, "a cat", **LONG)
    name = until_it_runs(events)

    with Client(services.address) as other:
        other.cancel_edit(name)

    with pytest.raises(Cancelled):
        list(events)
    assert_cancelled(client, name, photo)


def test_a_deadline_cancels(client: Client, photo: Path, tmp_path: Path) -> None:
    """An edit does not go on when its caller's time is up."""
    names: list[str] = []
    large = tmp_path / "large.png"
    with Image.open(photo) as picture:
        picture.resize((512, 384)).save(large)

    with pytest.raises(Unavailable) as caught:
        for event in client.edit(large, "a cat", timeout_s=5.0, **LATE):
            if isinstance(event, EditAccepted):
                names.append(event.edit)

    assert "DEADLINE_EXCEEDED" == caught.value.reason
    assert names, "not even accepted in five seconds"
    assert_cancelled(client, names[0], photo)


def test_an_interrupted_command_cancels(
    client: Client, photo: Path, command_environment: dict[str, str], tmp_path: Path
) -> None:
    """Ctrl-C of `unitune edit` cancels on the server, names the edit and leaves with 130, without a picture."""
    command = [sys.executable, "-m", "unitune_client", "edit", str(photo), "a cat", "--method", "sdedit"]
    command += ["--strength", "1", "--steps", "1000", "--guidance", "4", "--seed", "0", "--seed", "1", "--seed", "2"]
    said = tmp_path / "said"
    with (
        said.open("w") as stderr,
        subprocess.Popen(command, env=command_environment, cwd=tmp_path, stdout=stderr, stderr=stderr) as process,
    ):
        try:
            wait_for("a cat: 1/", said)
            process.send_signal(signal.SIGINT)
            assert 130 == process.wait(PATIENCE_S)
        finally:
            process.kill()

    told = said.read_text()
    name = told.partition("cancelled edit ")[2].split()[0]
    assert "Traceback" not in told
    assert [] == list(tmp_path.glob("out/*.png"))
    assert_cancelled(client, name, photo)


KILLED = """
import sys
from unitune_client import Client, EditAccepted, EditStep
with Client(sys.argv[1]) as client:
    for event in client.edit(sys.argv[2], "a cat", **eval(sys.argv[3])):
        if isinstance(event, EditAccepted):
            print(event.edit, flush=True)
        if isinstance(event, EditStep):
            print("runs", flush=True)
"""


def test_a_killed_client_cancels(client: Client, services: LocalServices, photo: Path) -> None:
    """A client that dies without a word leaves nothing running."""
    command = [sys.executable, "-c", KILLED, services.address, str(photo), repr(LONG)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert "runs" == process.stdout.readline().strip()
        process.kill()

    assert_cancelled(client, name, photo)


def wait_for(text: str, file: Path) -> None:
    """Wait until a file holds a text."""
    gives_up_at = time.monotonic() + PATIENCE_S
    while text not in file.read_text():
        assert time.monotonic() < gives_up_at, file.read_text()
        time.sleep(0.02)
