"""Archived rows written into their tables: of tables that refer to each other in a circle, all at once.

A row that does not fit is marked with the reason and stays in the archive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from sqlalchemy import Connection

from gasket.migrator.archive.copies import CHANGED, LEFT_BEHIND
from gasket.migrator.archive.live_table import PLACE, ForeignKey, LiveColumn, Target, UnfitError
from gasket.migrator.archive.refused_rows import leave_refused, leave_unreadable
from gasket.migrator.archive.switched_off import switched_off
from gasket.postgres.quoting import quote_identifier

_EXISTS = "another row has its key"
_ORPHANED = "the row it refers to is gone"
_GONE = "its row is gone"
_CHANGED_SINCE = "its row was changed since, and has a value"


def write_group(connection: Connection, group: Sequence[Target], *, one_by_one: bool) -> list[Mapping[str, int]]:
    """Write the rows that fit and mark the others in the archive; returns for each table how many stay, by reason.

    `one_by_one`: find the rows that the server refuses first. To be called in a savepoint: after an error everything
    has to be taken back.

    Raises:
        UnfitError: the server took the statement, and not every row is in the table afterwards.
        sqlalchemy.exc.DBAPIError: the server refuses a row, or a passing fault.
    """
    for target in group:
        connection.exec_driver_sql(f"LOCK TABLE {target.source} IN SHARE ROW EXCLUSIVE MODE")
    # Tried one by one, a row may come before the row of the same table that it refers to.
    unchecked = [
        (target, key)
        for target in group
        for key in target.foreign_keys
        for parent in group
        if parent.brings(key) and (one_by_one or parent is not target)
    ]
    with switched_off(connection, group, unchecked):
        empty = {target.oid for target in group if not target.keys and _is_empty(connection, target)}
        for target in group:
            if target.entry.restored_at:  # what did not fit once may fit now
                _forget_reasons(connection, target)
            if one_by_one:
                leave_unreadable(connection, target)
            _leave_misfits(connection, target, empty=target.oid in empty)
        _leave_orphans(connection, group)
        if one_by_one:
            for target in group:
                leave_refused(connection, target, partial(_update if target.keys else _insert, target))
            _leave_orphans(connection, group)
        return [_write(connection, target, empty=target.oid in empty) for target in group]


def _leave_misfits(connection: Connection, target: Target, *, empty: bool) -> None:
    if target.keys:
        _leave_gone(connection, target)
        _leave_changed(connection, target)
        _leave_duplicates(connection, target)
    elif not empty:
        _remove_identical(connection, target)
        _leave_duplicates(connection, target)


def _leave_orphans(connection: Connection, group: Sequence[Target]) -> None:
    """A row without parent may be the parent of another: to a fixpoint, where the tables refer to themselves."""
    while sum(
        _leave_orphans_of(connection, target, key, [parent for parent in group if parent.brings(key)])
        for target in group
        for key in target.foreign_keys
    ):
        if not any(parent.brings(key) for target in group for key in target.foreign_keys for parent in group):
            return


def _write(connection: Connection, target: Target, *, empty: bool) -> Mapping[str, int]:
    """Count what is in the table: what a statement was given, a rule or a trigger may have taken."""
    left = dict(_count_left(connection, target))
    given = left.pop(None, 0)
    if target.keys:
        connection.exec_driver_sql(_update(target, "true"))
        arrived = _count(connection, _updated(target))
    else:
        before = 0 if empty else _count(connection, target.source)
        connection.exec_driver_sql(_insert(target, "true"))
        arrived = _count(connection, target.source) - before
    if arrived != given:
        raise UnfitError(
            f"only {arrived} of {given} rows arrived: a rule or a trigger of {target.entry.name} takes the others"
        )
    return {reason: number for reason, number in left.items() if reason is not None}


def _count(connection: Connection, rows: str) -> int:
    number: int = connection.exec_driver_sql(f"SELECT count(*) FROM {rows}").scalar_one()
    return number


def _insert(target: Target, rows: str) -> str:
    columns = ", ".join(value.quoted for value in target.values)
    return (
        f"INSERT INTO {target.table} {columns and f'({columns})'} OVERRIDING SYSTEM VALUE "
        f"SELECT {columns} FROM ({target.incoming(rows)}) AS i"
    )


def _update(target: Target, rows: str) -> str:
    changes = ", ".join(f"{value.quoted} = {value.archived}" for value in target.values)
    return (
        f"UPDATE {target.source} AS t SET {changes} FROM {target.archive} AS a "
        f"WHERE {target.joined} AND a.{LEFT_BEHIND} IS NULL AND {rows} AND NOT {_same(target)}"
    )


def _updated(target: Target) -> str:
    """Archived rows whose values are in the live row, as what stands behind FROM."""
    return (
        f"{target.archive} AS a JOIN {target.source} AS t ON {target.joined} "
        f"WHERE a.{LEFT_BEHIND} IS NULL AND {_same(target)}"
    )


def _same(target: Target) -> str:
    live = ", ".join(f"t.{value.quoted}" for value in target.values)
    kept = ", ".join(value.archived for value in target.values)
    return f"ROW({live})::record *= ROW({kept})::record"


def _is_empty(connection: Connection, target: Target) -> bool:
    """Whether the table has no row at all, as one that was just made."""
    return not connection.exec_driver_sql(f"SELECT EXISTS (SELECT FROM {target.source})").scalar_one()


def _remove_identical(connection: Connection, target: Target) -> None:
    """Rows that are there already, to the last column, are no loss: what upgrade() inserts by itself.

    Counted, not only found: a table without a key may hold the same row twice.
    """
    image = f'ROW({", ".join(value.quoted for value in target.values)})::text COLLATE "C"'
    numbered = "SELECT {place}, image, row_number() OVER (PARTITION BY image) AS number FROM ({rows}) AS r"
    live = f"SELECT {image} AS image FROM {target.source}"
    rows = (
        f"SELECT gasket_row, image FROM (SELECT gasket_row, {image} AS image FROM ({target.incoming()}) AS i) AS i "
        f"WHERE image IN ({live})"
    )
    connection.exec_driver_sql(
        f"DELETE FROM {target.archive} WHERE ctid IN (SELECT i.gasket_row "
        f"FROM ({numbered.format(place='gasket_row', rows=rows)}) AS i "
        f"JOIN ({numbered.format(place='1', rows=live)}) AS t USING (image, number))"
    )


def _leave_duplicates(connection: Connection, target: Target) -> None:
    """Rows whose unique key another live row has, by any unique index: partial ones and those over expressions too."""
    for index in target.unique_indexes:
        keys = ", ".join(f"{key} AS k{number}" for number, key in enumerate(index.keys))
        where = f"WHERE {index.predicate}" if index.predicate else ""
        same = " IS NOT DISTINCT FROM " if index.nulls_are_equal else " = "
        equal = " AND ".join(f"i.k{number}{same}t.k{number}" for number in range(len(index.keys)))
        _leave(
            connection,
            target,
            _EXISTS,
            "SELECT i.gasket_row "
            f"FROM (SELECT gasket_row, gasket_place, {keys} FROM ({target.incoming()}) AS i {where}) AS i "
            f"JOIN (SELECT {PLACE} AS gasket_place, {keys} FROM {target.source} AS t {where}) AS t ON {equal} "
            "WHERE i.gasket_place IS DISTINCT FROM t.gasket_place",
        )


def _leave_orphans_of(connection: Connection, target: Target, key: ForeignKey, parents: Iterable[Target]) -> int:
    """Rows that refer to a row which is neither there nor coming with `parents`; returns how many.

    One with a NULL in its key refers to nothing (PostgreSQL manual, "Foreign Keys": MATCH SIMPLE).
    """
    columns = [quote_identifier(column) for column in key.columns]
    equal = " AND ".join(
        f"p.{quote_identifier(there)} = i.{here}" for there, here in zip(key.keys, columns, strict=True)
    )
    sources = [key.parent_source, *(f"({parent.incoming()})" for parent in parents)]
    missing = " AND ".join(f"NOT EXISTS (SELECT FROM {source} AS p WHERE {equal})" for source in sources)
    refers = " AND ".join(f"i.{column} IS NOT NULL" for column in columns)
    return _leave(
        connection,
        target,
        _ORPHANED,
        f"SELECT i.gasket_row FROM ({target.incoming()}) AS i WHERE {refers} AND {missing}",
    )


def _leave_gone(connection: Connection, target: Target) -> None:
    """Values whose row is not there any more."""
    connection.exec_driver_sql(
        f"UPDATE {target.archive} AS a SET {LEFT_BEHIND} = $1 "
        f"WHERE a.{LEFT_BEHIND} IS NULL AND NOT EXISTS (SELECT FROM {target.source} AS t WHERE {target.joined})",
        (_GONE,),
    )


def _leave_changed(connection: Connection, target: Target) -> None:
    """Values of rows that were changed since the downgrade, unless their place is vacant or has the same value.

    A row that was not changed gets its values back whatever upgrade() computed for it: it computed that from the same
    row.
    """
    changed = f"a.{CHANGED} AND " if target.changes_known else ""
    retyped = {column.name for column in target.entry.columns if column.retyped}
    vacant = " AND ".join(f"({_vacant(value, retyped=value.name in retyped)})" for value in target.values)
    connection.exec_driver_sql(
        f"UPDATE {target.archive} AS a SET {LEFT_BEHIND} = $1 FROM {target.source} AS t "
        f"WHERE a.{LEFT_BEHIND} IS NULL AND {changed}{target.joined} AND NOT ({vacant})",
        (_CHANGED_SINCE,),
    )


def _forget_reasons(connection: Connection, target: Target) -> None:
    """Take every row for one that may fit: the rows there now were left behind by an earlier try."""
    connection.exec_driver_sql(f"UPDATE {target.archive} SET {LEFT_BEHIND} = NULL WHERE {LEFT_BEHIND} IS NOT NULL")


def _count_left(connection: Connection, target: Target) -> Mapping[str | None, int]:
    """How many archived rows stay, by reason; under None those that nothing speaks against."""
    rows = connection.exec_driver_sql(f"SELECT {LEFT_BEHIND}, count(*) FROM {target.archive} GROUP BY 1 ORDER BY 1")
    return {row[0]: row[1] for row in rows}


def _vacant(column: LiveColumn, *, retyped: bool) -> str:
    """A column that only changed its type was there all the time: its value, NULL too, may have been set on purpose."""
    live = f"t.{column.quoted}"
    values = [column.archived]
    if not retyped:
        values += [value for value in (column.filled_in, column.default) if value]
    # *= compares what is stored and needs no operator of the type (PostgreSQL manual, "Composite Type Comparison").
    same = [f"ROW({live})::record *= ROW({value})::record" for value in values]
    return " OR ".join(same if retyped else [f"{live} IS NULL", *same])


def _leave(connection: Connection, target: Target, reason: str, rows: str) -> int:
    return connection.exec_driver_sql(
        f"UPDATE {target.archive} SET {LEFT_BEHIND} = $1 WHERE ctid IN ({rows})", (reason,)
    ).rowcount
