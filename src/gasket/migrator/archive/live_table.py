"""A table that archived rows go back to, as it is after the upgrade, and the rows as they would be in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection

from gasket.migrator.archive.copies import LEFT_BEHIND
from gasket.migrator.archive.entries import Entry
from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.schema import stored
from gasket.postgres.quoting import quote_identifier

# adbin of a constant begins with that: evaluating another default might draw from a sequence.
_COLUMNS = """
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attgenerated <> '' AS generated,
    a.attidentity = 'a' AS always_identity, CASE WHEN a.atthasmissing THEN a.attmissingval::text END AS filled_in,
    CASE WHEN d.adbin::text LIKE '{CONST %' THEN pg_get_expr(d.adbin, d.adrelid) END AS default
FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
# Through to_jsonb: columns that only newer servers have. A partition's clone of its parent's key counts, a key's own
# clones for the partitions of the table it refers to do not.
_FOREIGN_KEYS = """
SELECT con.conname AS name, con.confrelid AS parent, p.relkind::text AS kind, n.nspname AS parent_schema,
    p.relname AS parent_name, con.condeferrable AS deferrable, con.condeferred AS deferred,
    array(SELECT a.attname::text FROM unnest(con.conkey) WITH ORDINALITY AS k(number, place)
          JOIN pg_attribute AS a ON a.attrelid = con.conrelid AND a.attnum = k.number ORDER BY k.place) AS columns,
    array(SELECT a.attname::text FROM unnest(con.confkey) WITH ORDINALITY AS k(number, place)
          JOIN pg_attribute AS a ON a.attrelid = con.confrelid AND a.attnum = k.number
          ORDER BY k.place) AS parent_columns
FROM pg_constraint AS con JOIN pg_class AS p ON p.oid = con.confrelid JOIN pg_namespace AS n ON n.oid = p.relnamespace
WHERE con.contype = 'f' AND con.conrelid = $1::bigint::oid
  AND coalesce((to_jsonb(con) ->> 'conenforced')::boolean, true)
  AND NOT coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false)
  AND NOT EXISTS (SELECT FROM pg_constraint AS up WHERE up.oid = con.conparentid AND up.conrelid = con.conrelid)
ORDER BY con.conname
"""
# Those over generated columns are left to the server: an archived row has no such columns.
_UNIQUE_INDEXES = """
SELECT array(SELECT pg_get_indexdef(i.indexrelid, k, true) FROM generate_series(1, i.indnkeyatts) AS k) AS expressions,
    pg_get_expr(i.indpred, i.indrelid) AS predicate,
    coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_are_equal, used.columns
FROM pg_index AS i CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(a.attname::text), '{}') AS columns, bool_or(a.attgenerated <> '') AS generated
    FROM pg_attribute AS a
    WHERE a.attrelid = i.indrelid AND (a.attnum = ANY (i.indkey::smallint[]) OR a.attnum IN (
        SELECT d.refobjsubid FROM pg_depend AS d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refobjid = i.indrelid))
) AS used
WHERE i.indrelid = $1::bigint::oid AND i.indisunique AND i.indislive AND NOT i.indisexclusion
  AND used.generated IS NOT TRUE
ORDER BY i.indexrelid
"""


class UnfitError(Exception):
    """The table is not what the rows were taken from, or does not take them; the message is the reason that is kept."""


class LiveColumn(msgspec.Struct, frozen=True):
    """`filled_in` and `default` are SQL for what ADD COLUMN wrote into rows there were, and for a constant default."""

    name: str
    type: str
    always_identity: bool
    filled_in: str | None
    default: str | None

    @property
    def quoted(self) -> str:
        """Its name as SQL."""
        return quote_identifier(self.name)

    @property
    def archived(self) -> str:
        """The value of the archived row `a`, in the type that the column has now."""
        return f"a.{self.quoted}::{self.type}"


class ForeignKey(msgspec.Struct, frozen=True):
    """`parent` is an oid, `parent_source` what stands behind FROM; `columns` refer to `keys`, one to one."""

    name: str
    parent: int
    parent_source: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    timing: str


class _UniqueIndex(msgspec.Struct, frozen=True):
    """`keys` and `predicate` are SQL over `columns`, which are names."""

    keys: tuple[str, ...]
    predicate: str | None
    nulls_are_equal: bool
    columns: tuple[str, ...]


class Target(msgspec.Struct, frozen=True):
    """The live table (`oid`) of an entry. `table` is its name as SQL, `source` what stands behind FROM or UPDATE.

    `values` are the archived columns that go back, `keys` those by which a row is found, `rest` the other columns.
    `changes_known`: the marks of changed rows are right; else every row is taken for changed.
    Where only columns go back, foreign keys and unique indexes are those that one of them has a part in.
    """

    entry: Entry
    archive: str
    oid: int
    table: str
    source: str
    values: tuple[LiveColumn, ...]
    keys: tuple[LiveColumn, ...]
    rest: tuple[LiveColumn, ...]
    foreign_keys: tuple[ForeignKey, ...]
    unique_indexes: tuple[_UniqueIndex, ...]
    changes_known: bool

    @property
    def joined(self) -> str:
        """The condition by which the live row `t` is the archived row `a`'s."""
        return " AND ".join(f"t.{key.quoted} = {key.archived}" for key in self.keys)

    def brings(self, key: ForeignKey) -> bool:
        """Whether rows that the key may refer to come back with this one."""
        by_key = self.entry.kind == LossKind.COLUMNS
        return key.parent == self.oid and not (by_key and {v.name for v in self.values}.isdisjoint(key.keys))

    def incoming(self, rows: str = "true") -> str:
        """A query for the rows that nothing speaks against yet, as they would be in the table.

        `gasket_row` is the row's place in the archive, `gasket_place` its place in the table, if it has one. `rows` is
        a condition on the archived rows `a`.
        """
        values = ", ".join(f"{value.archived} AS {value.quoted}" for value in self.values)
        where = f"WHERE a.{LEFT_BEHIND} IS NULL AND {rows}"
        if not self.keys:
            return (
                f"SELECT a.ctid AS gasket_row, NULL::text AS gasket_place{values and ', '}{values} "
                f"FROM {self.archive} AS a {where}"
            )
        rest = ", ".join(f"t.{column.quoted}" for column in (*self.keys, *self.rest))
        return (
            f"SELECT a.ctid AS gasket_row, {PLACE} AS gasket_place, {rest}, {values} "
            f"FROM {self.archive} AS a JOIN {self.source} AS t ON {self.joined} {where}"
        )


PLACE = "t.tableoid || ' ' || t.ctid"
"""Where the live row `t` is; in a partitioned table the second half alone would not tell."""


def read_target(connection: Connection, schema: str, entry: Entry, *, marked: bool) -> Target:
    """Look up what an entry's rows go back to; `marked`: it is known which rows of the entry's table were changed.

    Raises:
        UnfitError: the table, or one of the columns, is not there.
    """
    found = connection.exec_driver_sql(
        "SELECT c.oid, c.relkind::text AS kind FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')",
        (entry.schema_name, entry.object_name),
    ).one_or_none()
    if found is None:
        raise UnfitError(f"there is no table {entry.schema_name}.{entry.object_name}")
    rows = connection.exec_driver_sql(_COLUMNS, (found.oid,)).all()
    live = {row.name: _live_column(row) for row in rows if not row.generated}
    if missing := [column.name for column in entry.columns if column.name not in live]:
        raise UnfitError(f"{entry.schema_name}.{entry.object_name} has no column {', '.join(missing)}")
    keys = {column.name for column in entry.columns if column.key}
    values = {column.name for column in entry.columns} - keys
    by_key = entry.kind == LossKind.COLUMNS

    def comes_back(columns: Iterable[str]) -> bool:
        return not values.isdisjoint(columns)

    foreign_keys = (_foreign_key(row) for row in connection.exec_driver_sql(_FOREIGN_KEYS, (found.oid,)))
    unique_indexes = (
        _UniqueIndex(tuple(row.expressions), row.predicate, row.nulls_are_equal, tuple(row.columns))
        for row in connection.exec_driver_sql(_UNIQUE_INDEXES, (found.oid,))
    )
    return Target(
        entry=entry,
        archive=stored(schema, entry.stored_in or ""),
        oid=found.oid,
        table=entry.quoted,
        source=entry.quoted if found.kind == "p" else f"ONLY {entry.quoted}",
        values=_pick(live, values),
        keys=_pick(live, keys),
        rest=_pick(live, live.keys() - values - keys),
        foreign_keys=tuple(key for key in foreign_keys if not by_key or comes_back(key.columns)),
        unique_indexes=tuple(index for index in unique_indexes if not by_key or comes_back(index.columns)),
        changes_known=marked and entry.relation == found.oid,
    )


def _pick(live: dict[str, LiveColumn], names: Iterable[str]) -> tuple[LiveColumn, ...]:
    wanted = set(names)
    return tuple(column for column in live.values() if column.name in wanted)


def _live_column(row: Any) -> LiveColumn:
    filled_in = None
    if row.filled_in is not None:
        # An array of one element (PostgreSQL manual, "pg_attribute"); of an array's column it is an array of arrays.
        literal = "'" + row.filled_in.replace("'", "''") + "'"
        filled_in = f"(({literal}::text[])[1])::{row.type}"
    return LiveColumn(
        name=row.name,
        type=row.type,
        always_identity=row.always_identity,
        filled_in=filled_in,
        default=None if row.default is None else f"({row.default})::{row.type}",
    )


def _foreign_key(row: Any) -> ForeignKey:
    parent = f"{quote_identifier(row.parent_schema)}.{quote_identifier(row.parent_name)}"
    deferrable = f"DEFERRABLE INITIALLY {'DEFERRED' if row.deferred else 'IMMEDIATE'}"
    return ForeignKey(
        name=row.name,
        parent=row.parent,
        parent_source=parent if row.kind == "p" else f"ONLY {parent}",
        columns=tuple(row.columns),
        keys=tuple(row.parent_columns),
        timing=deferrable if row.deferrable else "NOT DEFERRABLE",
    )
