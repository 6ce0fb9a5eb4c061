"""Which archived rows fit: each that does not is marked with the reason and stays in the archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from gasket.migrator.archive.copies import CHANGED, LEFT_BEHIND
from gasket.migrator.archive.targets import PLACE, ForeignKey, LiveColumn, Target, archived, name
from gasket.migrator.connection import quote_identifier

EXISTS = "another row has its key"
ORPHANED = "the row it refers to is gone"
GONE = "its row is gone"
CHANGED_SINCE = "its row was changed since, and has a value"


def is_empty(connection: Connection, target: Target) -> bool:
    """Whether the table has no row at all, as one that was just made."""
    return not connection.exec_driver_sql(f"SELECT EXISTS (SELECT FROM {target.source})").scalar_one()


def remove_identical(connection: Connection, target: Target) -> None:
    """Rows that are there already, to the last column, are no loss: what upgrade() inserts by itself.

    Counted, not only found: a table without a key may hold the same row twice.
    """
    image = f'ROW({", ".join(map(name, target.values))})::text COLLATE "C"'
    numbered = "SELECT {place}, image, row_number() OVER (PARTITION BY image) AS number FROM ({rows}) AS r"
    live = f"SELECT {image} AS image FROM {target.source}"
    rows = (
        f"SELECT gasket_row, image FROM (SELECT gasket_row, {image} AS image FROM ({target.incoming}) AS i) AS i "
        f"WHERE image IN ({live})"
    )
    connection.exec_driver_sql(
        f"DELETE FROM {target.archive} WHERE ctid IN (SELECT i.gasket_row "
        f"FROM ({numbered.format(place='gasket_row', rows=rows)}) AS i "
        f"JOIN ({numbered.format(place='1', rows=live)}) AS t USING (image, number))"
    )


def leave_duplicates(connection: Connection, target: Target) -> None:
    """Rows whose unique key another live row has, by any unique index: partial ones and those over expressions too."""
    for index in target.unique_indexes:
        keys = ", ".join(f"{key} AS k{number}" for number, key in enumerate(index.keys))
        where = f"WHERE {index.predicate}" if index.predicate else ""
        same = " IS NOT DISTINCT FROM " if index.nulls_are_equal else " = "
        equal = " AND ".join(f"i.k{number}{same}t.k{number}" for number in range(len(index.keys)))
        _leave(
            connection,
            target,
            EXISTS,
            f"SELECT i.gasket_row FROM (SELECT gasket_row, gasket_place, {keys} FROM ({target.incoming}) AS i {where}) "
            f"AS i JOIN (SELECT {PLACE} AS gasket_place, {keys} FROM {target.source} AS t {where}) AS t ON {equal} "
            "WHERE i.gasket_place IS DISTINCT FROM t.gasket_place",
        )


def leave_orphans(connection: Connection, target: Target, key: ForeignKey, parents: Iterable[Target]) -> int:
    """Rows that refer to a row which is neither there nor coming with `parents`; returns how many.

    One with a NULL in its key refers to nothing (PostgreSQL manual, "Foreign Keys": MATCH SIMPLE).
    """
    columns = [quote_identifier(column) for column in key.columns]
    equal = " AND ".join(
        f"p.{quote_identifier(there)} = i.{here}" for there, here in zip(key.keys, columns, strict=True)
    )
    sources = [key.parent_source, *(f"({parent.incoming})" for parent in parents)]
    missing = " AND ".join(f"NOT EXISTS (SELECT FROM {source} AS p WHERE {equal})" for source in sources)
    refers = " AND ".join(f"i.{column} IS NOT NULL" for column in columns)
    return _leave(
        connection,
        target,
        ORPHANED,
        f"SELECT i.gasket_row FROM ({target.incoming}) AS i WHERE {refers} AND {missing}",
    )


def leave_gone(connection: Connection, target: Target) -> None:
    """Values whose row is not there any more."""
    connection.exec_driver_sql(
        f"UPDATE {target.archive} AS a SET {LEFT_BEHIND} = $1 "
        f"WHERE a.{LEFT_BEHIND} IS NULL AND NOT EXISTS (SELECT FROM {target.source} AS t WHERE {target.joined})",
        (GONE,),
    )


def leave_changed(connection: Connection, target: Target, *, trusted: bool) -> None:
    """Values of rows that somebody changed since the downgrade, unless their place is vacant or has the same value.

    A row that nobody changed gets its values back whatever upgrade() computed for it: it computed that from the same
    row. `trusted` says that the marks of changed rows are right; else every row is taken for changed.
    """
    changed = f"a.{CHANGED} AND " if trusted else ""
    retyped = {column.name for column in target.entry.columns if column.retyped}
    vacant = " AND ".join(f"({_vacant(value, retyped=value.name in retyped)})" for value in target.values)
    connection.exec_driver_sql(
        f"UPDATE {target.archive} AS a SET {LEFT_BEHIND} = $1 FROM {target.source} AS t "
        f"WHERE a.{LEFT_BEHIND} IS NULL AND {changed}{target.joined} AND NOT ({vacant})",
        (CHANGED_SINCE,),
    )


def count_left(connection: Connection, target: Target) -> Mapping[str, int]:
    """How many rows stay, by reason."""
    rows = connection.exec_driver_sql(
        f"SELECT {LEFT_BEHIND}, count(*) FROM {target.archive} WHERE {LEFT_BEHIND} IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    return {row[0]: row[1] for row in rows}


def _vacant(column: LiveColumn, *, retyped: bool) -> str:
    """A column that only changed its type was there all the time: what it holds, NULL too, somebody may have meant."""
    live = f"t.{name(column)}"
    values = [archived(column)]
    if not retyped:
        values += [value for value in (column.filled_in, column.default) if value]
    # *= compares what is stored and needs no operator of the type (PostgreSQL manual, "Composite Type Comparison").
    same = [f"ROW({live})::record *= ROW({value})::record" for value in values]
    return " OR ".join(same if retyped else [f"{live} IS NULL", *same])


def _leave(connection: Connection, target: Target, reason: str, rows: str) -> int:
    return connection.exec_driver_sql(
        f"UPDATE {target.archive} SET {LEFT_BEHIND} = $1 WHERE ctid IN ({rows})", (reason,)
    ).rowcount
