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

from bench.started import GATEWAY, MODULES, SAMPLER, TUNER, Started, free_addresses
from tests.postgres_server import PostgresServer

STATISTICS_S = 1.5  # until the server's statistics have what its connections did
DATABASE = "database"  # a kind of process, beside those of services


@dataclass(frozen=True)
class Size:
    """How many of each."""

    gateways: int
    tuners: int
    samplers: int

    def names(self, kind: str) -> list[str]:
        """What the services of a kind are called."""
        return [f"{kind} {number}" for number in range(1, getattr(self, f"{kind}s") + 1)]


class Fleet(Started):
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
        store = folder / "store"
        store.mkdir(parents=True, exist_ok=True)
        super().__init__(logs, {"UNITUNE_STORE": str(store), **(settings or {})})
        self._base_model, self._engine, self._size = base_model, engine, size
        addresses = iter(free_addresses(2 * size.gateways + size.samplers))
        self.addresses = [next(addresses) for _ in range(size.gateways)]
        self._internal = [next(addresses) for _ in range(size.gateways)]
        self._samplers = list(addresses)
        self._postgres: PostgresServer | None = None
        self._state = ""

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self._end)
            self._postgres = PostgresServer()
            self._postgres.start()
            self._state = self._postgres.new_database()
            for name, address in zip(self._size.names(SAMPLER), self._samplers, strict=True):
                self.start_sampler(name, address, self._engine)
            self._start_gateways(self._size.samplers)
            for name in self._size.names(TUNER):
                self.start_tuner(name, self._internal, self._base_model)
            self._await_all()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def use_samplers(self, samplers: int) -> None:
        """Have the gateways, which are started again, use only the first so many samplers."""
        self.stop(*self.names(GATEWAY))
        self._start_gateways(samplers)
        self._await_all()

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of the processes of each kind so far."""
        spent = {kind: sum(_cpu_s(self.process(name).pid) for name in self.names(kind)) for kind in MODULES}
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

    def _start_gateways(self, samplers: int) -> None:
        for name, address, internal in zip(self._size.names(GATEWAY), self.addresses, self._internal, strict=True):
            self.start_gateway(name, address, internal, self._samplers[:samplers], self._state)

    def _await_all(self) -> None:
        for name in self.by_name:
            self.await_listening(name)
        self.await_ready(*self.addresses)

    def _end(self) -> None:
        self.stop()
        if self._postgres is not None:
            self._postgres.stop()
            self._postgres = None


def _cpu_s(pid: int, of: int | None = None) -> float:
    """Of a process and those that it has started and that have ended; 0 unless it was started by `of`."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    if of is not None and int(fields[1]) != of:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
