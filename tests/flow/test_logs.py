"""What the services write to their logs in an ordinary life: what happened, and no alarm."""

import contextlib
import json
import signal
import time
from typing import Any

from tests.gateway.conftest import picture
from unitune.errors import Cancelled, UniTuneError
from unitune_client import Client, EditAccepted, EditStep, TuningProgress
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

SERVICES = ("gateway", "tuner", "sampler")


def live(client: Client, services: LocalServices) -> None:
    """Tune and edit, cancel an edit, leave another, cancel a tuning, delete one that runs, drain amid an edit."""
    file = picture(size=(60, 50))
    image = client.upload_image(file).name
    short: dict[str, Any] = {"updates": 3, "num_inference_steps": 8}
    client.edit_to_end(file, "a dog", **short)

    with contextlib.suppress(Cancelled):
        name = ""
        for event in client.edit(file, "a dog", **short | {"num_inference_steps": 900}):
            if isinstance(event, EditAccepted):
                name = event.edit
            if isinstance(event, EditStep):
                client.cancel_edit(name)

    for event in client.edit(file, "a dog", **short | {"num_inference_steps": 900}):
        if isinstance(event, EditStep):
            break

    for end in (client.cancel_tuning, client.delete_tuning):
        tuning = client.create_tuning(image, updates=5000)
        with contextlib.suppress(Cancelled):
            for event in client.watch_tuning(tuning.name):
                if isinstance(event, TuningProgress):
                    end(tuning.name)

    client.create_tuning(image, updates=4999)
    for event in client.edit(file, "a cat", **short | {"num_inference_steps": 999}):
        if isinstance(event, EditStep):
            break
    rest = client.edit(file, "a cat", **short | {"num_inference_steps": 999, "seeds": [1, 2, 3, 4]})
    with contextlib.suppress(UniTuneError):
        is_draining = False
        for event in rest:
            if isinstance(event, EditStep) and not is_draining:
                is_draining = True
                assert services._supervisor is not None
                services._supervisor.end()  # or it would start them again
                for service in services._services.values():
                    service.process.send_signal(signal.SIGTERM)
                time.sleep(1)
                # The second signal cuts the drain, and with it the edit, short.
                services._services["sampler"].process.send_signal(signal.SIGTERM)


def test_an_ordinary_life_is_told_without_alarm(services: LocalServices, home: Home) -> None:
    """Through tunings, edits, cancellations and a drain no service logs an error or prints a traceback, and the first
    tuning and edit are logged as having ended well (r18)."""
    base_model = str(services._base_model)
    # With little patience: services that are stopped do not come back.
    with LocalServices(base_model, home=home) as own, Client(own.address, reconnect_s=5) as client:
        live(client, own)
        for service in own._services.values():
            assert service.process.wait(60) == 0
    (logs,) = (home.root / "logs").iterdir()
    calls, tunings = [], []
    for service in SERVICES:
        for line in (logs / f"{service}.log").read_text().splitlines():
            if line.startswith("listening "):
                continue
            told = json.loads(line)  # nothing is written past the log
            assert told["level"] in ("info", "warning") and "traceback" not in told, line
            if told["event"] == "call":
                calls.append((told["method"].rpartition("/")[2], told["code"]))
            if told["event"] in ("tuning ready", "tuning lost", "tuning given back"):
                tunings.append(told["event"])
    assert tunings[0] == "tuning ready" and "tuning lost" not in tunings
    assert ("Sample", "OK") in calls
