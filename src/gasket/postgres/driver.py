"""SQLAlchemy's asyncpg driver over a connection that is open already, with as few round trips as may be.

SQLAlchemy prepares every statement and then runs it: two round trips. A revision's statements are each of another
text, so there is nothing to gain by that. Here what returns no rows is sent as it is, which is one. The migrator's own
queries are the same for each revision: `fetch` keeps them prepared.

Of SQLAlchemy's names `_prepare_and_execute`, `_cursor_cls`, `_handle_dbapi_exception` and what these use are not
public; `tests/migrator/integration/test_driver.py` fails when they change.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.asyncpg import (
    AsyncAdapt_asyncpg_connection,
    AsyncAdapt_asyncpg_cursor,
    PGDialect_asyncpg,
)
from sqlalchemy.util import await_only

_ROWLESS = re.compile(
    r"\s*(?:alter|comment|create|drop|grant|lock|release|revoke|rollback|savepoint|set|(insert|update|delete))\b",
    re.IGNORECASE,
)
_FORGETS_PREPARED = re.compile(r"\b(?:discard|deallocate)\b", re.IGNORECASE)
_NUMBERS = itertools.count(1)
_ROW_COUNT = re.compile(r"(?:SELECT|UPDATE|DELETE|INSERT \d+) (\d+)")


class Batch(str):
    """SQL of several statements that return no rows, sent as one."""

    __slots__ = ()


def fetch(connection: Connection, query: str, *arguments: object) -> list[asyncpg.Record]:
    """The rows of a query that the session prepares once, as asyncpg has them; `connection` is from `connect_over`.

    Only for results whose types no DDL changes. SQLAlchemy's own result would cost as much again as the round trip.

    Raises:
        sqlalchemy.exc.DBAPIError: as from `Connection.exec_driver_sql`.
    """
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does by itself
    adapted: Any = connection.connection.dbapi_connection
    try:
        rows: list[asyncpg.Record] = await_only(adapted.fetch(query, arguments))
    except BaseException as error:  # as there: a connection whose task is cancelled is of no more use
        connection._handle_dbapi_exception(error, query, arguments, None, None)
    return rows


def returns_no_rows(sql: str) -> bool:
    """Whether it is one statement that surely returns none; of a text with a semicolon inside, that is not known.

    So several statements in one text are refused, as by a driver that prepares them.
    """
    found = _ROWLESS.match(sql)
    if found is None or ";" in sql.rstrip().rstrip(";"):
        return False
    return found[1] is None or "returning" not in sql.lower()


def connect_over(connection: asyncpg.Connection) -> Any:
    """What SQLAlchemy takes for a new connection; to be called as the `creator` of an engine."""

    async def existing() -> Any:
        return connection

    driver = PGDialect_asyncpg.import_dbapi()  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return await_only(_Connection.create(driver, existing(), prepared_statement_cache_size=0))


class _Cursor(AsyncAdapt_asyncpg_cursor):
    __slots__ = ()

    async def _prepare_and_execute(self, operation: str, parameters: Any) -> None:
        rowless = isinstance(operation, Batch) or returns_no_rows(operation)
        if parameters or not rowless:
            await super()._prepare_and_execute(operation, parameters)  # type: ignore[no-untyped-call]
            return
        adapted: Any = self._adapt_connection
        async with adapted._execute_mutex:
            if adapted._transaction is None:
                await adapted._start_transaction()
            self._description, self._rows = None, deque()
            try:
                status = await adapted._connection.execute(str(operation))
            except Exception as error:
                self._handle_exception(error)  # type: ignore[no-untyped-call]
            counted = _ROW_COUNT.match(status)
            self._rowcount = int(counted[1]) if counted else -1


class _Connection(AsyncAdapt_asyncpg_connection):
    _cursor_cls = _Cursor
    __slots__ = ("_prepared",)

    def __init__(self, dbapi: Any, connection: Any, **options: Any) -> None:
        super().__init__(dbapi, connection, **options)  # type: ignore[no-untyped-call]
        self._prepared: dict[str, PreparedStatement[asyncpg.Record]] = {}

    async def fetch(self, query: str, arguments: Sequence[object]) -> list[asyncpg.Record]:
        async with self._execute_mutex:
            if self._transaction is None:
                await self._start_transaction()  # type: ignore[no-untyped-call]
            try:
                prepared = self._prepared.get(query)
                if prepared is None:  # without a name the next statement would take its place
                    prepared = await self._connection.prepare(query, name=f"gasket_query_{next(_NUMBERS)}")
                    self._prepared[query] = prepared
                rows = await prepared.fetch(*arguments)
            except Exception as error:
                self._handle_exception(error)
        return rows

    async def _prepare(self, operation: str, invalidate_timestamp: float) -> Any:
        if _FORGETS_PREPARED.search(operation):
            self._prepared.clear()
        return await super()._prepare(operation, invalidate_timestamp)  # type: ignore[no-untyped-call]
