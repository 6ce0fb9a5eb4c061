"""What the background work of a pending revision would come to."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import msgspec

from gasket.migrator.background import BACKFILL, INDEX, Backfill, Declaration
from gasket.migrator.background.walk import count_rows

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
        rows = await count_rows(connection, schema, one.table, one.where if isinstance(one, Backfill) else None)
        if isinstance(one, Backfill):
            seconds = None if rows is None else round(rows / _ROWS_A_SECOND / share)
            planned.append(PlannedWork(BACKFILL, one.table, rows, seconds))
        else:
            planned.append(PlannedWork(INDEX, one.table, rows, None))
    return tuple(planned)
