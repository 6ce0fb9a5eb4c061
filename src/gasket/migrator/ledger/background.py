"""Work after the start: the rows of `migration_background`, and who may change them from which state to which."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum

import asyncpg
import msgspec

from gasket.migrator.background import BACKFILL, INDEX, Backfill, Declaration
from gasket.migrator.ledger.tables import BACKGROUND, LEDGER, qualified


class State(StrEnum):
    """Of one piece of work. A worker takes up what is pending, and what was running when its worker died."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    FAILED = "failed"
    VOID = "void"
    """Its revision was taken back, or a command has cancelled it."""


OPEN = frozenset({State.PENDING, State.RUNNING})
"""What a worker goes on with by itself."""
STOPPED = frozenset({State.PAUSED, State.VOID})
"""What only a command begins again."""
UNFINISHED = OPEN | {State.PAUSED, State.FAILED}


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `number` is its place among those of its revision, from 1.

    `rows_done` were changed; `rows_estimated` are those that there were to change when it began, None before that and
    for an index. `cursor` is the primary key of the last row that this walk through the table has passed.
    """

    id: int
    revision: str
    number: int
    kind: str
    table_name: str
    statement: str
    condition: str | None
    state: State
    cursor: list[str] | None
    walk: int
    rows_done: int
    rows_estimated: int | None
    worker: str | None
    error: str | None
    release: str | None
    declared_at: datetime
    changed_at: datetime

    @property
    def percent(self) -> int | None:
        """How much of a backfill is done, as far as that can be estimated; less than 100 until it is complete."""
        if self.kind == INDEX or self.rows_estimated is None:
            return None
        if self.state is State.COMPLETE:
            return 100
        return min(99, 100 * self.rows_done // max(self.rows_estimated, 1))

    def __str__(self) -> str:
        what = f"{self.kind} of {self.table_name}"
        return f"background work {self.id} ({what}, declared by revision {self.revision})"


_COLUMNS = ", ".join(Work.__struct_fields__)


async def read_works(
    connection: asyncpg.Connection, schema: str, *, states: Collection[State] = frozenset(State)
) -> list[Work]:
    """All work in these states, in the order in which it is done; empty where the table is missing."""
    try:
        rows = await connection.fetch(
            f"SELECT {_COLUMNS} FROM {qualified(schema, BACKGROUND)} WHERE state = ANY ($1) ORDER BY id",
            list(states),
        )
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return []
    return [_work(row) for row in rows]


async def read_work(connection: asyncpg.Connection, schema: str, number: int) -> Work | None:
    """The row of this id."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM {qualified(schema, BACKGROUND)} WHERE id = $1", number)
    return _work(row) if row else None


async def read_works_of(connection: asyncpg.Connection, schema: str, revision: str) -> list[Work]:
    """The work of a revision as it was last applied: of rows with the same number, the newest."""
    rows = await connection.fetch(
        f"SELECT DISTINCT ON (number) {_COLUMNS} FROM {qualified(schema, BACKGROUND)} WHERE revision = $1 "
        "ORDER BY number, id DESC",
        revision,
    )
    return [_work(row) for row in rows]


async def record_works(
    connection: asyncpg.Connection, schema: str, revision: str, release: str, declared: Sequence[Declaration]
) -> None:
    """In the transaction of the revision that declares it."""
    await connection.executemany(
        f"INSERT INTO {qualified(schema, BACKGROUND)} "
        "(revision, number, kind, table_name, statement, condition, release) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            (revision, number, BACKFILL, one.table, one.set, one.where, release)
            if isinstance(one, Backfill)
            else (revision, number, INDEX, one.table, one.sql, None, release)
            for number, one in enumerate(declared, start=1)
        ],
    )


async def void_works(connection: asyncpg.Connection, schema: str, revision: str) -> None:
    """In the transaction that takes the revision back. It waits for the batch that is under way."""
    await connection.execute(
        f"UPDATE {qualified(schema, BACKGROUND)} SET state = $2, changed_at = clock_timestamp() "
        "WHERE revision = $1 AND state <> $2",
        revision,
        State.VOID,
    )


async def change_state(
    connection: asyncpg.Connection,
    schema: str,
    number: int,
    state: State,
    *,
    before: Collection[State],
    error: str | None = None,
    worker: str | None = None,
) -> Work | None:
    """The work as it is now, in `state`; None where its state is none of `before` any more.

    `worker` is who does it from now on; None: who has done it before.
    """
    row = await connection.fetchrow(
        f"UPDATE {qualified(schema, BACKGROUND)} SET state = $2, error = $4, worker = coalesce($5, worker), "
        f"changed_at = clock_timestamp() WHERE id = $1 AND state = ANY ($3) RETURNING {_COLUMNS}",
        *(number, state, list(before), error, worker),
    )
    return _work(row) if row else None


async def is_taken_back(connection: asyncpg.Connection, schema: str, revision: str) -> bool:
    """Whether a release that knows nothing of background work has taken the revision back."""
    last = await connection.fetchval(
        f"SELECT direction FROM {qualified(schema, LEDGER)} WHERE revision = $1 AND direction <> 'accept' "
        "ORDER BY id DESC LIMIT 1",
        revision,
    )
    return bool(last == "downgrade")


async def set_estimate(connection: asyncpg.Connection, schema: str, number: int, rows: int) -> None:
    """Write down how many rows there are to change."""
    await connection.execute(
        f"UPDATE {qualified(schema, BACKGROUND)} SET rows_estimated = $2 WHERE id = $1", number, rows
    )


async def note_error(connection: asyncpg.Connection, schema: str, number: int, error: str) -> None:
    """Write down what holds running work up. Its next batch takes that away."""
    await connection.execute(
        f"UPDATE {qualified(schema, BACKGROUND)} SET error = $2, changed_at = clock_timestamp() "
        "WHERE id = $1 AND state = $3",
        *(number, error, State.RUNNING),
    )


async def lock_running(connection: asyncpg.Connection, schema: str, number: int) -> Work | None:
    """The row, locked to the end of the transaction, while the work is to go on; None once it is not.

    A command that pauses it, and a downgrade, wait for this lock, and so for one batch at most.
    """
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM {qualified(schema, BACKGROUND)} WHERE id = $1 AND state = $2 FOR NO KEY UPDATE",
        number,
        State.RUNNING,
    )
    return _work(row) if row else None


async def save_cursor(
    connection: asyncpg.Connection, schema: str, number: int, *, cursor: Sequence[str] | None, walk: int, rows: int
) -> None:
    """In the transaction that has changed `rows` more."""
    await connection.execute(
        f"UPDATE {qualified(schema, BACKGROUND)} SET cursor = $2, walk = $3, rows_done = rows_done + $4, error = NULL, "
        "changed_at = clock_timestamp() WHERE id = $1",
        *(number, cursor, walk, rows),
    )


def format_work(work: Work) -> str:
    """One line: number, state, what, how far, by whom, and why it has failed."""
    parts = [f"{work.id:>5}  {work.state:<8}  {work.kind} of {work.table_name}, declared by revision {work.revision}"]
    if work.rows_estimated is not None:
        parts.append(f"{work.rows_done:,} of about {max(work.rows_done, work.rows_estimated):,} rows changed")
    if work.state is State.RUNNING:
        parts.append(f"worker {work.worker}")
    if work.error:
        parts.append(work.error)
    return "; ".join(parts)


def _work(row: asyncpg.Record) -> Work:
    return Work(**{**row, "state": State(row["state"])})
