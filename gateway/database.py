"""Transactions of a database, on threads of their own.

A transaction is a plain function of a `Transaction`. It is written once for all databases: gateway/sqlite_file.py and
gateway/postgres.py run it.
"""

import asyncio
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from google.protobuf.message import DecodeError
from sqlalchemy import Dialect, Executable, Select

from gateway.dialects import Upsert
from unitune import telemetry
from unitune.errors import STATE_CORRUPT, DataLoss, UniTuneError

logger = logging.getLogger(__name__)

SERVER_SCHEMES = ("postgresql://", "postgres://")
EVERY_TOPIC = "*"  # when notifications of any topic may have been lost

T = TypeVar("T")
P = ParamSpec("P")


class Prepared:
    """A statement in the words of a database. To find them each time would cost more than what SQLite does with it."""

    def __init__(self, statement: Executable, dialect: Dialect, names: Iterable[str]) -> None:
        compiled: Any = statement.compile(  # type: ignore[attr-defined]
            dialect=dialect, column_keys=list(names)
        )
        self.text = str(compiled)
        self._constants = {name: value for name, value in compiled.params.items() if name not in names}
        self._order: Sequence[str] | None = compiled.positiontup if compiled.positional else None

    def in_order(self, values: Mapping[str, object]) -> Any:
        """The values as the driver takes them."""
        values = {**self._constants, **values}
        return values if self._order is None else [values[name] for name in self._order]


# By the database's kind, the statements that were run before: constants of this package, the same for each database.
PREPARED: dict[str, dict[object, Prepared]] = {"sqlite": {}, "postgresql": {}}


class Transaction:
    """One transaction of a database, on its thread. Statements run on the driver's own connection."""

    def __init__(self, connection: Any, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect
        self._prepared = PREPARED[dialect.name]
        self.after: list[Callable[[], None]] = []
        self.topics: dict[str, None] = {}

    def run(self, statement: Executable | Upsert, **values: object) -> Any:
        """Run one statement; the driver's cursor."""
        prepared = self._prepared.get(statement) or self._prepare(statement, values)
        return self._connection.execute(prepared.text, prepared.in_order(values))

    def run_for_each(self, statement: Executable, rows: Sequence[Mapping[str, object]]) -> None:
        """Run one statement for each of the rows' values."""
        if len(rows) == 1:
            self.run(statement, **rows[0])
        elif rows:
            prepared = self._prepared.get(statement) or self._prepare(statement, rows[0])
            self._connection.cursor().executemany(prepared.text, [prepared.in_order(row) for row in rows])

    def rows(self, statement: Executable | Upsert, **values: object) -> list[Any]:
        """The rows that a statement answers with."""
        found: list[Any] = self.run(statement, **values).fetchall()
        return found

    def row(self, statement: Executable | Upsert, **values: object) -> Any:
        """The first of them, None if there is none."""
        return self.run(statement, **values).fetchone()

    def value(self, statement: Executable | Upsert, **values: object) -> Any:
        """The first value of the first row, None if there is none."""
        row = self.row(statement, **values)
        return row[0] if row else None

    def values(self, statement: Executable | Upsert, **values: object) -> list[Any]:
        """The first value of each row."""
        return [row[0] for row in self.rows(statement, **values)]

    def rows_of(self, statement: Select, **lists: Sequence[object]) -> list[Any]:
        """The rows of a statement whose values are lists, so that its text has their lengths."""
        compiled: Any = statement.compile(dialect=self._dialect)
        expanded = compiled.construct_expanded_state(lists)
        values = expanded.positional_parameters if compiled.positional else expanded.parameters
        found: list[Any] = self._connection.execute(expanded.statement, values).fetchall()
        return found

    def lock(self, statement: Executable, **values: object) -> bool:
        """Lock the rows that a statement selects; whether there are any. SQLite has one transaction at a time."""
        return self._dialect.name == "sqlite" or self.row(statement, **values) is not None

    def _prepare(self, statement: Executable | Upsert, values: Mapping[str, object]) -> Prepared:
        spelled = statement.of[self._dialect.name] if isinstance(statement, Upsert) else statement
        self._prepared[statement] = prepared = Prepared(spelled, self._dialect, values)
        return prepared

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Have the event loop call this once the transaction is committed."""
        self.after.append(callback)

    def notify(self, topic: str) -> None:
        """Once it is committed, notify those who listen, in all gateways."""
        self.topics[topic] = None


class Database(ABC):
    """A database that keeps the state of a gateway, or of several. It belongs to one event loop.

    An error of the database becomes ResourceExhausted (STATE_FULL), Unavailable (STATE_DOWN) or DataLoss
    (STATE_CORRUPT). The log has the database's own words.
    """

    is_shared = False  # by several gateways
    is_read_only = False
    look_s: float | None = None  # notifications may be lost: who waits for one looks so often
    _errors: tuple[type[Exception], ...] = ()  # of the driver
    gathers_s = 0.0  # for which progress waits, to be written in one transaction

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have the event loop call this with the topic of each notification, or with EVERY_TOPIC."""
        self._listeners.append(listener)

    def tell(self, topic: str) -> None:
        """Tell the listeners of a notification."""
        for listener in self._listeners:
            listener(topic)

    async def run(self, work: Callable[[Transaction], T], *, deletes: bool = False) -> T:
        """Run `work` on a thread as one transaction.

        With `deletes` it works on a full disk, too, and nothing of what it deletes is left in any file, as far as that
        is in the gateway's power. The transaction runs to its end even if its caller is cancelled.
        """
        loop = asyncio.get_running_loop()

        def on_thread() -> T:
            result, transaction = self._deletion(work) if deletes else self._transaction(work)
            if transaction.after or transaction.topics:
                loop.call_soon_threadsafe(self._committed, transaction)
            return result

        try:
            return await asyncio.shield(loop.run_in_executor(self._threads, on_thread))
        except self._errors as error:
            raise self._error(error) from error
        except DecodeError as error:  # a row that the database finds nothing wrong with
            telemetry.failure(logger, "state damaged")
            raise DataLoss("what the server has stored is damaged", reason=STATE_CORRUPT) from error

    def _committed(self, transaction: Transaction) -> None:
        for callback in transaction.after:
            callback()
        for topic in transaction.topics:
            self.tell(topic)

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun, then close it."""

    @abstractmethod
    def _transaction(self, work: Callable[[Transaction], T]) -> tuple[T, Transaction]:
        """On a thread: run `work` and commit what it did, or nothing of it."""

    def _deletion(self, work: Callable[[Transaction], T]) -> tuple[T, Transaction]:
        return self._transaction(work)

    @abstractmethod
    def _error(self, failure: Exception) -> UniTuneError:
        """The caller's error for one of the database's driver, which is logged."""


async def until_answered(ask: Callable[[], Awaitable[T]], again_s: float) -> T:
    """What the database answers, which is asked again while it is away. The log has why."""
    while True:
        try:
            return await ask()
        except UniTuneError:
            await asyncio.sleep(again_s)


class _HasDatabase(Protocol):
    database: Database


S = TypeVar("S", bound=_HasDatabase)


def operation(
    work: Callable[Concatenate[S, Transaction, P], T], *, deletes: bool = False
) -> Callable[Concatenate[S, P], Awaitable[T]]:
    """Make of a method of a transaction one that runs it on its object's database, and that its caller awaits."""

    @functools.wraps(work)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.database.run(lambda transaction: work(self, transaction, *args, **kwargs), deletes=deletes)

    return call


def deletion(work: Callable[Concatenate[S, Transaction, P], T]) -> Callable[Concatenate[S, P], Awaitable[T]]:
    """The same for a part of a deletion: it works on a full disk, and nothing of what it deletes is left."""
    return operation(work, deletes=True)
