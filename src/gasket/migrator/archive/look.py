"""Looking into an archive: the rows that one of its tables keeps, some at a time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import asyncpg
import msgspec
from msgspec import Meta

from gasket.migrator.archive.entries import Archive, Entry
from gasket.migrator.archive.manifest import show_archive
from gasket.migrator.archive.schema import stored
from gasket.migrator.command_line import database_command
from gasket.migrator.errors import NotThereError
from gasket.postgres.quoting import quote_identifier

_START = "(0,0)"
"""Before the first place of a table: PostgreSQL counts rows of a page from 1 (manual, "Database Page Layout")."""
_LONGEST_VALUE = 200


class ArchivedRows(msgspec.Struct, frozen=True, kw_only=True):
    """Some rows, as text. `hidden` are columns whose values are not shown; `next` is the cursor of the rows after."""

    archive: int
    entry: int
    name: Annotated[str, Meta(description="What was taken away: a table, or columns of it")]
    columns: list[str]
    hidden: list[str]
    rows: Annotated[list[list[str | None]], Meta(description="Longer values are cut off after 200 characters")]
    next: Annotated[str | None, Meta(description="The `cursor` of the rows that follow; null: there are none")]


async def read_archived_rows(
    connection: asyncpg.Connection,
    schema: str,
    number: int,
    entry_id: int,
    *,
    cursor: str | None,
    limit: int,
    hidden: Collection[str],
) -> ArchivedRows:
    """At most `limit` rows of an entry of archive `number`, from behind `cursor` on, a `tid` as PostgreSQL writes it.

    Values of the `hidden` columns are not read.

    Raises:
        NotThereError: there is no such archive, or it keeps no rows under this number.
    """
    entry, table = _find(await show_archive(connection, schema, number), entry_id)
    names = [column.name for column in entry.columns]
    shown = [name for name in names if name not in hidden]
    values = "".join(f", left({quote_identifier(name)}::text, {_LONGEST_VALUE + 1})" for name in shown)
    # By place, for which no index is needed: a page far down costs as much as the first one.
    rows = await connection.fetch(
        f"SELECT ctid::text AS place{values} FROM {stored(schema, table)} "
        "WHERE ctid > $1::text::tid ORDER BY ctid LIMIT $2",
        *(cursor or _START, limit + 1),
    )
    kept = rows[:limit]
    return ArchivedRows(
        archive=number,
        entry=entry_id,
        name=entry.name,
        columns=shown,
        hidden=[name for name in names if name in hidden],
        rows=[[_cut(value) for value in row[1:]] for row in map(tuple, kept)],
        next=kept[-1][0] if len(rows) > limit else None,
    )


def _find(archive: Archive, entry_id: int) -> tuple[Entry, str]:
    for entry in archive.entries:
        if entry.id == entry_id and entry.stored_in:
            return entry, entry.stored_in
    raise NotThereError(
        problem=f"Archive {archive.number} keeps no rows under {entry_id}",
        mend=f"Run: {database_command(f'archive show {archive.number}')}",
    )


def _cut(value: str | None) -> str | None:
    if value is None or len(value) <= _LONGEST_VALUE:
        return value
    return f"{value[:_LONGEST_VALUE]}\u2026"
