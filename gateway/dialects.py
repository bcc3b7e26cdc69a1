"""What SQLite and PostgreSQL spell differently. All else is written once, and locks of rows are none to SQLite, which
has one transaction at a time."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Boolean, Double, Executable, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class now_s(FunctionElement[float]):
    """The clock of the database, in Unix seconds: several gateways would not agree on theirs."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_s_of_sqlite(_: now_s, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400)"


@compiles(now_s, "postgresql")
def _now_s_of_postgresql(_: now_s, compiler: SQLCompiler, **options: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


class has_bytes(FunctionElement[bool]):
    """Whether the first, bytes, has the second in it."""

    type = Boolean()
    inherit_cache = True


@compiles(has_bytes, "sqlite")
def _has_bytes_of_sqlite(element: has_bytes, compiler: SQLCompiler, **options: Any) -> str:
    whole, part = (compiler.process(clause, **options) for clause in element.clauses)
    return f"instr({whole}, {part}) > 0"


@compiles(has_bytes, "postgresql")
def _has_bytes_of_postgresql(element: has_bytes, compiler: SQLCompiler, **options: Any) -> str:
    whole, part = (compiler.process(clause, **options) for clause in element.clauses)
    return f"position({part} IN {whole}) > 0"


class Upsert:
    """An INSERT into a table that says what happens on a conflict, in the words of each database."""

    def __init__(self, table: Table, make: Callable[[Any], Executable]) -> None:
        """`make` finishes the INSERT, with `values` and `on_conflict_...`."""
        self.of = {"sqlite": make(sqlite.insert(table)), "postgresql": make(postgresql.insert(table))}
