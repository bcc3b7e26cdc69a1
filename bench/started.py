"""Services as processes on loopback, at addresses that stay, so that each can be killed and started again."""

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from unitune.errors import UniTuneError
from unitune_client import Client
from unitune_client.local import programs
from unitune_client.local.services import WITHOUT_CREDENTIALS
from unitune_client.local.supervision import Service

GATEWAY, TUNER, SAMPLER = "gateway", "tuner", "sampler"  # kinds
MODULES = {GATEWAY: "gateway", TUNER: "tuner_svc", SAMPLER: "sampler_svc"}
START_S = 300.0
LOOKS_EVERY_S = 0.05
# What services log when they made a mistake. Other errors are of disks, stores and other services that were away.
MISTAKES = ("call failed", "edit failed", "comparison failed", "tuning broke", "sampling failed", "tuner's work failed")


class Started:
    """Services by name, whose first word is the kind, such as `tuner 2`. After `stop` none of them runs.

    Nobody starts again what ends: that is for the caller to do, with `restart`.
    """

    def __init__(self, logs: Path, settings: Mapping[str, str]) -> None:
        """`settings` are those of all services. `logs` gets a log of each; those of an earlier run are deleted."""
        self.logs, self.settings = logs, {**WITHOUT_CREDENTIALS, **settings}
        self.by_name: dict[str, Service] = {}
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("*.log"):
            old.unlink()

    def start_gateway(
        self, name: str, address: str, internal: str, samplers: Sequence[str], state: str, **further: str
    ) -> None:
        """Start a gateway at its two addresses. `further` are settings of its own, here and below."""
        own = {
            "UNITUNE_GATEWAY_ADDRESS": address,
            "UNITUNE_INTERNAL_ADDRESS": internal,
            "UNITUNE_SAMPLER": ",".join(samplers),
            "UNITUNE_STATE": state,
        }
        self._start(name, own | further)

    def start_tuner(
        self,
        name: str,
        gateways: Sequence[str],
        base_model: Path,
        *,
        address: str = "127.0.0.1:0",
        module: str = "",
        **further: str,
    ) -> None:
        """Start a tuner, or a module in its place, that asks gateways at their internal addresses."""
        own = {
            "UNITUNE_TUNER_ADDRESS": address,
            "UNITUNE_GATEWAY": ",".join(gateways),
            "UNITUNE_BASE_MODEL": str(base_model),
        }
        self._start(name, own | further, module)

    def start_sampler(self, name: str, address: str, engine: Path, **further: str) -> None:
        """Start a sampler."""
        self._start(name, {"UNITUNE_SAMPLER_ADDRESS": address, "UNITUNE_ENGINE": str(engine)} | further)

    def names(self, kind: str) -> list[str]:
        """The services of a kind."""
        return [name for name in self.by_name if _kind(name) == kind]

    def log(self, name: str) -> Path:
        """The log of a service, of all its processes."""
        return self.logs / f"{name.replace(' ', '-')}.log"

    def process(self, name: str) -> programs.Process:
        """The latest process of a service."""
        return self.by_name[name].process

    def restart(self, name: str, **settings: str) -> None:
        """Start a service that has ended again, at its address, with these settings changed."""
        self.by_name[name].settings.update(settings)
        self.by_name[name].restart()

    def await_listening(self, name: str) -> None:
        """Return once a service listens. Raises LocalError if it ends before."""
        service, gives_up_at = self.by_name[name], time.monotonic() + START_S
        while not service.listens():
            if service.process.poll() is not None or time.monotonic() > gives_up_at:
                raise service.failure()
            time.sleep(LOOKS_EVERY_S)

    def await_ready(self, *gateways: str) -> None:
        """Return once the gateways at these addresses know a tuner and the samplers. Raises LocalError if a service
        ends before."""
        gives_up_at = time.monotonic() + START_S
        for address in gateways:
            with Client(address, reconnect_s=0) as client:
                while not _knows_all(client):
                    for service in self.by_name.values():
                        if service.process.poll() is not None:
                            raise service.failure()
                    if time.monotonic() > gives_up_at:
                        raise RuntimeError(f"tuners or samplers do not answer the gateway; look at {self.logs}")
                    time.sleep(LOOKS_EVERY_S)

    def stop(self, *names: str) -> None:
        """End these services, by default all. The tuner is the first, if there is only one."""
        tuners = self.names(TUNER)
        ended = names or tuple(self.by_name)
        first = self.process(tuners[0]) if len(tuners) == 1 and tuners[0] in ended else None
        programs.stop([self.process(name) for name in ended], first=first)

    def mistakes(self) -> list[str]:
        """Lines of the logs that tell of a mistake of ours, each after its service."""
        return [f"the {name} logged: {line[:1500]}" for name in self.by_name for line in mistakes(self.log(name))]

    def error_lines(self) -> dict[str, int]:
        """How many lines of each log tell of an error, of whomever."""
        return {name: _read(self.log(name)).count('"level": "error"') for name in self.by_name}

    def _start(self, name: str, own: Mapping[str, str], module: str = "") -> None:
        kind, settings = _kind(name), {**self.settings, **own}
        self.by_name[name] = Service(kind, module or MODULES[kind], settings, self.log(name))


def mistakes(log: Path) -> list[str]:
    """Lines of a log that tell of a mistake of ours."""
    events = [f'"event": "{event}"' for event in MISTAKES]
    lines = _read(log).splitlines()
    return [line for line in lines if line.startswith("Traceback") or any(event in line for event in events)]


def free_addresses(number: int) -> list[str]:
    """So many free addresses of loopback, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _knows_all(client: Client) -> bool:
    try:
        return all(upstream.is_answering for upstream in client.server_info().upstreams)
    except UniTuneError:  # it does not listen yet
        return False


def _read(log: Path) -> str:
    return log.read_text(errors="replace")
