"""What a statement asks of rows that are there: found in a scratch database, whose tables are empty, by its catalog.

PostgreSQL says it, not the text: a constraint, a unique index or NOT NULL that is in the catalog after a statement and
was not before. Tables and columns are known by number, so a revision that renames them does not hide them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import asyncpg
import msgspec

from gasket.migrator.sql.reading import Reading, touched_tables
from gasket.migrator.sql.widening import widens

_ASKS_NOTHING = frozenset({"insert", "update", "delete", "merge", "truncate", "comment", "grant", "revoke", "lock"})
ANY_TABLE = "*"
"""In the place of a table's name: a statement writes, and its text does not tell where."""

# A row: kind, relation, key, columns by number, expressions, another relation, its columns. `key` tells two
# requirements of one kind and relation apart.
_REQUIREMENTS = """
WITH own AS (
    SELECT c.oid, c.relispartition FROM pg_class AS c WHERE c.oid = ANY ($1::bigint[]::oid[])
)
SELECT 'column', a.attrelid::bigint, a.attnum::text, ARRAY[a.attnum],
    ARRAY[format_type(a.atttypid, a.atttypmod),
          CASE WHEN a.attgenerated <> '' THEN 'generated'
               WHEN a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL THEN 'filled' ELSE '' END]
        || ARRAY(SELECT e.enumlabel::text FROM pg_enum AS e WHERE e.enumtypid = a.atttypid ORDER BY e.enumsortorder),
    NULL::bigint, NULL::int2[]
FROM own JOIN pg_attribute AS a ON a.attrelid = own.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type AS t ON t.oid = a.atttypid
UNION ALL
SELECT 'not null', a.attrelid::bigint, a.attnum::text, ARRAY[a.attnum], NULL, NULL, NULL
FROM own JOIN pg_attribute AS a ON a.attrelid = own.oid AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped
WHERE NOT EXISTS (SELECT FROM pg_constraint AS n WHERE n.conrelid = own.oid AND n.contype = 'n'
                  AND n.conkey[1] = a.attnum AND NOT n.convalidated)
UNION ALL
SELECT 'check', c.conrelid::bigint, c.conname::text, c.conkey, ARRAY[pg_get_expr(c.conbin, c.conrelid)], NULL, NULL
FROM own JOIN pg_constraint AS c ON c.conrelid = own.oid AND c.contype = 'c' AND c.convalidated
UNION ALL
SELECT 'foreign key', c.conrelid::bigint, c.conname::text, c.conkey, NULL, c.confrelid::bigint, c.confkey
FROM own JOIN pg_constraint AS c ON c.conrelid = own.oid AND c.contype = 'f' AND c.convalidated AND c.conparentid = 0
UNION ALL
SELECT 'unique', i.indrelid::bigint, i.indexrelid::regclass::text, i.indkey::int2[],
    ARRAY[coalesce(pg_get_expr(i.indpred, i.indrelid), 'true'),
          coalesce(to_jsonb(i) ->> 'indnullsnotdistinct', 'false')]
        || ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts) AS n),
    NULL, NULL
FROM own JOIN pg_index AS i ON i.indrelid = own.oid AND i.indisunique AND i.indisvalid
UNION ALL
SELECT 'expression', i.indrelid::bigint, i.indexrelid::regclass::text, NULL,
    coalesce(pg_get_expr(i.indpred, i.indrelid), 'true')
        || ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts) AS n),
    NULL, NULL
FROM own JOIN pg_index AS i ON i.indrelid = own.oid AND NOT i.indisunique AND i.indisvalid AND i.indexprs IS NOT NULL
UNION ALL
SELECT 'expression', a.attrelid::bigint, a.attnum::text, NULL,
    ARRAY['true', format('(%s)::%s', pg_get_expr(d.adbin, d.adrelid), format_type(a.atttypid, a.atttypmod))], NULL, NULL
FROM own JOIN pg_attribute AS a ON a.attrelid = own.oid AND a.attgenerated = 's' AND NOT a.attisdropped
JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT 'exclusion', c.conrelid::bigint, c.conname::text, c.conkey,
    ARRAY(SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
          FROM unnest(c.conexclop) WITH ORDINALITY AS x(operator, place) JOIN pg_operator AS o ON o.oid = x.operator
          JOIN pg_namespace AS n ON n.oid = o.oprnamespace ORDER BY x.place), NULL, NULL
FROM own JOIN pg_constraint AS c ON c.conrelid = own.oid AND c.contype = 'x'
UNION ALL
SELECT 'partition bound', own.oid::bigint, '', NULL, ARRAY[pg_get_partition_constraintdef(own.oid)], NULL, NULL
FROM own WHERE own.relispartition
UNION ALL
SELECT 'domain', a.attrelid::bigint, a.attnum || ' ' || c.conname, ARRAY[a.attnum], ARRAY[pg_get_constraintdef(c.oid)],
    NULL, NULL
FROM pg_constraint AS c JOIN pg_attribute AS a ON a.atttypid = c.contypid AND NOT a.attisdropped
JOIN own ON own.oid = a.attrelid WHERE c.contypid <> 0 AND c.contype = 'c' AND c.convalidated
UNION ALL
SELECT 'not null', a.attrelid::bigint, 'domain ' || a.attnum, ARRAY[a.attnum], NULL, NULL, NULL
FROM pg_type AS t JOIN pg_attribute AS a ON a.atttypid = t.oid AND NOT a.attisdropped
JOIN own ON own.oid = a.attrelid WHERE t.typtype = 'd' AND t.typnotnull
"""


_NAMES = """
SELECT c.oid::bigint, c.oid::regclass::text, a.attnum, a.attname::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND NOT starts_with(n.nspname, 'pg_') AND n.nspname <> 'information_schema'
"""


class _Row(NamedTuple):
    """One of `_REQUIREMENTS`."""

    kind: str
    relation: int
    key: str
    columns: tuple[int, ...]
    expressions: tuple[str, ...]
    other: int | None
    other_columns: tuple[int, ...]


class Requirement(msgspec.Struct, frozen=True):
    """What rows of `table` have to fulfil for statement number `statement` (from 1) to pass.

    `kind` is `no rows`, `not null`, `type`, `check`, `foreign key`, `unique`, `exclusion`, `partition bound`,
    `domain` or `expression`: of an index or a stored column, it must give a value. Names are those before the first
    pending revision; a column that is newer is None. `expressions` as the kind has them, `after_writes`: an earlier
    pending statement writes rows of the table.
    """

    statement: int
    kind: str
    table: str
    columns: tuple[str | None, ...] = ()
    expressions: tuple[str, ...] = ()
    other: str | None = None
    other_columns: tuple[str | None, ...] = ()
    after_writes: bool = False


_Rows = Mapping[tuple[str, int, str], _Row]


class _Names(msgspec.Struct, frozen=True):
    """Tables and columns as they were before the first pending revision, by oid and number. They are those of live."""

    tables: Mapping[int, str]
    columns: Mapping[tuple[int, int], str]

    def of(self, relation: int, numbers: tuple[int, ...]) -> tuple[str | None, ...]:
        """The columns; None for one that was not there."""
        return tuple(self.columns.get((relation, number)) for number in numbers)


class SeenRequirements:
    """What statements ask of rows, by the catalog of the scratch database that they run on.

    Made before the first pending revision; `look` comes before each revision, `after` after each of its statements.
    """

    def __init__(self, connection: asyncpg.Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._names: _Names | None = None
        self._rows: _Rows = {}
        self._written: set[str] = set()

    async def look(self) -> None:
        """See what the catalog asks already."""
        if self._names is None:
            self._names = await _read_names(self._connection)
        self._rows = await _read_rows(self._connection, self._names)

    async def after(self, statement: int, readings: Sequence[Reading]) -> list[Requirement]:
        """What statement number `statement` asks of rows that were there before the first pending revision."""
        assert self._names is not None
        found: list[Requirement] = []
        if not all(reading.kind in _ASKS_NOTHING for reading in readings):
            rows = await _read_rows(self._connection, self._names)
            found = _new_requirements(self._rows, rows, self._names, statement=statement, written=self._written)
            self._rows = rows
        self._written.update(tables_written(readings, self._schema))
        return found


async def _read_names(connection: asyncpg.Connection) -> _Names:
    """The tables as they are now; a name is SQL, a column's is not quoted."""
    tables, columns = {}, {}
    for oid, table, number, column in await connection.fetch(_NAMES):
        tables[oid] = table
        if number is not None:
            columns[oid, number] = column
    return _Names(tables, columns)


async def _read_rows(connection: asyncpg.Connection, names: _Names) -> _Rows:
    """What the catalog of the scratch database asks of the rows of these tables, by kind, relation and key."""
    found = {}
    for kind, relation, key, columns, expressions, other, more in await connection.fetch(
        _REQUIREMENTS, list(names.tables)
    ):
        found[kind, relation, key] = _Row(
            kind, relation, key, tuple(columns or ()), tuple(expressions or ()), other, tuple(more or ())
        )
    return found


def _new_requirements(
    before: _Rows, after: _Rows, names: _Names, *, statement: int, written: Collection[str]
) -> list[Requirement]:
    """What a statement asks of rows that were there before the first pending revision. Pure."""
    asked_before = {row._replace(key="") for row in before.values()}
    columns = _columns(before), _columns(after)
    found = []
    for key, row in after.items():
        table = names.tables.get(row.relation)
        if table is None or row._replace(key="") in asked_before:
            continue
        kind = _kind(row, *columns, known=key in before)
        if kind is not None:
            requirement = Requirement(
                statement,
                kind,
                table,
                names.of(row.relation, row.columns),
                row.expressions,
                names.tables.get(row.other) if row.other else None,
                names.of(row.other, row.other_columns) if row.other else (),
                after_writes=table.replace('"', "") in written or ANY_TABLE in written,
            )
            found.append(requirement)
    return found


_Columns = Mapping[tuple[int, int], tuple[str, ...]]
"""By table and number: the type of a column, and how it gets a value in the rows that are there."""


def _columns(rows: _Rows) -> _Columns:
    return {(row.relation, row.columns[0]): row.expressions for row in rows.values() if row.kind == "column"}


def _kind(row: _Row, before: _Columns, after: _Columns, *, known: bool) -> str | None:
    """The kind of the requirement; None where rows that are there cannot break it."""
    columns = [(row.relation, number) for number in row.columns]
    retyped = [column for column in columns if column in before and before[column][0] != after[column][0]]
    if row.kind == "column":
        return "type" if retyped and not widens(before[retyped[0]][0], row.expressions[0]) else None
    if known and (retyped or row.kind == "expression"):
        return None  # it is built anew for the type of a column
    if row.kind == "not null" and columns[0] not in before:
        filled = after[columns[0]][1]
        return {"filled": None, "generated": row.kind}.get(filled, "no rows")
    return row.kind


def tables_written(readings: Sequence[Reading], schema: str) -> Iterator[str]:
    """The tables whose rows statements write, those of `schema` without it; ANY_TABLE where the text does not tell."""
    if any(reading.writes_rows is None for reading in readings):
        yield ANY_TABLE
    yield from (table for table, touch in touched_tables(readings, schema) if touch.writes is not False)
