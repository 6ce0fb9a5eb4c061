"""How one loss is copied into the archive, and written into its book."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import asyncpg
import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.entries import NOTE, KeptColumn
from gasket.migrator.archive.faults import is_passing, lagging_own_table, sqlstate
from gasket.migrator.archive.inventory import Loss, LossKind, Relation
from gasket.migrator.archive.manifest import Manifest
from gasket.migrator.archive.partitions import read_partitions
from gasket.migrator.archive.savepoints import savepoint
from gasket.migrator.archive.schema import stored
from gasket.migrator.errors import NotArchivedError
from gasket.postgres.driver import fetch
from gasket.postgres.errors import describe
from gasket.postgres.quoting import quote_identifier

LEFT_BEHIND = "gasket_left_behind"
"""The column of every archive table that says why a row was not put back; NULL while nothing speaks against it."""
VERSION = "gasket_version"
"""The `xmin` of the row whose columns were copied: every change of the row gives it another."""
CHANGED = "gasket_changed"
"""Whether the row was changed between the downgrade and the upgrade."""
_NUMBER = "gasket_number"
"""The primary key of an archive table, where the server demands one."""

# What pg_dump sets for the same reason: types that may go with the step are kept as text, which must lose nothing, and
# a policy must not hide rows (PostgreSQL then raises an error instead).
_EXACT = {
    "row_security": "off",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
}
# MATERIALIZED: each value is read before it is set.
_SET_SETTINGS = """
WITH wanted AS MATERIALIZED (
    SELECT name, value, current_setting(name) AS before FROM unnest($1::text[], $2::text[]) AS s(name, value))
SELECT before, set_config(name, value, true) FROM wanted
"""
_FIRST_USER_OID = 16384  # FirstNormalObjectId in PostgreSQL's access/transam.h
_COLUMNS = f"""
SELECT a.attnum AS number, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
    a.attgenerated <> '' AS generated, a.atttypid >= {_FIRST_USER_OID} AS of_users_type,
    a.attcollation >= {_FIRST_USER_OID} AS of_users_collation,
    c.relkind = 'r' AND m.amname = 'heap' AND pg_relation_size(c.oid) = 0 AS without_pages
FROM pg_class AS c LEFT JOIN pg_am AS m ON m.oid = c.relam JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.oid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_KEYS = """
SELECT array(SELECT k.number FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(number, place)
             WHERE k.place <= i.indnkeyatts ORDER BY k.place)
FROM pg_index AS i
WHERE i.indrelid = $1::bigint::oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
  AND i.indexprs IS NULL AND NOT i.indisexclusion
  AND NOT EXISTS (SELECT FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(number, place)
                  JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
                  WHERE k.place <= i.indnkeyatts AND (NOT a.attnotnull OR a.attgenerated <> ''))
ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid
"""


class Kept(msgspec.Struct, frozen=True):
    """One thing that was copied. `problem`: why it cannot be put back by itself."""

    name: str
    kind: LossKind
    rows: int
    problem: str | None


class _CopyPlan(msgspec.Struct, frozen=True):
    """How a loss is copied: the columns, the query, and why it cannot be put back by itself.

    `types` are those of the query's columns as SQL, by name. `without_pages`: the table's file is empty.
    """

    columns: tuple[KeptColumn, ...]
    select: str
    types: Mapping[str, str]
    problem: str | None
    without_pages: bool


class _Column(NamedTuple):
    number: int
    name: str
    type: str
    generated: bool
    of_users_type: bool
    of_users_collation: bool
    without_pages: bool


def plan_copy(connection: Connection, loss: Loss) -> _CopyPlan | None:
    """Of a lost column only key and value, if there is a key that stays; None when only generated columns go."""
    columns = [c for c in map(_Column._make, fetch(connection, _COLUMNS, loss.relation.oid)) if not c.generated]
    key: frozenset[int] = frozenset()
    problem = None
    marks = {LEFT_BEHIND: ("NULL::text", "text")}
    if loss.kind is LossKind.COLUMNS:
        if not any(column.number in loss.columns for column in columns):
            return None
        key = _find_key(connection, loss.relation.oid, without=loss.columns)
        if key:
            columns = [column for column in columns if column.number in loss.columns | key]
            marks |= {VERSION: ("xmin", "xid"), CHANGED: ("false", "boolean")}
        else:
            problem = (
                f"{loss.relation} has no key that stays (a primary key, or a unique index on NOT NULL columns): its "
                "rows are archived whole and cannot be put back by themselves"
            )
    elif loss.doubtful and not _find_key(connection, loss.relation.oid):
        problem = f"{loss.relation} has no key that tells rows which stay from rows which go: put them back by hand"
    selected = [f"{value} AS {mark}" for mark, (value, _) in marks.items()]
    source = loss.relation.quoted if loss.relation.kind == "p" else f"ONLY {loss.relation.quoted}"
    return _CopyPlan(
        columns=tuple(
            KeptColumn(
                name=c.name,
                number=c.number,
                lost=c.number in loss.columns,
                key=c.number in key,
                retyped=c.number in loss.retyped,
            )
            for c in columns
        ),
        select=f"SELECT {', '.join([*map(_as_kept, columns), *selected])} FROM {source}",
        types={column.name: "text" if column.of_users_type else column.type for column in columns}
        | {mark: kind for mark, (_, kind) in marks.items()},
        problem=problem,
        without_pages=any(column.without_pages for column in columns),
    )


def _find_key(connection: Connection, table: int, *, without: Iterable[int] = ()) -> frozenset[int]:
    """The numbers of columns by which a row is found again: unique, NOT NULL, checked at once. Empty: there are none.

    `table` is an oid, `without` are columns that must not be among them.
    """
    keys = (frozenset(numbers) for (numbers,) in fetch(connection, _KEYS, table))
    return next((key for key in keys if key.isdisjoint(without)), frozenset())


@contextmanager
def exact_settings(connection: Connection) -> Iterator[None]:
    """Until the end of the block: text that loses nothing, and no rows hidden by policies."""
    before = _set_locally(connection, _EXACT.values())
    yield
    _set_locally(connection, before)  # after an error there is nothing to put back: what set them is undone


class Book:
    """Writes the archive of one step of `revision`; `number` is its number, None while it has no entry."""

    def __init__(self, connection: Connection, schema: str, *, revision: str, digest: str | None, release: str) -> None:
        self.number: int | None = None
        self._connection = connection
        self._schema = schema
        self._manifest = Manifest(connection, schema)
        self.revision = revision
        self._step = {"revision": revision, "digest": digest, "release": release}

    def keep(self, loss: Loss) -> Kept | None:
        """Copy it; None when there is nothing to copy.

        Raises:
            NotArchivedError: it cannot be copied.
            sqlalchemy.exc.DBAPIError: the session failed, not the copy.
        """
        try:
            return self._keep_position(loss) if loss.kind is LossKind.SEQUENCE else self._keep_rows(loss)
        except DBAPIError as error:
            if is_passing(error) or lagging_own_table(error, self._schema):
                raise
            mend = "Correct the cause and try again."
            if sqlstate(error) == asyncpg.InsufficientPrivilegeError.sqlstate:
                mend = (
                    "If row-level security hides rows from this role, use a role with BYPASSRLS, or first run: "
                    f"ALTER TABLE {loss.relation.quoted} NO FORCE ROW LEVEL SECURITY."
                )
            raise NotArchivedError(
                revision=self.revision,
                reason=f"copying {loss.relation} failed: {describe(error.orig or error)}",
                mend=mend,
            ) from error

    def note(self, relation: Relation | None, words: str) -> None:
        """Write down what was not archived, of one relation or of none."""
        self._add(relation, kind=NOTE, problem=words)

    def _keep_rows(self, loss: Loss) -> Kept | None:
        plan = plan_copy(self._connection, loss)
        if plan is None:
            return None
        whole = loss.kind is LossKind.TABLE and loss.relation.kind == "p"
        partitions = read_partitions(self._connection, loss.relation.oid) if whole else ()
        entry = self._add(
            loss.relation, kind=loss.kind, columns=plan.columns, problem=plan.problem, partitions=partitions
        )
        table = f"a{entry}"
        target = stored(self._schema, table)
        rows = self._copy(target, plan) if self._has_rows(plan) else 0
        if rows:
            self._manifest.update(entry, stored_in=table, row_count=rows)
        lost = ", ".join(column.name for column in plan.columns if column.lost)
        return Kept(f"{loss.relation} ({lost})" if lost else str(loss.relation), loss.kind, rows, plan.problem)

    def _has_rows(self, plan: _CopyPlan) -> bool:
        """The table is locked, so an empty one stays empty: making a table for its copy takes as long as the step."""
        if plan.without_pages:
            return False
        return bool(self._connection.exec_driver_sql(f"SELECT EXISTS ({plan.select})").scalar_one())

    def _copy(self, target: str, plan: _CopyPlan) -> int:
        """Make the table with its rows; returns how many.

        A policy of the server's, an event trigger, may demand a primary key of every table. With one the copy takes
        twice as long.
        """
        connection = self._connection
        try:
            with savepoint(connection):
                rows = connection.exec_driver_sql(f"CREATE TABLE {target} AS {plan.select}").rowcount
                # Where a publication is FOR ALL TABLES, rows of a table without a key can be changed with this alone.
                connection.exec_driver_sql(f"ALTER TABLE {target} REPLICA IDENTITY FULL")
                return rows
        except DBAPIError as error:
            if is_passing(error):
                raise
            refused = error
        names = ", ".join(quote_identifier(name) for name in plan.types)
        definitions = ", ".join(f"{quote_identifier(name)} {kind}" for name, kind in plan.types.items())
        try:
            with savepoint(connection):
                connection.exec_driver_sql(
                    f"CREATE TABLE {target} ({_NUMBER} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {definitions})"
                )
                return connection.exec_driver_sql(f"INSERT INTO {target} ({names}) {plan.select}").rowcount
        except DBAPIError as error:
            raise error if is_passing(error) else refused from None

    def _keep_position(self, loss: Loss) -> Kept:
        sequence = loss.relation
        position = self._connection.exec_driver_sql(f"SELECT last_value, is_called FROM {sequence.quoted}").one()
        self._add(sequence, kind=loss.kind, position=tuple(position), owner=sequence.owner)
        return Kept(str(sequence), loss.kind, 0, None)

    def _add(self, relation: Relation | None, **values: object) -> int:
        what: dict[str, object] = {}
        if relation:
            what = {"relation": relation.oid, "schema_name": relation.schema, "object_name": relation.name}
        entry = self._manifest.add(self.number, **self._step, **what, **values)
        self.number = self.number or entry
        return entry


def _as_kept(column: _Column) -> str:
    """A user's type or collation may go with the step, and a copy that used it would stand in the way."""
    name = quote_identifier(column.name)
    expression = f"{name}::text" if column.of_users_type else name
    if column.of_users_collation:
        expression = f'({expression}) COLLATE pg_catalog."default"'
    return f"{expression} AS {name}"


def _set_locally(connection: Connection, values: Iterable[str]) -> list[str]:
    """Set what `_EXACT` names; returns the values before that."""
    return [row["before"] for row in fetch(connection, _SET_SETTINGS, list(_EXACT), list(values))]
