"""Which live rows are still those that archived columns were taken from, told by the version (`xmin`) of the row.

Steps write to these rows, too: a backfill, an ALTER TABLE that writes the table anew, values that are put back. So
before a step the rows that another session has changed are marked, for good, and after it the new versions of the
others are noted. The table is locked against writers in between: every version that is new then is the step's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from msgspec.structs import replace
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.copies import CHANGED, VERSION, exact_settings
from gasket.migrator.archive.entries import Entry
from gasket.migrator.archive.faults import is_passing
from gasket.migrator.archive.manifest import Manifest
from gasket.migrator.archive.put_back import PutBack
from gasket.migrator.archive.savepoints import savepoint
from gasket.migrator.archive.schema import stored
from gasket.postgres.quoting import quote_identifier

_RELATION = """
SELECT c.oid::regclass::text AS name, c.relkind::text AS kind
FROM pg_class AS c WHERE c.oid = $1::bigint::oid AND c.relkind IN ('r', 'p')
"""
_COLUMNS = """
SELECT attnum AS number, attname AS name, format_type(atttypid, atttypmod) AS type
FROM pg_attribute WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped
"""


class _UnknownError(Exception):
    """The table or a column is not there: nothing tells which rows were changed."""


def mark_changed(connection: Connection, schema: str, entries: Iterable[Entry], *, strong: bool) -> list[Entry]:
    """Mark the archived values whose live row has a version that is neither the downgrade's nor from before it.

    The entries are of columns. Their tables are locked against writers, and if `strong` against readers as well.
    Returns those of which it can be told: after a dump and restore it is another table.

    Raises:
        sqlalchemy.exc.DBAPIError: a lock was not free in time, or the connection is gone.
    """
    marked = []
    for entry in entries:
        with _unless_unknown(connection):
            source = _source(connection, entry)
            connection.exec_driver_sql(f"LOCK TABLE {source} IN {'ACCESS' if strong else 'SHARE ROW'} EXCLUSIVE MODE")
            connection.exec_driver_sql(
                f"UPDATE {_copy(schema, entry)} AS a SET {CHANGED} = true FROM {source} AS t "
                f"WHERE {_joined(connection, entry)} AND NOT a.{CHANGED} "
                f"AND t.xmin <> a.{VERSION} AND t.xmin <> $1::text::xid",
                (entry.transaction,),
            )
            marked.append(entry)
    return marked


def carry_on(connection: Connection, schema: str, entries: Iterable[Entry]) -> None:
    """After a step, in its transaction: note the versions that it has given to rows which no other session changed.

    The entries are what `mark_changed` and `follow` returned.
    """
    for entry in entries:
        with _unless_unknown(connection):
            connection.exec_driver_sql(
                f"UPDATE {_copy(schema, entry)} AS a SET {VERSION} = t.xmin FROM {_source(connection, entry)} AS t "
                f"WHERE {_joined(connection, entry)} AND NOT a.{CHANGED} AND t.xmin <> a.{VERSION}"
            )


def follow(connection: Connection, schema: str, back: PutBack, waiting: Iterable[Entry]) -> list[Entry]:
    """Point entries of columns to the table that has its rows back, for it may be made anew; returns those entries.

    Where some of its rows stayed in the archive, what has their key in the table is another row.
    """
    following = []
    for entry in waiting:
        if entry.relation == back.entry.relation:
            with _unless_unknown(connection):
                following.append(_follow(connection, schema, back, entry))
    return following


def _follow(connection: Connection, schema: str, back: PutBack, entry: Entry) -> Entry:
    names = {column.number: column.name for column in back.entry.columns}
    numbers = {row.name: row.number for row in connection.exec_driver_sql(_COLUMNS, (back.table,))}
    keys = [column for column in entry.columns if column.key]
    if any(names.get(key.number) not in numbers for key in keys):
        raise _UnknownError
    if back.left:
        same = " AND ".join(f"r.{quote_identifier(names[key.number])} = a.{quote_identifier(key.name)}" for key in keys)
        copy, rows = _copy(schema, entry), _copy(schema, back.entry)
        connection.exec_driver_sql(f"UPDATE {copy} AS a SET {CHANGED} = true FROM {rows} AS r WHERE {same}")
    columns = tuple(
        replace(column, number=numbers[names[column.number]]) if column.key else column for column in entry.columns
    )
    Manifest(connection, schema).update(entry.id, relation=back.table, columns=columns)
    return replace(entry, relation=back.table, columns=columns)


def _source(connection: Connection, entry: Entry) -> str:
    """The live table, as what stands behind FROM."""
    live = connection.exec_driver_sql(_RELATION, (entry.relation,)).one_or_none()
    if live is None:
        raise _UnknownError
    return live.name if live.kind == "p" else f"ONLY {live.name}"


def _copy(schema: str, entry: Entry) -> str:
    return stored(schema, entry.stored_in or "")


def _joined(connection: Connection, entry: Entry) -> str:
    """The condition by which the live row `t` is the archived row `a`'s.

    By number: a revision may have renamed the columns, and another one has yet to give their names back.
    """
    live = {row.number: row for row in connection.exec_driver_sql(_COLUMNS, (entry.relation,))}
    keys = [column for column in entry.columns if column.key]
    if any(key.number not in live for key in keys):
        raise _UnknownError
    return " AND ".join(
        f"t.{quote_identifier(live[key.number].name)} = a.{quote_identifier(key.name)}::{live[key.number].type}"
        for key in keys
    )


@contextmanager
def _unless_unknown(connection: Connection) -> Iterator[None]:
    """Where the block fails, take back what it has done, and go on: the rows count as changed, which loses nothing.

    `exact_settings` makes PostgreSQL raise an error where a policy hides rows from this role.
    """
    try:
        with savepoint(connection), exact_settings(connection):
            yield
    except _UnknownError:
        pass
    except DBAPIError as error:
        if is_passing(error):
            raise
