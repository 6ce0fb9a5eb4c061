"""Alembic and SQLAlchemy, whose code is synchronous, over a connection of asyncpg's.

It is made of what `sqlalchemy.ext.asyncio` is made of, and not of that package: importing it imports SQLAlchemy's ORM,
a tenth of the CPU time of a command that has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection, StaticPool, TextClause, create_engine, event, text
from sqlalchemy.util import greenlet_spawn

from gasket.migrator.sql.lexer import statements
from gasket.postgres.driver import connect_over

T = TypeVar("T")


async def run_sync(connection: asyncpg.Connection, work: Callable[[Connection], T]) -> T:
    """Call `work` with a SQLAlchemy connection over the given one, which stays open.

    `work` commits by itself; a transaction that it leaves open is rolled back.
    """

    def in_greenlet() -> T:
        engine = create_engine("postgresql+asyncpg://", poolclass=StaticPool, creator=lambda: connect_over(connection))
        event.listen(engine, "before_execute", _run_all_but_the_last, retval=True)
        with engine.connect() as sqlalchemy_connection:
            return work(sqlalchemy_connection)

    return await greenlet_spawn(in_greenlet)


def _run_all_but_the_last(
    connection: Connection, clause: Any, many: Any, parameters: Any, _options: object
) -> tuple[Any, Any, Any]:
    """Let `op.execute("...; ...")` run each of its statements; a text with parameters stays as it is.

    asyncpg takes one statement at a time, unlike the drivers that most revisions are made for.
    """
    plain = isinstance(clause, TextClause) and not (many or parameters or clause._bindparams)
    if not plain or ";" not in clause.text.rstrip().rstrip(";"):
        return clause, many, parameters
    *before, last = statements(clause.text) or [""]
    for statement in before:
        connection.execute(text(statement))
    return text(last), many, parameters
