"""One SQLite file that belongs to one process, and the one thread that uses it."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from sqlalchemy import MetaData
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from gateway import read_only_state
from gateway.database import Database, Transaction
from unitune import telemetry
from unitune.errors import UniTuneError
from unitune.system_errors import REMEDY_FOR_DAMAGE, is_full, sentence, sqlite_sentence, state_error

logger = logging.getLogger(__name__)

# SQLite writes pages into its journal before it deletes. A file of this size is deleted to make space for that.
RESERVE_BYTES = 1 << 20
_WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")  # https://sqlite.org/fileformat.html#walformat

DIALECT = sqlite.dialect()

T = TypeVar("T")


class SqliteFile(Database):
    """Runs transactions on one thread, in the order of the calls.

    What would write a file that can only be read is FailedPrecondition (STATE_READ_ONLY).
    """

    _errors = (sqlite3.Error,)

    def __init__(
        self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, path: Path, *, is_read_only: bool = False
    ) -> None:
        super().__init__(thread)
        self.is_read_only = is_read_only
        self._connection = connection
        self._reserve = path.with_name(f"{path.name}-reserve")
        self._has_remains = False

    @classmethod
    async def open(
        cls,
        path: Path,
        tables: MetaData,
        version: int,
        migrations: Mapping[int, str],
        functions: Sequence[Callable[[bytes], bytes]] = (),
    ) -> "SqliteFile":
        """Open the file, making it with its tables if it is missing or empty.

        `migrations` holds the statements that bring each version to the next, `functions` what they call. Raises
        OSError with path and remedy when another process has the file, when it is no SQLite file, damaged or not
        writable, and for a version that cannot be brought to this one.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        is_read_only = read_only_state.can_only_be_read(path)
        try:
            connection = await asyncio.get_running_loop().run_in_executor(
                thread, _open, path, tables, version, migrations, functions, is_read_only
            )
        except (sqlite3.Error, OSError) as error:
            thread.shutdown()
            reason = sqlite_sentence(path, error) if isinstance(error, sqlite3.Error) else sentence(error)
            raise OSError(f"the gateway's state: {reason}") from error
        file = cls(connection, thread, path, is_read_only=is_read_only)
        if is_read_only:
            remedy = "make the file and its folder writable and start again; until then nothing is made or changed"
            telemetry.event(logger, "state can only be read", level=logging.WARNING, detail=f"{path}: {remedy}")
        else:
            await asyncio.get_running_loop().run_in_executor(thread, file._make_reserve)
        return file

    async def close(self) -> None:
        """Finish what was begun, then close the file."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._connection.close)
        self._threads.shutdown()

    def _error(self, failure: Exception) -> UniTuneError:
        assert isinstance(failure, sqlite3.Error)
        if self.is_read_only and failure.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
            return read_only_state.refusal()
        telemetry.event(logger, "state failed", level=logging.ERROR, detail=str(failure))
        return state_error(failure)

    # BEGIN and COMMIT are our own. What reads first and then writes must be alone from its beginning, which SQLite's
    # own BEGIN is not.
    def _transaction(self, work: Callable[[Transaction], T]) -> tuple[T, Transaction]:
        transaction = Transaction(self._connection, DIALECT)
        self._connection.execute("BEGIN" if self.is_read_only else "BEGIN IMMEDIATE")
        try:
            result = work(transaction)
            self._connection.execute("COMMIT")
        except BaseException:
            # On a full disk SQLite may have rolled it back already. Or COMMIT fails and leaves it open.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if self._has_remains:
            self._wipe()
        return result, transaction

    def _deletion(self, work: Callable[[Transaction], T]) -> tuple[T, Transaction]:
        self._has_remains = not self.is_read_only
        try:
            result = self._transaction(work)
        except sqlite3.OperationalError as error:
            if not is_full(error):
                raise
            self._reserve.unlink(missing_ok=True)
            result = self._transaction(work)
        if not self.is_read_only:
            self._make_reserve()
        return result

    def _wipe(self) -> None:
        """Empty the journal, which holds earlier states of the changed pages, or leave that to a later transaction."""
        with suppress(sqlite3.Error):
            is_busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._has_remains = bool(is_busy)

    def _make_reserve(self) -> None:
        """Fill the reserve, if there is space. It is random bytes: some file systems store no zeros."""
        if self._reserve.exists():
            return
        try:
            self._reserve.touch(mode=0o600)
            with self._reserve.open("wb") as file:
                file.write(os.urandom(RESERVE_BYTES))
        except OSError:
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)


def _open(
    path: Path,
    tables: MetaData,
    version: int,
    migrations: Mapping[int, str],
    functions: Sequence[Callable[[bytes], bytes]],
    is_read_only: bool,
) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(path, tables)
    _look_at_journal(path)
    if is_read_only:
        connection = read_only_state.in_memory(path)
    else:
        connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    try:
        if not is_read_only:
            path.chmod(0o600)
        # A second gateway on the same file would run every tuning twice; it fails here instead.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing; a power failure may lose the last moment, but never tears the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        # Deleted data is overwritten, and nothing is written outside of the state's folder.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(f"it is damaged ({' '.join(problem.split())}); {REMEDY_FOR_DAMAGE}")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            connection.execute("BEGIN EXCLUSIVE")
            _create(connection, tables)
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        elif found > version or any(step not in migrations for step in range(found, version)):
            raise sqlite3.DatabaseError(
                f"it has schema {found}, this program reads {version}; "
                "run the version of UniTune that wrote it, or name another file"
            )
        elif found < version:
            for function in functions:
                connection.create_function(function.__name__, 1, function)
            steps = "".join(migrations[step] for step in range(found, version))
            connection.executescript(f"BEGIN EXCLUSIVE; {steps} PRAGMA user_version = {version}; COMMIT;")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        connection.execute(f"PRAGMA query_only = {int(is_read_only)}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _create(connection: sqlite3.Connection, tables: MetaData) -> None:
    """Make the tables, within the transaction that is open."""
    for statement in _creating(tables):
        connection.execute(statement)


@cache
def _creating(tables: MetaData) -> list[str]:
    """The statements that make the tables."""
    made: list[CreateTable | CreateIndex] = []
    for table in tables.sorted_tables:
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made += [CreateTable(table), *(CreateIndex(index) for index in indexes)]
    return [str(one.compile(dialect=DIALECT)) for one in made]


def _refuse_foreign(path: Path, tables: MetaData) -> None:
    """Raise DatabaseError for another program's database, which is left as it is: only the file itself is read."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error:  # there is no file yet, or opening it will raise the error
        return
    if found and (version == 0 or not found & tables.tables.keys()):
        raise sqlite3.DatabaseError("it is a database of another program; name another file")


def _look_at_journal(path: Path) -> None:
    """Log when the journal of a killed process cannot be read: SQLite goes on without its changes, and says nothing."""
    with suppress(FileNotFoundError), path.with_name(f"{path.name}-wal").open("rb") as journal:
        begin = journal.read(4)
        if begin and begin not in _WAL_MAGIC:
            telemetry.event(logger, "state journal damaged", level=logging.ERROR, detail="its changes are lost")
