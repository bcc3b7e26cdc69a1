"""Several gateways, tuners and samplers as processes on loopback, over one PostgreSQL server and one store."""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from bench.soak.services import await_listening, await_upstreams, free_addresses
from tests.postgres_server import PostgresServer
from unitune_client.local import programs
from unitune_client.local.services import WITHOUT_CREDENTIALS
from unitune_client.local.supervision import Service

STATISTICS_S = 1.5  # until the server's statistics have what its connections did
GATEWAY, TUNER, SAMPLER, DATABASE = "gateway", "tuner", "sampler", "database"
MODULES = {GATEWAY: "gateway", TUNER: "tuner_svc", SAMPLER: "sampler_svc"}
# What services log when they made a mistake. Other errors are of those that were away.
MISTAKES = ("call failed", "edit failed", "tuning broke", "sampling failed", "tuner's work failed")


@dataclass(frozen=True)
class Size:
    """How many of each."""

    gateways: int
    tuners: int
    samplers: int


class Fleet:
    """All of them in a `with` block, which begins when every gateway knows a tuner and the samplers."""

    def __init__(
        self,
        size: Size,
        base_model: Path,
        engine: Path,
        folder: Path,
        logs: Path,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """The store lies in `folder`, one log of each service in `logs`. `settings` are those of all services."""
        self.store, self._logs = folder / "store", logs
        for path in (self.store, logs):
            path.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("*.log"):
            old.unlink()
        self._base_model, self._engine = base_model, engine
        addresses = iter(free_addresses(2 * size.gateways + size.samplers))
        self.addresses = [next(addresses) for _ in range(size.gateways)]
        self._internal = [next(addresses) for _ in range(size.gateways)]
        self._samplers = list(addresses)
        self._tuners = size.tuners
        self._common = {**WITHOUT_CREDENTIALS, "UNITUNE_STORE": str(self.store), **(settings or {})}
        self._running: dict[str, Service] = {}
        self._postgres: PostgresServer | None = None
        self._state = ""

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._postgres = PostgresServer()
            self._postgres.start()
            self._state = self._postgres.new_database()
            for number, address in enumerate(self._samplers):
                own = {"UNITUNE_SAMPLER_ADDRESS": address, "UNITUNE_ENGINE": str(self._engine)}
                self._start(SAMPLER, number, own)
            self.start_gateways(len(self._samplers))
            for number in range(self._tuners):
                own = {
                    "UNITUNE_TUNER_ADDRESS": "127.0.0.1:0",
                    "UNITUNE_GATEWAY": ",".join(self._internal),
                    "UNITUNE_BASE_MODEL": str(self._base_model),
                }
                self._start(TUNER, number, own)
            self._await_listening()
            self._await_ready()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_gateways(self, samplers: int) -> None:
        """Start the gateways over the first so many samplers; those that run are stopped before."""
        programs.stop([self._running.pop(name).process for name in self._names(GATEWAY)])
        for number, (address, internal) in enumerate(zip(self.addresses, self._internal, strict=True)):
            own = {
                "UNITUNE_GATEWAY_ADDRESS": address,
                "UNITUNE_INTERNAL_ADDRESS": internal,
                "UNITUNE_SAMPLER": ",".join(self._samplers[:samplers]),
                "UNITUNE_STATE": self._state,
            }
            self._start(GATEWAY, number, own)
        self._await_listening()

    def use_samplers(self, samplers: int) -> None:
        """Have the gateways, which are started again, use only the first so many samplers."""
        self.start_gateways(samplers)
        self._await_ready()

    def stop(self) -> None:
        """End all that runs."""
        programs.stop([service.process for service in self._running.values()])
        self._running.clear()
        if self._postgres is not None:
            self._postgres.stop()
            self._postgres = None

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of the processes of each kind so far."""
        spent = {kind: sum(_cpu_s(self._running[name].process.pid) for name in self._names(kind)) for kind in MODULES}
        assert self._postgres is not None and self._postgres._process is not None
        server = self._postgres._process.pid
        backends = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        spent[DATABASE] = _cpu_s(server) + sum(_cpu_s(pid, of=server) for pid in backends)
        return spent

    def commits(self) -> int:
        """The transactions of the database so far."""
        time.sleep(STATISTICS_S)
        with closing(psycopg.connect(self._state, autocommit=True)) as connection:
            query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def mistakes(self) -> list[str]:
        """Lines of the logs that tell of a mistake of ours."""
        found = []
        for log in sorted(self._logs.glob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                if line.startswith("Traceback") or any(f'"event": "{event}"' in line for event in MISTAKES):
                    found.append(f"{log.stem}: {line[:500]}")
        return found

    def _names(self, kind: str) -> list[str]:
        return [name for name in self._running if name.startswith(kind)]

    def _start(self, kind: str, number: int, own: Mapping[str, str]) -> None:
        name = f"{kind}-{number}"
        self._running[name] = Service(kind, MODULES[kind], {**self._common, **own}, self._logs / f"{name}.log")

    def _await_listening(self) -> None:
        for service in self._running.values():
            await_listening(service)

    def _await_ready(self) -> None:
        for address in self.addresses:
            await_upstreams(address, self._logs)


def _cpu_s(pid: int, of: int | None = None) -> float:
    """Of a process and those that it has started and that have ended; 0 unless it was started by `of`."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    if of is not None and int(fields[1]) != of:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
