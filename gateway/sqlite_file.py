"""One SQLite file that belongs to one process, and the one thread that touches it."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class SqliteFile:
    """Transactions on one thread, in the order in which they were asked for."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread

    @classmethod
    async def open(cls, path: Path, schema: str, version: int, migrations: Mapping[int, str]) -> "SqliteFile":
        """Open the file, making it by `schema` if it is missing or empty.

        `migrations` holds the statements that bring a version to the next. Raises OSError when another process has
        the file, or it is no SQLite file, or its version is none that can be brought to this one.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(
                thread, _open, path, schema, version, migrations
            )
        except sqlite3.Error as error:
            thread.shutdown()
            raise OSError(f"the state file {path} cannot be used: {error}") from error
        return cls(connection, thread)

    async def close(self) -> None:
        """Finish what was begun, then close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread. A caller that goes away leaves it running to its end: no half transactions."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def transaction(self, work: Callable[[], T]) -> T:
        """On the thread: `work`, and all its statements or none of them."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already, or leave it open when COMMIT fails: all later ones would.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return result

    def sql(self, statement: str, *values: object) -> sqlite3.Cursor:
        """On the thread, within a transaction: run one statement."""
        return self._connection.execute(statement, values)


def _open(path: Path, schema: str, version: int, migrations: Mapping[int, str]) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        # A second gateway on the same file would run every tuning twice; it fails here instead.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing; a power failure may lose the last moment, but never tears the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            connection.executescript(f"BEGIN EXCLUSIVE; {schema}; PRAGMA user_version = {version}; COMMIT;")
        elif found > version or any(step not in migrations for step in range(found, version)):
            raise sqlite3.DatabaseError(
                f"it has schema {found}, this program reads {version}; "
                "run the version of UniTune that wrote it, or name another file"
            )
        elif found < version:
            steps = "".join(migrations[step] for step in range(found, version))
            connection.executescript(f"BEGIN EXCLUSIVE; {steps} PRAGMA user_version = {version}; COMMIT;")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
