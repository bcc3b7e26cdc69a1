"""Gateway, tuner and sampler as processes at addresses that stay, so that each can be killed and started again."""

import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from unitune_client import Client
from unitune_client.local import programs
from unitune_client.local.services import WITHOUT_CREDENTIALS
from unitune_client.local.supervision import Service

NAMES = ("gateway", "tuner", "sampler")
START_S = 300.0
LOOKS_EVERY_S = 0.05


class Services:
    """The three services on this machine, in a `with` block: all of them run at its beginning, and none at its end.

    Nobody starts again what ends: that is for the caller to do, with `restart`.
    """

    def __init__(
        self, base_model: Path, engine: Path, folder: Path, logs: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        """State and store lie in `folder`, one log of each service in `logs`. `settings` are those of all services."""
        self.store, self.state, self.logs = folder / "store", folder / "state" / "gateway.sqlite", logs
        for path in (self.store, self.state.parent, logs):
            path.mkdir(parents=True, exist_ok=True)
        public, internal, sampler, *metrics = free_addresses(3 + len(NAMES))
        self.address, self.metrics = public, dict(zip(NAMES, metrics, strict=True))
        own = {
            "gateway": {
                "UNITUNE_GATEWAY_ADDRESS": public,
                "UNITUNE_INTERNAL_ADDRESS": internal,
                "UNITUNE_SAMPLER": sampler,
                "UNITUNE_STATE": str(self.state),
            },
            "tuner": {
                "UNITUNE_TUNER_ADDRESS": "127.0.0.1:0",
                "UNITUNE_GATEWAY": internal,
                "UNITUNE_BASE_MODEL": str(base_model),
            },
            "sampler": {"UNITUNE_SAMPLER_ADDRESS": sampler, "UNITUNE_ENGINE": str(engine)},
        }
        self._internal, self._sampler = internal, sampler
        self._settings = {
            name: {
                **WITHOUT_CREDENTIALS,
                "UNITUNE_STORE": str(self.store),
                "UNITUNE_METRICS_ADDRESS": self.metrics[name],
                **(settings or {}),
                **own[name],
            }
            for name in NAMES
        }
        self._running: dict[str, Service] = {}

    @property
    def ports(self) -> dict[str, str]:
        """The addresses that take calls: the public one, the one for tuners, the tuner's and the sampler's."""
        return {
            "public": self.address,
            "internal": self._internal,
            "tuner": self._running["tuner"].address,
            "sampler": self._sampler,
        }

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            for name in NAMES:
                self._running[name] = Service(name, _module(name), self._settings[name], self.log(name))
            for name in NAMES:
                self.await_listening(name)
            self.await_ready()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log(self, name: str) -> Path:
        """The log of a service, of all its processes."""
        return self.logs / f"{name}.log"

    def process(self, name: str) -> programs.Process:
        """The latest process of a service."""
        return self._running[name].process

    def restart(self, name: str) -> None:
        """Start a service that has ended again, at its address, and wait until it listens."""
        self._running[name].restart()
        self.await_listening(name)

    def await_listening(self, name: str) -> None:
        """Return once a service listens. Raises LocalError if it ends before."""
        await_listening(self._running[name])

    def await_ready(self) -> None:
        """Return once the gateway knows tuner and sampler."""
        await_upstreams(self.address, self.log("gateway"))

    def stop(self) -> None:
        """End all that runs, the tuner first."""
        tuner = self._running.get("tuner")
        programs.stop(
            [service.process for service in self._running.values()], first=tuner.process if tuner is not None else None
        )


def await_listening(service: Service) -> None:
    """Return once a service listens. Raises LocalError if it ends before."""
    gives_up_at = time.monotonic() + START_S
    while not service.listens():
        if service.process.poll() is not None or time.monotonic() > gives_up_at:
            raise service.failure()
        time.sleep(LOOKS_EVERY_S)


def await_upstreams(gateway: str, log: Path) -> None:
    """Return once the gateway at an address knows tuner and samplers. The error names its log, or a folder of logs."""
    gives_up_at = time.monotonic() + START_S
    with Client(gateway) as client:
        while not all(upstream.is_answering for upstream in client.server_info().upstreams):
            if time.monotonic() > gives_up_at:
                raise RuntimeError(f"tuners or samplers do not answer the gateway; look at {log}")
            time.sleep(LOOKS_EVERY_S)


def free_addresses(number: int) -> list[str]:
    """So many free addresses of loopback, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def _module(name: str) -> str:
    return "gateway" if name == "gateway" else f"{name}_svc"
