"""What an unrecorded step has committed: one row for each statement, in the transaction of that statement."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg
import msgspec

from gasket.migrator.ledger.tables import BACKGROUND, PROGRESS, qualified


class Committed(msgspec.Struct, frozen=True):
    """A statement that an earlier try has committed, or, where it is not `finished`, begun outside of a transaction.

    `row_count` is what the driver said of it, -1 where it said nothing.
    """

    statement: str
    finished: bool
    row_count: int
    command: str | None
    role: str | None
    at: str


async def write_progress(
    connection: asyncpg.Connection,
    schema: str,
    *,
    revision: str,
    downgrade: bool,
    command: str,
    statements: Iterable[tuple[str, int]],
    finished: bool = True,
) -> None:
    """Write down statements, each with its row count, in their order."""
    await connection.executemany(
        f"INSERT INTO {qualified(schema, PROGRESS)} (revision, downgrade, statement, finished, row_count, command) "
        "VALUES ($1, $2, $3, $4, $5, $6)",
        [(revision, downgrade, statement, finished, count, command) for statement, count in statements],
    )


async def read_progress(
    connection: asyncpg.Connection, schema: str, revision: str, *, downgrade: bool
) -> tuple[Committed, ...]:
    """What was committed of the step, in its order."""
    rows = await connection.fetch(
        "SELECT statement, finished, row_count, command, role, begun_at AS at "
        f"FROM {qualified(schema, PROGRESS)} WHERE revision = $1 AND downgrade = $2 ORDER BY id",
        revision,
        downgrade,
    )
    return tuple(Committed(**{**row, "at": row["at"].isoformat(timespec="seconds")}) for row in rows)


async def unfinished_revisions(connection: asyncpg.Connection, schema: str) -> tuple[set[str], set[str]]:
    """The revisions of which a step has committed something and is not recorded, and those with background work."""
    rows = await connection.fetch(
        f"SELECT revision, false AS works FROM {qualified(schema, PROGRESS)} "
        f"UNION ALL SELECT revision, true FROM {qualified(schema, BACKGROUND)}"
    )
    return {revision for revision, works in rows if not works}, {revision for revision, works in rows if works}


async def forget_progress(connection: asyncpg.Connection, schema: str, revision: str) -> None:
    """The step is recorded, or begins from the start again."""
    await connection.execute(f"DELETE FROM {qualified(schema, PROGRESS)} WHERE revision = $1", revision)


async def forget_begun(connection: asyncpg.Connection, schema: str, revision: str, statement: str) -> None:
    """A statement that ran outside of a transaction has failed and left everything as it was."""
    await connection.execute(
        f"DELETE FROM {qualified(schema, PROGRESS)} WHERE revision = $1 AND statement = $2 AND NOT finished",
        revision,
        statement,
    )


async def forget_all_progress(connection: asyncpg.Connection, schema: str) -> None:
    """The schema was stamped: it counts as whole, whatever was begun."""
    await connection.execute(f"DELETE FROM {qualified(schema, PROGRESS)}")
