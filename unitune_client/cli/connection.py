"""Where a command finds its server: at --address, at services that `unitune up` shares, or started for it here."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unitune.errors import (
    STATE_DOWN,
    STATE_FULL,
    STORE_DOWN,
    STORE_FULL,
    Internal,
    InvalidField,
    ResourceExhausted,
    Unavailable,
    UniTuneError,
)
from unitune_client.cli.credentials import credentials_of, refuse_credentials
from unitune_client.client import Client
from unitune_client.local.home import Home
from unitune_client.local.machine import LocalError, base_model_folder, disk_full
from unitune_client.local.services import LocalServices
from unitune_client.repeats import OnRetry

Say = Callable[[str], object]

AGAIN_S = 15.0  # between two lines that say the same


@contextmanager
def connection(address: str | None, base_model: str | None, say: Say) -> Iterator[Client]:
    """A client of the right server, for as long as the block lasts.

    Raises InvalidField for a base model that the server was not started with, and LocalError when the services
    cannot run here.
    """
    if address:
        if base_model:
            raise InvalidField("--base-model", base_model, f"leave it out: the server at {address} has its own")
        with Client(address, **credentials_of(address), on_retry=_told_by(say)) as client:
            yield client
        return
    refuse_credentials()
    base_model = base_model or os.environ.get("UNITUNE_BASE_MODEL")
    home = Home.from_environment(os.environ)
    running = home.running()
    if running is None:
        services = LocalServices(base_model, home=home, log=say)
        running = services.wait_for_turn()
    if running is not None:
        if base_model and str(base_model_folder(base_model, home.models)) != running.base_model:
            remedy = f"leave it out, or stop `unitune up` (process {running.pid}), which has {running.base_model}"
            raise InvalidField("--base-model", base_model, remedy)
        say(f"using the services of `unitune up` at {running.address}, process {running.pid}")
        with _local_paths(home), _named_logs(running.logs), Client(running.address, on_retry=_told_by(say)) as client:
            yield client
        return
    say("running the services here; `unitune up` keeps them running")
    with services, _named_logs(str(services.logs)), Client(services.address, on_retry=_told_by(say)) as client:
        services.on_failure = client.close  # so that a call that waits ends at once
        try:
            with _local_paths(home):
                yield client
        except Unavailable:
            services.check_unbroken()  # the end of a service says more than that none answers
            raise
        except Exception:
            services.check()
            raise


def _told_by(say: Say) -> OnRetry:
    """Says that a lost call is sent again: at once, and then every AGAIN_S while that lasts."""
    due_s = 0.0

    def on_retry(error: UniTuneError, pause_s: float) -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + AGAIN_S
            say(f"{error.message}: trying again")

    return on_retry


@contextmanager
def _named_logs(folder: str) -> Iterator[None]:
    """Put the file's path into errors that speak of a service's log."""
    try:
        yield
    except Internal as error:
        name = next((name for name in ("tuner", "sampler") if f"the {name} " in error.message), "gateway")
        if not folder or "log" not in error.message:
            raise
        message = f"{error.message}: {folder}/{name}.log"
        raise Internal(message, reason=error.reason, metadata=error.metadata) from None


@contextmanager
def _local_paths(home: Home) -> Iterator[None]:
    """Put the path into errors of the disk, which a server of this machine does not name."""
    try:
        yield
    except (ResourceExhausted, Unavailable) as error:
        paths = {STORE_FULL: home.store, STORE_DOWN: home.store, STATE_FULL: home.state, STATE_DOWN: home.state}
        path = paths.get(error.reason)
        if path is None:
            raise
        if error.reason in (STORE_FULL, STATE_FULL):
            raise disk_full(path) from error
        raise LocalError(f"cannot use {path}: the log of the gateway in {home.root / 'logs'} says why") from error
