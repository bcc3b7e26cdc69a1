"""A PostgreSQL server that keeps the state of several gateways.

Gateways tell each other by NOTIFY what has changed. A notification is lost while its receiver does not listen, so who
waits for one looks for itself, too.
"""

import asyncio
import errno
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Column, Integer, MetaData, Table, bindparam, create_engine, func, insert, inspect, select, update
from sqlalchemy.exc import SQLAlchemyError

from gateway.database import EVERY_TOPIC, Database, Transaction
from unitune import telemetry
from unitune.errors import UniTuneError
from unitune.system_errors import state_error

logger = logging.getLogger(__name__)

CONNECTIONS = 8  # of one gateway, beside the one that listens
CONNECT_S = 3
LOOK_S = 1.0  # between two looks of who waits for a notification
GATHERS_S = 0.5  # of progress, from the first report to the commit
RELISTEN_S = 0.2  # from the loss of the connection that listens to the next
HUNG_S = 20.0  # of a transaction, whose statements have limits of their own: its server stands still
HUNG_LOOK_S = 1.0
PROOF_S = 2.0  # for a notification to come back at the start
TRIES = 3  # of a transaction that the server ends because of another one
CHANNEL = "unitune"
MAX_PAYLOAD = 7999  # bytes of one notification
MIGRATION_LOCK = 0x756E6974756E65  # any number that no other program takes
# A gateway that stands still within a statement or a transaction must not hold up the others.
OPTIONS = "-c statement_timeout=5s -c idle_in_transaction_session_timeout=10s -c lock_timeout=2s"
# A connection that is cut silently is given up after some seconds.
NETWORK: dict[str, int] = {
    "connect_timeout": CONNECT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,  # ms
}
# https://www.postgresql.org/docs/current/errcodes-appendix.html
DISK_FULL = "53100"
POOLER_SAYS = "unsupported startup parameter"  # pgbouncer, of our options
TRY_AGAIN = ("40001", "40P01")  # serialization_failure, deadlock_detected

_versions = Table(
    "schema_version",
    MetaData(),
    Column("version", Integer, nullable=False),
    Column("readable_from", Integer),  # the oldest version of this program that goes on with the tables
)
# Version 7 made the table without it.
_ADD_READABLE_FROM = "ALTER TABLE schema_version ADD COLUMN IF NOT EXISTS readable_from INTEGER"
_NOTIFY = select(func.pg_notify(CHANNEL, bindparam("payload")))

T = TypeVar("T")


class PostgresServer(Database):
    """Runs transactions on threads, each with a connection."""

    _errors = (psycopg.Error, SQLAlchemyError)
    is_shared = True
    look_s = LOOK_S

    def __init__(self, url: str, listen_url: str = "") -> None:
        """`listen_url` is that of the server itself where `url` is a pooler's."""
        super().__init__(ThreadPoolExecutor(max_workers=CONNECTIONS, thread_name_prefix="state"))
        self.gathers_s = GATHERS_S
        self._id = secrets.token_hex(4)  # in the notifications of this gateway, which has heard them already
        self._listen_url = listen_url or url
        self._shown = shown(url)
        self._listening: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._connections = WeakSet[Any]()
        self._running: dict[int, float] = {}  # transactions, by their threads: when they began
        # A pooler gives each transaction another connection, without what was prepared on the one before, and takes no
        # options.
        prepare_threshold = None if listen_url else 5
        options = {} if listen_url else {"options": OPTIONS}
        target = make_conninfo(url, **{**options, **NETWORK, **conninfo_to_dict(url)})

        def connect() -> psycopg.Connection:
            connection = psycopg.connect(target, prepare_threshold=prepare_threshold)
            self._connections.add(connection)
            return connection

        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=connect,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=CONNECT_S,
            pool_pre_ping=True,
        )

    @classmethod
    async def open(
        cls,
        url: str,
        listen_url: str,
        tables: MetaData,
        version: int,
        migrations: Mapping[int, str],
        readable_from: int | None = None,
    ) -> "PostgresServer":
        """Connect, making the tables if there are none.

        `migrations` holds the statements that bring each version to the next. Programs from the version `readable_from`
        on, this one by default, go on with the tables afterwards. Raises OSError with place and remedy when
        the server does not answer, does not let us in, has another program's tables or a version that cannot be
        brought to this one and that this one cannot go on with, and when its notifications do not arrive.
        """
        try:
            server = cls(url, listen_url)
        except psycopg.Error as error:  # without the text of the URL, which may have a password
            raise OSError(
                "UNITUNE_STATE is no URL of a PostgreSQL database: give one such as postgresql://user@host/unitune"
            ) from error
        try:
            await asyncio.get_running_loop().run_in_executor(
                server._threads, server._migrate, tables, version, migrations, readable_from or version
            )
            await server._begin_to_listen()
        except (SQLAlchemyError, psycopg.Error) as error:
            await server.close()
            detail = " ".join(str(getattr(error, "orig", None) or error).split())
            remedy = "check UNITUNE_STATE"
            if POOLER_SAYS in detail:
                remedy = "UNITUNE_STATE is a pooler's URL, so UNITUNE_STATE_LISTEN must be that of the server itself"
            raise OSError(f"the gateway's state: cannot use {server._shown}: {detail}; {remedy}") from error
        except BaseException:
            await server.close()
            raise
        return server

    async def close(self) -> None:
        """Finish what was begun, then close all connections."""
        for task in (self._listening, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._engine.dispose)

    def _transaction(self, work: Callable[[Transaction], T]) -> tuple[T, Transaction]:
        thread = threading.get_ident()
        self._running[thread] = time.monotonic()
        try:
            return self._tried(work)
        finally:
            del self._running[thread]

    def _tried(self, work: Callable[[Transaction], T]) -> tuple[T, Transaction]:
        for tries_left in reversed(range(TRIES)):
            try:
                with closing(self._engine.raw_connection()) as connection:  # which undoes what is not committed
                    transaction = Transaction(connection.dbapi_connection, self._engine.dialect)
                    try:
                        result = work(transaction)
                        for payload in payloads(self._id, transaction.topics):
                            transaction.run(_NOTIFY, payload=payload)
                        connection.commit()
                    except psycopg.OperationalError:
                        if connection.dbapi_connection.closed:  # type: ignore[union-attr]
                            connection.invalidate()
                        raise
                return result, transaction
            except psycopg.Error as error:
                if not tries_left or error.sqlstate not in TRY_AGAIN:
                    raise
        raise AssertionError

    def _error(self, failure: Exception) -> UniTuneError:
        telemetry.event(logger, "state failed", level=logging.ERROR, detail=" ".join(str(failure).split()))
        is_full = getattr(failure, "sqlstate", None) == DISK_FULL
        return state_error(OSError(errno.ENOSPC if is_full else errno.EIO, ""))

    def _migrate(self, tables: MetaData, version: int, migrations: Mapping[int, str], readable_from: int) -> None:
        with self._engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            names = set(inspect(connection).get_table_names())
            if _versions.name not in names:
                if names & tables.tables.keys():
                    raise OSError(f"the gateway's state: the database at {self._shown} has tables of another program")
                tables.create_all(connection)
                _versions.create(connection)
                connection.execute(insert(_versions), {"version": version, "readable_from": readable_from})
                return
            connection.exec_driver_sql(_ADD_READABLE_FROM)
            found, oldest = connection.execute(select(_versions.c.version, _versions.c.readable_from)).one()
            if found > version >= (oldest or found):
                newer = f"it has schema {found}, this program reads {version} and goes on with it"
                telemetry.event(logger, "state is of a newer version", detail=newer)
                return
            if found > version or any(step not in migrations for step in range(found, version)):
                raise OSError(
                    f"the gateway's state: the database at {self._shown} has schema {found}, this program reads "
                    f"{version}; run the version of UniTune that wrote it, or name another database"
                )
            for step in range(found, version):
                connection.exec_driver_sql(migrations[step])
            connection.execute(update(_versions), {"version": version, "readable_from": readable_from})

    # Notifications of other gateways.

    async def _begin_to_listen(self) -> None:
        """Listen, once it is proven that what is sent arrives."""
        connection = await self._listener()
        try:
            proof = f"{self._id} {secrets.token_hex(8)}"
            await asyncio.get_running_loop().run_in_executor(self._threads, self._notify, proof)
            async for notification in connection.notifies(timeout=PROOF_S):
                if notification.payload == proof:
                    break
            else:
                raise OSError(
                    "the gateway's state: a notification does not arrive. Through a pooler, or from another database, "
                    "none does: UNITUNE_STATE_LISTEN must be the URL of the server itself and of the same database"
                )
        except BaseException:
            await connection.close()
            raise
        self._listening = asyncio.create_task(self._listen(connection))
        self._watching = asyncio.create_task(self._cut_hung())

    async def _cut_hung(self) -> None:
        """Cut all connections while the server stands still: its kernel goes on acknowledging what it is sent, so that
        they would wait for it for ever, also after another server has taken its place."""
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(HUNG_LOOK_S)
            now_s = time.monotonic()
            is_hung = now_s - min(self._running.copy().values(), default=now_s) > HUNG_S
            if is_hung and now_s - began_s < HUNG_LOOK_S + HUNG_S / 2:  # otherwise this process stood still itself
                telemetry.event(logger, "state stands still", level=logging.WARNING, address=self._shown)
                for connection in list(self._connections):
                    _cut(connection)

    def _notify(self, payload: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(_NOTIFY, {"payload": payload})

    async def _listener(self) -> psycopg.AsyncConnection:
        target = make_conninfo(self._listen_url, **{**NETWORK, **conninfo_to_dict(self._listen_url)})
        connection = await psycopg.AsyncConnection.connect(target, autocommit=True)
        self._connections.add(connection)
        await connection.execute(f"LISTEN {CHANNEL}")
        return connection

    async def _listen(self, connection: psycopg.AsyncConnection | None) -> None:
        """Listen to other gateways, on one connection after another."""
        while True:
            try:
                async with connection or await self._listener() as listening:
                    self.tell(EVERY_TOPIC)  # they may have been sent while nobody listened
                    async for notification in listening.notifies():
                        self._notified(notification.payload)
            except psycopg.Error as error:
                detail = " ".join(str(error).split())
                telemetry.event(logger, "notifications interrupted", level=logging.WARNING, detail=detail)
            connection = None
            await asyncio.sleep(RELISTEN_S)

    def _notified(self, payload: str) -> None:
        sender, *topics = payload.split(" ")
        if sender != self._id:
            for topic in topics:
                self.tell(topic)


def _cut(connection: Any) -> None:
    """End a connection's socket under whoever waits for it, in any thread."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)


def payloads(sender: str, topics: Iterable[str]) -> Iterator[str]:
    """The payloads of the notifications of these topics."""
    payload = sender
    for topic in topics:
        if len(payload) + 1 + len(topic) > MAX_PAYLOAD:
            yield payload
            payload = sender
        payload += f" {topic}"
    if payload != sender:
        yield payload


def shown(url: str) -> str:
    """A server's URL without user and password."""
    parts = conninfo_to_dict(url)
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
