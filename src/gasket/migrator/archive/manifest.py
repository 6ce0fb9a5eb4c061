"""The archive's book: which rows of what were kept, by which downgrade, and what became of them.

The archive's tables have short names of our own, `a<number>`; the table `manifest` beside them says what each holds.
Only a session that holds the migration lock writes here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Connection

from gasket.migrator.archive.entries import Archive, Entry
from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.schema import MANIFEST, archive_schema, ensure_schema, stored
from gasket.migrator.command_line import database_command
from gasket.migrator.errors import NotThereError
from gasket.postgres.driver import fetch

log = logging.getLogger("gasket.migrator")

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
_ADDED_COLUMNS = {"partitions": "jsonb NOT NULL DEFAULT '[]'"}
"""Which the manifest of an older release lacks until something is archived: read through `to_jsonb`."""
_ALL_COLUMNS = _COLUMNS | _ADDED_COLUMNS
_READ_MANIFEST = f"""
SELECT current_user::text AS role, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    AND has_table_privilege(c.oid, 'UPDATE') AS usable,
    array(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0) AS columns
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = '{MANIFEST}'
"""
_WITH_PARENTS = """
SELECT unnest($1::bigint[]) UNION
SELECT a.oid::oid::bigint FROM unnest($1::bigint[]) AS t(oid), pg_partition_ancestors(t.oid::oid::regclass) AS a(oid)
"""
_KEEPS_VALUES = f"kind = '{LossKind.COLUMNS}' AND stored_in IS NOT NULL"
_OPEN = "restored_at IS NULL AND problem IS NULL"
# What cannot be put back by itself, until that was said when its revision was applied again.
_BY_HAND = "problem IS NOT NULL AND stored_in IS NOT NULL AND restore_error IS NULL"


class Manifest:
    """The book of what `schema` has lost, for the transaction that is open on `connection`."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self.connection = connection
        self.schema = schema
        self._table = stored(schema, MANIFEST)

    def ensure(self) -> None:
        """Make the archive's schema and its manifest in the transaction that needs them.

        Raises:
            MissingPrivilegeError: the role may not.
        """
        ensure_schema(self.connection, self.schema)
        found = fetch(self.connection, _READ_MANIFEST, archive_schema(self.schema))
        if not found:
            columns = ", ".join(f"{column} {kind}" for column, kind in _ALL_COLUMNS.items())
            self.connection.exec_driver_sql(
                f"CREATE TABLE {self._table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns})"
            )
            return
        for column in _ADDED_COLUMNS.keys() - set(found[0]["columns"]):
            self.connection.exec_driver_sql(f"ALTER TABLE {self._table} ADD COLUMN {column} {_ADDED_COLUMNS[column]}")

    def add(self, archive: int | None, **values: object) -> int:
        """Write one entry, of a new archive where `archive` is None; returns its number."""
        values = {"archive": archive or 0} | values
        names = list(values)
        places = ", ".join(f"${number}::{_ALL_COLUMNS[name].split()[0]}" for number, name in enumerate(names, start=1))
        query = f"INSERT INTO {self._table} ({', '.join(names)}) VALUES ({places}) RETURNING id"
        [(number,)] = fetch(self.connection, query, *map(_as_json, values.values()))
        if archive is None:
            self.update(number, archive=number)
        return int(number)

    def update(self, entry: int, **values: object) -> None:
        """Change columns of one entry."""
        changes = ", ".join(
            f"{name} = ${number}::{_ALL_COLUMNS[name].split()[0]}" for number, name in enumerate(values, start=2)
        )
        query = f"UPDATE {self._table} SET {changes} WHERE id = $1"
        fetch(self.connection, query, entry, *map(_as_json, values.values()))

    def settle(self, entry: int, *, rows: int, left: Mapping[str, int]) -> None:
        """It was put back: `rows` are in their table again, `left` stay, by reason; without those its table is gone."""
        self.connection.exec_driver_sql(
            f"UPDATE {self._table} SET restored_at = clock_timestamp(), restored_rows = $2, left_behind = $3, "
            "restore_error = NULL, stored_in = CASE WHEN $4 THEN stored_in END WHERE id = $1",
            (entry, rows, _as_json(dict(left)), bool(left)),
        )

    def entries_to_restore(self, revision: str, *, later: Iterable[str]) -> list[Entry]:
        """What could be put back now that the revision is applied again, newest archive first.

        With `later` revisions' archives of values of rows that stay. Rows that failed to fit once are left out: they
        may have been deleted since. Rows that only a person can put back come with a problem, once after each time
        that the revision was taken back.
        """
        of_revisions = f"(revision = $1 OR revision = ANY ($2::text[]) AND {_KEEPS_VALUES})"
        return self._read(f"{of_revisions} AND {_OPEN} OR revision = $1 AND {_BY_HAND}", revision, list(later))

    def entries_of_tables(self, tables: Iterable[int]) -> list[Entry]:
        """What could be put back, with whatever revision, into rows that stay of the given tables (oids).

        And of the tables that these are partitions of.
        """
        condition = f"relation IN ({_WITH_PARENTS}) AND {_KEEPS_VALUES} AND {_OPEN}"
        return self._read(condition, list(tables))

    def values_wait(self) -> bool:
        """Whether something could be put back into rows that stay, of whatever table."""
        if not self._is_usable():
            return False
        [(found,)] = fetch(
            self.connection, f"SELECT EXISTS (SELECT FROM {self._table} WHERE {_KEEPS_VALUES} AND {_OPEN})"
        )
        return bool(found)

    def entries_of_archive(self, number: int) -> list[Entry]:
        """Everything that one archive is about.

        Raises:
            NotThereError: there is none of that number.
        """
        entries = self._read("true")
        found = [entry for entry in entries if entry.archive == number]
        if not found:
            raise _unknown_archive(number, {entry.archive for entry in entries})
        return found

    def revisions(self) -> frozenset[str]:
        """Of which something could be put back, or is to be told; a run of many steps asks once."""
        if not self._is_usable():
            return frozenset()
        query = f"SELECT DISTINCT revision FROM {self._table} WHERE {_OPEN} OR {_BY_HAND}"
        return frozenset(self.connection.exec_driver_sql(query).scalars())

    def _is_usable(self) -> bool:
        """Whether there is one, and this role may use it: if not, an upgrade must not fail for it."""
        found = fetch(self.connection, _READ_MANIFEST, archive_schema(self.schema))
        if not found:
            return False
        [(role, usable, _)] = found
        if not usable:
            log.warning(
                "role %s may not read the archive %s, so no rows are put back", role, archive_schema(self.schema)
            )
        return bool(usable)

    def _read(self, condition: str, *values: object) -> list[Entry]:
        if not self._is_usable():
            return []
        return _entries(fetch(self.connection, _query(self.schema, condition), *values))


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


async def read_left(connection: asyncpg.Connection, schema: str) -> list[str]:
    """What stayed in the archives although its revision was applied again, newest first.

    Empty where this role may not look into them.
    """
    found = await connection.fetchrow(_READ_MANIFEST, archive_schema(schema))
    if found is None or not found["usable"]:
        return []
    entries = _entries(await connection.fetch(_query(schema, "stored_in IS NOT NULL")))
    return [words for entry in entries if (words := entry.left_words)]


async def show_archive(connection: asyncpg.Connection, schema: str, number: int) -> Archive:
    """One archive.

    Raises:
        NotThereError: there is none of that number.
    """
    archives = {archive.number: archive for archive in await list_archives(connection, schema)}
    if number not in archives:
        raise _unknown_archive(number, archives)
    return archives[number]


async def drop_archive(connection: asyncpg.Connection, schema: str, number: int) -> Archive:
    """Delete one archive for good, in one transaction; returns what it was. Only under the migration lock.

    Raises:
        NotThereError: there is none of that number.
    """
    async with connection.transaction():
        archive = await show_archive(connection, schema, number)
        for entry in archive.entries:
            if entry.stored_in:
                await connection.execute(f"DROP TABLE {stored(schema, entry.stored_in)}")
        await connection.execute(f"DELETE FROM {stored(schema, MANIFEST)} WHERE archive = $1", number)
    return archive


def _unknown_archive(number: int, known: Collection[int]) -> NotThereError:
    there = f"there are {', '.join(map(str, sorted(known)))}" if known else "the archive is empty"
    return NotThereError(
        problem=f"There is no archive {number}: {there}", mend=f"Run: {database_command('archive list')}"
    )


def _query(schema: str, condition: str) -> str:
    columns = ", ".join(f"{name}::text" if kind.startswith("jsonb") else name for name, kind in _COLUMNS.items())
    added = ", ".join(f"coalesce(to_jsonb(m) ->> '{name}', '[]') AS {name}" for name in _ADDED_COLUMNS)
    home = "'" + archive_schema(schema).replace("'", "''") + "'"
    table = f"to_regclass(quote_ident({home}) || '.' || quote_ident(stored_in))"
    return (
        f"SELECT id, {columns}, {added}, coalesce(pg_total_relation_size({table}), 0) AS size "
        f"FROM {stored(schema, MANIFEST)} AS m WHERE {condition} ORDER BY archive DESC, id"
    )


def _entries(rows: Iterable[Any]) -> list[Entry]:
    entries = []
    for row in rows:
        values = dict(row)
        for name, kind in _ALL_COLUMNS.items():
            if kind.startswith("jsonb") and values[name]:
                values[name] = msgspec.json.decode(values[name])
        entries.append(msgspec.convert(values, Entry))
    return entries


def _as_json(value: object) -> object:
    return msgspec.json.encode(value).decode() if isinstance(value, tuple | dict | list) else value
