"""What KEDA asks the database: k8s/keda/scaler.sql on the real schema and a real PostgreSQL."""

import subprocess

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from gateway.state import State
from gateway.state_schema import TABLES
from tests.gateway.conftest import postgres_server  # noqa: F401, a fixture
from tests.gateway.test_state import TUNER, becomes, tuning
from tests.k8s.rendered import FOLDER, overlay
from tests.postgres_server import BIN, PostgresServer
from unitune.v1.tuning_pb2 import Tuning

pytestmark = pytest.mark.slow  # a real server

ROLE = "unitune_scaler"


def applied(url: str) -> None:
    """Run the file as its head says."""
    command = [
        BIN / "psql",
        url,
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        "password=it's a secret",
        "-f",
        FOLDER / "keda" / "scaler.sql",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def query(most_running: int = 0) -> str:
    """What the ScaledObject of the overlay `prod` asks, where a tenant may run so many, as its comment says."""
    (trigger,) = overlay("prod").find("ScaledObject", "tuner")["spec"]["triggers"]
    asked: str = trigger["metadata"]["query"]
    return asked.replace("SUM(tunings)", f"SUM(LEAST(tunings, {most_running}))") if most_running else asked


def as_role(url: str) -> psycopg.Connection:
    """A connection of the role, as KEDA's Secret names it."""
    return psycopg.connect(make_conninfo(**{**conninfo_to_dict(url), "user": ROLE, "password": "it's a secret"}))


async def test_keda_counts_the_tunings_that_are_to_run(postgres_server: PostgresServer) -> None:  # noqa: F811
    """The query, as its role: 0 of an empty state, then queued and running ones of all tenants, no more of one than may
    run where that is bounded, and not those that have ended; the file may be applied again."""
    url = postgres_server.new_database()
    state = await State.open(url)
    try:
        applied(url)
        assert asked(url) == 0
        first = await state.create(tuning("acme", "k", 1), None)
        await state.create(tuning("default", "k", 2), None)
        ended = await state.create(tuning("default", "other", 3), None)
        assert asked(url) == 3
        taken = await state.take(TUNER)
        assert taken is not None and asked(url) == 3 and asked(url, most_running=1) == 2
        await state.change(ended.name, becomes(Tuning.STATE_CANCELLED))
        assert asked(url) == 2
        applied(url)
        await state.change(first.name, becomes(Tuning.STATE_READY))
        assert asked(url) == 1
    finally:
        await state.close()


async def test_the_role_reads_nothing_else(postgres_server: PostgresServer) -> None:  # noqa: F811
    """Every other relation of the database is refused to it, to read and to write, and so are passwords, files of the
    server and tables of its own (F46)."""
    url = postgres_server.new_database()
    await (await State.open(url)).close()
    applied(url)
    with psycopg.connect(url) as owner:
        listed = (
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'S')"
        )
        names = {name for (name,) in owner.execute(listed)}
    others = sorted(names - {"tunings_to_run"})
    assert TABLES.tables.keys() <= set(others)
    with as_role(url) as connection:
        connection.autocommit = True
        connection.execute("SET default_transaction_read_only = off")  # which it may
        for name in others:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name)))
        for statement in (
            "UPDATE tunings SET state = 6",
            "DELETE FROM tunings",
            "INSERT INTO turns VALUES ('acme', 1)",
            "DROP VIEW tunings_to_run",
            "CREATE TABLE own (number int)",
            "SELECT * FROM pg_authid",
            "SELECT pg_read_file('postgresql.conf')",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SET ROLE postgres",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)  # type: ignore[arg-type]
        assert connection.execute("SELECT count(*) FROM tunings_to_run").fetchone() == (0,)


def asked(url: str, most_running: int = 0) -> int:
    """The query's answer to the role."""
    with as_role(url) as connection:
        answers = connection.execute(query(most_running)).fetchall()  # type: ignore[arg-type]
    assert len(answers) == len(answers[0]) == 1 and isinstance(answers[0][0], int)
    return answers[0][0]
