"""What the background work of a pending revision would come to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import asyncpg
import msgspec

from gasket.migrator.background import BACKFILL, INDEX, Backfill, Declaration
from gasket.migrator.background.walk import ESTIMATED_ROWS
from gasket.postgres.errors import is_lost

_COUNT_WITHIN = "3s"
_ROWS_A_SECOND = 30_000
"""What a backfill of a narrow table does without pauses (`bench background`). An estimate; wide rows take longer."""


class PlannedWork(msgspec.Struct, frozen=True):
    """`rows` are those to change, or of the table where that cannot be counted yet; None: the table is not live yet.

    `seconds` is an estimate, of a backfill alone.
    """

    kind: str
    table: str
    rows: int | None
    seconds: int | None


async def plan_works(
    connection: asyncpg.Connection, schema: str, declared: Sequence[Declaration], *, share: float
) -> tuple[PlannedWork, ...]:
    """Count live rows, in at most a few seconds. No transaction is open; nothing is changed."""
    planned = []
    for one in declared:
        rows = await _count(connection, schema, one)
        if isinstance(one, Backfill):
            seconds = None if rows is None else round(rows / _ROWS_A_SECOND / share)
            planned.append(PlannedWork(BACKFILL, one.table, rows, seconds))
        else:
            planned.append(PlannedWork(INDEX, one.table, rows, None))
    return tuple(planned)


async def _count(connection: asyncpg.Connection, schema: str, declared: Declaration) -> int | None:
    if isinstance(declared, Backfill):
        try:
            return await _within(
                connection, schema, f"SELECT count(*) FROM {declared.table} WHERE ({declared.where}\n)"
            )
        except asyncpg.PostgresError as error:
            # It takes too long; the revision makes the column or the table; or `where` fails on a row as it is now.
            if is_lost(error):
                raise
    rows = await _within(connection, schema, ESTIMATED_ROWS, declared.table)
    if rows == 0:  # as before the first ANALYZE
        with suppress(asyncpg.QueryCanceledError):
            return await _within(connection, schema, f"SELECT count(*) FROM {declared.table}")
    return rows


async def _within(connection: asyncpg.Connection, schema: str, query: str, *arguments: str) -> int | None:
    async with connection.transaction(readonly=True):
        await connection.execute(
            "SELECT set_config('search_path', quote_ident($1), true), set_config('statement_timeout', $2, true)",
            *(schema, _COUNT_WITHIN),
        )
        rows: int | None = await connection.fetchval(query, *arguments)
    return rows
