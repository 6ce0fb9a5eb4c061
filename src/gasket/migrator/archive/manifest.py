"""The archive's book: which rows of what were kept, by which downgrade, and what became of them.

The archive's tables have short names of our own, `a<number>`; the table `manifest` beside them says what each holds.
Whoever writes here holds the migration lock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import groupby
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Connection

from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.schema import archive_schema, ensure_schema, stored
from gasket.migrator.connection import quote_identifier
from gasket.migrator.errors import UnknownArchiveError

log = logging.getLogger("gasket.migrator")

NOTE = "note"
"""The kind of an entry that only says what could not be archived; the others are those of `LossKind`."""

_COLUMNS = {
    "archive": "bigint NOT NULL",  # the number of one downgrade of one revision: that of its first entry
    "revision": "text NOT NULL",
    "digest": "text",
    "release": "text",
    "role": "text NOT NULL DEFAULT current_user",
    "archived_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
    "transaction": "text NOT NULL DEFAULT pg_current_xact_id()::xid::text",
    "kind": "text NOT NULL",
    "relation": "bigint",  # its oid, of which a dump and restore leaves nothing
    "schema_name": "text",
    "object_name": "text",
    "columns": "jsonb NOT NULL DEFAULT '[]'",
    "owner": "jsonb",
    "position": "jsonb",
    "stored_in": "text",
    "row_count": "bigint NOT NULL DEFAULT 0",
    "problem": "text",
    "restored_at": "timestamptz",
    "restored_rows": "bigint NOT NULL DEFAULT 0",
    "left_behind": "jsonb NOT NULL DEFAULT '{}'",
    "restore_error": "text",
}
_MANIFEST = """
SELECT current_user::text AS role, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    AND has_table_privilege(c.oid, 'UPDATE') AS usable
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'manifest'
"""
_WITH_PARENTS = """
SELECT unnest($1::bigint[]) UNION
SELECT a.oid::oid::bigint FROM unnest($1::bigint[]) AS t(oid), pg_partition_ancestors(t.oid::oid::regclass) AS a(oid)
"""
_KEEPS_VALUES = f"kind = '{LossKind.COLUMNS}' AND stored_in IS NOT NULL"
_OPEN = "restored_at IS NULL AND problem IS NULL AND kind <> 'note'"


class KeptColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of an archive's table.

    `lost` are those that went, of a table that stayed, `retyped` those that got another type. By `key` a row is found.
    """

    name: str
    number: int
    lost: bool = False
    key: bool = False
    retyped: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that one downgrade took away.

    `relation` is an oid. `owner` is the table and column that a sequence belongs to, `position` its last value and
    whether that was handed out. `problem` says why it cannot be put back by itself, or what was not archived at all.
    """

    id: int
    archive: int
    revision: str
    digest: str | None
    release: str | None
    role: str
    archived_at: datetime
    transaction: str
    kind: str
    relation: int | None
    schema_name: str | None
    object_name: str | None
    columns: tuple[KeptColumn, ...]
    owner: tuple[str, str, str] | None
    position: tuple[int, bool] | None
    stored_in: str | None
    row_count: int
    problem: str | None
    restored_at: datetime | None
    restored_rows: int
    left_behind: dict[str, int]
    restore_error: str | None
    size: int

    @property
    def name(self) -> str:
        """What was lost, for people: `schema.table` or `schema.table (column, column)`."""
        lost = ", ".join(column.name for column in self.columns if column.lost)
        return f"{self.schema_name}.{self.object_name}" + (f" ({lost})" if lost else "")

    @property
    def quoted(self) -> str:
        """The qualified name of what was lost, as SQL."""
        return f"{quote_identifier(self.schema_name or '')}.{quote_identifier(self.object_name or '')}"

    @property
    def keeps_values(self) -> bool:
        """Whether it keeps values of rows that stay: of a column, and not of all."""
        return self.kind == LossKind.COLUMNS and self.stored_in is not None and self.relation is not None

    @property
    def rows_left(self) -> int:
        """Rows that are in the archive still."""
        if self.stored_in is None:
            return 0
        return sum(self.left_behind.values()) if self.restored_at else self.row_count


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """What one downgrade of one revision took away. `size` is in bytes, as it stands now."""

    number: int
    revision: str
    release: str | None
    role: str
    archived_at: datetime
    entries: tuple[Entry, ...]

    @property
    def rows(self) -> int:
        """Rows that were kept."""
        return sum(entry.row_count for entry in self.entries)

    @property
    def rows_left(self) -> int:
        """Rows that are in the archive still."""
        return sum(entry.rows_left for entry in self.entries)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(entry.size for entry in self.entries)


def ensure_manifest(connection: Connection, schema: str) -> None:
    """Make the archive's schema and its manifest in the transaction that needs them.

    Raises:
        MissingPrivilegeError: the role may not.
    """
    ensure_schema(connection, schema)
    if connection.exec_driver_sql(_MANIFEST, (archive_schema(schema),)).one_or_none() is None:
        columns = ", ".join(f"{column} {kind}" for column, kind in _COLUMNS.items())
        connection.exec_driver_sql(
            f"CREATE TABLE {_manifest(schema)} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns})"
        )


def add_entry(connection: Connection, schema: str, archive: int | None, **values: object) -> int:
    """Write one entry, of a new archive where `archive` is None; returns its number."""
    values = {"archive": archive or 0} | values
    names = list(values)
    places = ", ".join(f"${number}::{_COLUMNS[name].split()[0]}" for number, name in enumerate(names, start=1))
    number: int = connection.exec_driver_sql(
        f"INSERT INTO {_manifest(schema)} ({', '.join(names)}) VALUES ({places}) RETURNING id",
        tuple(_as_json(value) for value in values.values()),
    ).scalar_one()
    if archive is None:
        update_entry(connection, schema, number, archive=number)
    return number


def update_entry(connection: Connection, schema: str, entry: int, **values: object) -> None:
    """Change columns of one entry."""
    changes = ", ".join(
        f"{name} = ${number}::{_COLUMNS[name].split()[0]}" for number, name in enumerate(values, start=2)
    )
    connection.exec_driver_sql(
        f"UPDATE {_manifest(schema)} SET {changes} WHERE id = $1",
        (entry, *(_as_json(value) for value in values.values())),
    )


def settle_entry(connection: Connection, schema: str, entry: int, *, rows: int, left: Mapping[str, int]) -> None:
    """It was put back: `rows` are in their table again, `left` stay, by reason; without those its table is gone."""
    connection.exec_driver_sql(
        f"UPDATE {_manifest(schema)} SET restored_at = clock_timestamp(), restored_rows = $2, left_behind = $3, "
        "restore_error = NULL, stored_in = CASE WHEN $4 THEN stored_in END WHERE id = $1",
        (entry, rows, _as_json(dict(left)), bool(left)),
    )


def entries_to_restore(connection: Connection, schema: str, revision: str, *, later: Iterable[str] = ()) -> list[Entry]:
    """What could be put back now that the revision is applied again, newest archive first.

    And what with `later` ones, of values of rows that stay. Only what was not put back once before: rows that did not
    fit then may have been deleted since on purpose.
    """
    if not _may_use_manifest(connection, schema):
        return []
    query = _query(schema, f"(revision = $1 OR revision = ANY ($2::text[]) AND {_KEEPS_VALUES}) AND {_OPEN}")
    return _entries(connection.exec_driver_sql(query, (revision, list(later))).mappings())


def entries_of_tables(connection: Connection, schema: str, tables: Iterable[int]) -> list[Entry]:
    """What could be put back, with whatever revision, into rows that stay of the given tables (oids).

    And of the tables that these are partitions of.
    """
    if not _may_use_manifest(connection, schema):
        return []
    query = _query(schema, f"relation IN ({_WITH_PARENTS}) AND {_KEEPS_VALUES} AND {_OPEN}")
    return _entries(connection.exec_driver_sql(query, (list(tables),)).mappings())


def archived_revisions(connection: Connection, schema: str) -> frozenset[str]:
    """The revisions of which something could be put back. One query, for a run of many steps."""
    if not _may_use_manifest(connection, schema):
        return frozenset()
    query = f"SELECT DISTINCT revision FROM {_manifest(schema)} WHERE {_OPEN}"
    return frozenset(connection.exec_driver_sql(query).scalars())


async def list_archives(connection: asyncpg.Connection, schema: str) -> list[Archive]:
    """Every archive, newest first; empty where nothing was ever archived."""
    try:
        rows = await connection.fetch(_query(schema, "true"))
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return []
    return [
        Archive(
            number=number,
            revision=first.revision,
            release=first.release,
            role=first.role,
            archived_at=first.archived_at,
            entries=(first, *group),
        )
        for number, group in groupby(_entries(rows), key=lambda entry: entry.archive)
        for first in [next(group)]
    ]


async def show_archive(connection: asyncpg.Connection, schema: str, number: int) -> Archive:
    """One archive.

    Raises:
        UnknownArchiveError: there is none of that number.
    """
    archives = {archive.number: archive for archive in await list_archives(connection, schema)}
    if number not in archives:
        raise UnknownArchiveError(number=number, known=sorted(archives))
    return archives[number]


async def drop_archive(connection: asyncpg.Connection, schema: str, number: int) -> Archive:
    """Delete one archive for good, in one transaction; returns what it was. Only under the migration lock.

    Raises:
        UnknownArchiveError: there is none of that number.
    """
    async with connection.transaction():
        archive = await show_archive(connection, schema, number)
        for entry in archive.entries:
            if entry.stored_in:
                await connection.execute(f"DROP TABLE {stored(schema, entry.stored_in)}")
        await connection.execute(f"DELETE FROM {_manifest(schema)} WHERE archive = $1", number)
    return archive


def _manifest(schema: str) -> str:
    return stored(schema, "manifest")


def _may_use_manifest(connection: Connection, schema: str) -> bool:
    """Whether there is one, and this role may use it: if not, an upgrade must not fail for it."""
    found = connection.exec_driver_sql(_MANIFEST, (archive_schema(schema),)).one_or_none()
    if found is None:
        return False
    if not found.usable:
        log.warning("role %s may not read the archive %s: no rows come back", found.role, archive_schema(schema))
    return bool(found.usable)


def _query(schema: str, condition: str) -> str:
    columns = ", ".join(f"{name}::text" if kind.startswith("jsonb") else name for name, kind in _COLUMNS.items())
    size = "coalesce(pg_total_relation_size(to_regclass(quote_ident({}) || '.' || quote_ident(stored_in))), 0) AS size"
    schema_literal = "'" + archive_schema(schema).replace("'", "''") + "'"
    return (
        f"SELECT id, {columns}, {size.format(schema_literal)} FROM {_manifest(schema)} "
        f"WHERE {condition} ORDER BY archive DESC, id"
    )


def _entries(rows: Iterable[Any]) -> list[Entry]:
    decoded = (
        {
            name: msgspec.json.decode(value) if value and _COLUMNS.get(name, "").startswith("jsonb") else value
            for name, value in dict(row).items()
        }
        for row in rows
    )
    return [msgspec.convert(row, Entry) for row in decoded]


def _as_json(value: object) -> object:
    return msgspec.json.encode(value).decode() if isinstance(value, tuple | dict | list) else value
