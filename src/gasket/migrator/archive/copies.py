"""How one loss is copied into the archive, and written into its book."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.inventory import Loss, LossKind, Relation
from gasket.migrator.archive.manifest import NOTE, KeptColumn, add_entry, update_entry
from gasket.migrator.archive.schema import stored
from gasket.migrator.connection import describe, quote_identifier
from gasket.migrator.errors import NotArchivedError

LEFT_BEHIND = "gasket_left_behind"
"""The column of every archive table that says why a row was not put back; NULL while nothing speaks against it."""
VERSION = "gasket_version"
"""The `xmin` of the row whose columns were copied: whoever changes the row gives it another."""
CHANGED = "gasket_changed"
"""Whether the row was changed between the downgrade and the upgrade."""

# What pg_dump sets for the same reason: types that may go with the step are kept as text, which must lose nothing, and
# a policy must not hide rows (PostgreSQL then raises an error instead).
_EXACT = {
    "row_security": "off",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
}
_FIRST_USER_OID = 16384  # FirstNormalObjectId in PostgreSQL's access/transam.h
_COLUMNS = f"""
SELECT a.attnum AS number, a.attname AS name, a.attgenerated <> '' AS generated,
    a.atttypid >= {_FIRST_USER_OID} AS of_users_type, a.attcollation >= {_FIRST_USER_OID} AS of_users_collation
FROM pg_attribute AS a WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
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
_OWNER = """
SELECT n.nspname, c.relname, a.attname
FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.refobjid JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_class'::regclass AND d.objid = $1::bigint::oid AND d.refclassid = 'pg_class'::regclass
  AND d.deptype IN ('a', 'i')
"""
# Lock not available, deadlock detected, query canceled.
_NOT_ABOUT_DATA = {"55P03", "40P01", "57014"}


@dataclass(frozen=True, slots=True)
class Kept:
    """One thing that was copied. `problem`: why it cannot be put back by itself."""

    name: str
    kind: LossKind
    rows: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """How a loss is copied: the columns, the query, and why it cannot be put back by itself."""

    columns: tuple[KeptColumn, ...]
    select: str
    problem: str | None


def plan_copy(connection: Connection, loss: Loss) -> CopyPlan | None:
    """Of a lost column only key and value, if there is a key that stays; None when only generated columns go."""
    columns = [c for c in connection.exec_driver_sql(_COLUMNS, (loss.relation.oid,)) if not c.generated]
    key: frozenset[int] = frozenset()
    problem = None
    marks = [f"NULL::text AS {LEFT_BEHIND}"]
    if loss.kind is LossKind.COLUMNS:
        if not any(column.number in loss.columns for column in columns):
            return None
        key = find_key(connection, loss.relation.oid, without=loss.columns)
        if key:
            columns = [column for column in columns if column.number in loss.columns | key]
            marks += [f"xmin AS {VERSION}", f"false AS {CHANGED}"]
        else:
            problem = (
                f"{loss.relation} has no key that stays (a primary key, or a unique index on NOT NULL columns): its "
                "rows are archived whole and cannot be put back by themselves"
            )
    elif loss.doubtful and not find_key(connection, loss.relation.oid):
        problem = f"{loss.relation} has no key that tells rows which stay from rows which go: put them back by hand"
    source = loss.relation.quoted if loss.relation.kind == "p" else f"ONLY {loss.relation.quoted}"
    return CopyPlan(
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
        select=f"SELECT {', '.join([*map(_as_kept, columns), *marks])} FROM {source}",
        problem=problem,
    )


def find_key(connection: Connection, table: int, *, without: Iterable[int] = ()) -> frozenset[int]:
    """The numbers of columns by which a row is found again: unique, NOT NULL, checked at once. Empty: there are none.

    `table` is an oid, `without` are columns that must not be among them.
    """
    keys = (frozenset(numbers) for numbers in connection.exec_driver_sql(_KEYS, (table,)).scalars())
    return next((key for key in keys if key.isdisjoint(without)), frozenset())


@contextmanager
def exact_settings(connection: Connection) -> Iterator[None]:
    """Until the end of the block: text that loses nothing, and no rows hidden by policies."""
    read = "SELECT array(SELECT current_setting(name) FROM unnest($1::text[]) WITH ORDINALITY AS s(name, n) ORDER BY n)"
    before = connection.exec_driver_sql(read, (list(_EXACT),)).scalar_one()
    _set_locally(connection, _EXACT.values())
    yield
    _set_locally(connection, before)  # after an error there is nothing to put back: what set them is undone


def is_not_about_data(error: DBAPIError) -> bool:
    """A lock not free in time, a deadlock, a cancelled statement, a lost connection: for whoever runs the step."""
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    return (
        error.connection_invalidated
        or sqlstate is None
        or sqlstate in _NOT_ABOUT_DATA
        or sqlstate.startswith(("08", "57P"))
    )


class Book:
    """Writes the archive of one step; `number` is its number, None while it has no entry."""

    def __init__(self, connection: Connection, schema: str, *, revision: str, digest: str | None, release: str) -> None:
        self.number: int | None = None
        self._connection = connection
        self._schema = schema
        self._revision = revision
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
            if is_not_about_data(error):
                raise
            raise NotArchivedError(
                revision=self._revision,
                reason=f"copying {loss.relation} failed: {describe(error.orig or error)}",
                mend="Correct the cause and try again.",
            ) from error

    def note(self, relation: Relation, words: str) -> None:
        """Write down what was not archived."""
        self._add(relation, kind=NOTE, problem=words)

    def _keep_rows(self, loss: Loss) -> Kept | None:
        plan = plan_copy(self._connection, loss)
        if plan is None:
            return None
        entry = self._add(loss.relation, kind=loss.kind, columns=plan.columns, problem=plan.problem)
        table = f"a{entry}"
        target = stored(self._schema, table)
        rows = self._connection.exec_driver_sql(f"CREATE TABLE {target} AS {plan.select}").rowcount
        if rows:
            # Where a publication is FOR ALL TABLES, rows of a table without a key can be changed with this alone.
            self._connection.exec_driver_sql(f"ALTER TABLE {target} REPLICA IDENTITY FULL")
            update_entry(self._connection, self._schema, entry, stored_in=table, row_count=rows)
        else:
            self._connection.exec_driver_sql(f"DROP TABLE {target}")
        lost = ", ".join(column.name for column in plan.columns if column.lost)
        return Kept(f"{loss.relation} ({lost})" if lost else str(loss.relation), loss.kind, rows, plan.problem)

    def _keep_position(self, loss: Loss) -> Kept:
        sequence = loss.relation
        position = self._connection.exec_driver_sql(f"SELECT last_value, is_called FROM {sequence.quoted}").one()
        owner = self._connection.exec_driver_sql(_OWNER, (sequence.oid,)).one_or_none()
        self._add(sequence, kind=loss.kind, position=tuple(position), owner=tuple(owner) if owner else None)
        return Kept(str(sequence), loss.kind, 0, None)

    def _add(self, relation: Relation, **values: object) -> int:
        what = {"relation": relation.oid, "schema_name": relation.schema, "object_name": relation.name}
        entry = add_entry(self._connection, self._schema, self.number, **self._step, **what, **values)
        self.number = self.number or entry
        return entry


def _as_kept(column: Row[Any]) -> str:
    """A user's type or collation may go with the step, and a copy that used it would stand in the way."""
    name = quote_identifier(column.name)
    expression = f"{name}::text" if column.of_users_type else name
    if column.of_users_collation:
        expression = f'({expression}) COLLATE pg_catalog."default"'
    return f"{expression} AS {name}"


def _set_locally(connection: Connection, values: Iterable[str]) -> None:
    connection.exec_driver_sql(
        "SELECT set_config(name, value, true) FROM unnest($1::text[], $2::text[]) AS s(name, value)",
        (list(_EXACT), list(values)),
    )
