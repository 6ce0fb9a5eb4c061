"""What of a schema's data a step would take away: the catalog before it against the catalog after it.

Relations are told apart by oid and columns by number, so a rename is no loss, and dropping and making anew is one.
Parsing the SQL instead would miss CASCADE, functions, and statements that Python puts together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection

from gasket.migrator.archive.schema import archive_schema
from gasket.migrator.connection import quote_identifier
from gasket.migrator.ledger import OWN_TABLES_PREFIX, VERSION_TABLE

# Each a list of one row, so that a schema of thousands of tables costs no more than a few milliseconds.
_MARKS = """
SELECT array_agg(c.oid::bigint), array_agg(c.relfilenode::bigint), array_agg(pg_stat_get_xact_tuples_inserted(c.oid)),
    array_agg(pg_stat_get_xact_tuples_updated(c.oid)), array_agg(pg_stat_get_xact_tuples_deleted(c.oid))
FROM pg_class AS c
WHERE c.relkind IN ('r', 'p', 'S', 'c') AND c.relpersistence <> 't' AND c.relnamespace NOT IN (
    SELECT n.oid FROM pg_namespace AS n WHERE n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast'))
"""
_RELATIONS = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
    CASE WHEN c.relispartition THEN (SELECT i.inhparent FROM pg_inherits AS i WHERE i.inhrelid = c.oid) END AS parent,
    (SELECT jsonb_object_agg(a.attnum, jsonb_build_array(a.attname, a.atttypid::bigint, a.atttypmod))::text
     FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = ANY ($1::bigint[]::oid[]) AND c.relkind IN ('r', 'p', 'S', 'c') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname <> $2
  AND NOT (n.nspname = $3 AND (c.relname = $4 OR starts_with(c.relname, $5)))
"""
_LOCKED = """
SELECT relation FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted
"""


@dataclass(frozen=True, slots=True)
class ColumnShape:
    """`type_oid` and `type_modifier` as in `pg_attribute`."""

    name: str
    type_oid: int
    type_modifier: int


@dataclass(frozen=True, slots=True)
class Relation:
    """A table (`kind` r, partitioned p), sequence (S) or composite type (c), as `pg_class` has it."""

    oid: int
    schema: str
    name: str
    kind: str
    parent: int | None
    columns: Mapping[int, ColumnShape]

    @property
    def quoted(self) -> str:
        """The qualified name as SQL."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Mark(NamedTuple):
    """`file` changes when a relation's contents are written anew or thrown away; the rest are rows that we changed."""

    file: int
    inserted: int
    updated: int
    deleted: int


_SHAPES = msgspec.json.Decoder(dict[int, tuple[str, int, int]])

Relations = Mapping[int, Relation]
Marks = Mapping[int, Mark]
"""Both by oid."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The marks of all relations at one moment, and those relations themselves that a step had to do with."""

    relations: Relations
    marks: Marks


class LossKind(StrEnum):
    """What goes."""

    TABLE = "table"
    ROWS = "rows"
    """All rows, by TRUNCATE; the table stays."""
    COLUMNS = "columns"
    SEQUENCE = "sequence"
    """Its position: it is dropped or restarted."""


@dataclass(frozen=True, slots=True)
class Loss:
    """`relation` is as it was before. `columns` are numbers, of LossKind.COLUMNS only; `retyped` is a part of them.

    `doubtful`: rows were inserted after a rewrite, so they may all be there still.
    """

    kind: LossKind
    relation: Relation
    columns: frozenset[int] = frozenset()
    retyped: frozenset[int] = frozenset()
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Losses:
    """What a step takes away: what can be copied first, and in words what cannot, each with its relation."""

    found: tuple[Loss, ...]
    not_copied: tuple[tuple[Relation, str], ...]


def read_marks(connection: Connection) -> Marks:
    """Of every relation but PostgreSQL's own."""
    columns = connection.exec_driver_sql(_MARKS).one()
    oids, *marks = (column or () for column in columns)
    return dict(zip(oids, map(Mark, *marks), strict=True))


def read_relations(connection: Connection, schema: str, oids: Collection[int]) -> Relations:
    """Those of the given oids that are there, without the archive's and the migrator's own tables in `schema`."""
    own = (archive_schema(schema), schema, VERSION_TABLE, OWN_TABLES_PREFIX)
    return {
        row.oid: Relation(
            oid=row.oid,
            schema=row.schema,
            name=row.name,
            kind=row.kind,
            parent=row.parent,
            columns={number: ColumnShape(*shape) for number, shape in _SHAPES.decode(row.columns or "{}").items()},
        )
        for row in connection.exec_driver_sql(_RELATIONS, (list(oids), *own))
    }


def changed_rows(before: Marks, after: Marks) -> frozenset[int]:
    """The relations of which this session updated or deleted rows in between."""
    return frozenset(
        oid
        for oid, mark in after.items()
        if (mark.updated, mark.deleted) != (before[oid][2:] if oid in before else (0, 0))
    )


def locked_relations(connection: Connection) -> frozenset[int]:
    """What this transaction holds ACCESS EXCLUSIVE: nothing can be dropped, retyped or truncated without.

    It tells what the step did from what other sessions do to the catalog meanwhile.
    """
    return frozenset(connection.exec_driver_sql(_LOCKED).scalars())


def emptied(connection: Connection, before: Marks, after: Inventory) -> frozenset[int]:
    """Of the tables whose file changed: those without a row now."""
    return frozenset(
        oid
        for oid, relation in after.relations.items()
        if relation.kind == "r"
        and oid in before
        and after.marks[oid].file != before[oid].file
        and not connection.exec_driver_sql(f"SELECT EXISTS (SELECT FROM ONLY {relation.quoted})").scalar_one()
    )


def find_losses(before: Inventory, after: Inventory, *, locked: Collection[int], empty: Collection[int]) -> Losses:
    """Compare; `locked` and `empty` are what `locked_relations` and `emptied` say after the step."""
    found = {
        oid: loss
        for oid, relation in before.relations.items()
        if oid in locked and (loss := _loss(relation, before, after, empty=oid in empty))
    }
    return Losses(
        found=tuple(loss for loss in found.values() if not _covered(loss, found, before.relations)),
        not_copied=tuple(
            (relation, words)
            for oid, relation in before.relations.items()
            if (now := after.relations.get(oid)) and (words := _words(relation, now, before, after, found.get(oid)))
        ),
    )


def _loss(relation: Relation, before: Inventory, after: Inventory, *, empty: bool) -> Loss | None:
    now = after.relations.get(relation.oid)
    was, mark = before.marks[relation.oid], after.marks.get(relation.oid)
    if relation.kind == "c":
        return None
    if relation.kind == "S":
        return Loss(LossKind.SEQUENCE, relation) if mark is None or mark.file != was.file else None
    if now is None or mark is None:
        return Loss(LossKind.TABLE, relation)
    if relation.kind == "r" and mark.file != was.file:
        # A rewrite (ALTER COLUMN TYPE) keeps the rows and counts none as inserted under the table's own oid.
        inserted = mark.inserted != was.inserted
        if empty or inserted:
            return Loss(LossKind.ROWS, relation, doubtful=not empty)
    gone = frozenset(relation.columns.keys() - now.columns.keys())
    retyped = frozenset(
        number
        for number in relation.columns.keys() & now.columns.keys()
        if _type(relation.columns[number]) != _type(now.columns[number])
    )
    return Loss(LossKind.COLUMNS, relation, columns=gone | retyped, retyped=retyped) if gone | retyped else None


def _type(column: ColumnShape) -> tuple[int, int]:
    return column.type_oid, column.type_modifier


def _covered(loss: Loss, found: Mapping[int, Loss], before: Relations) -> bool:
    """Whether a partition's loss is in the copy of its parent, or a parent's in those of its partitions.

    A dropped parent of which a partition was detached and stays is copied partition by partition.
    """
    relation = loss.relation
    if loss.kind is LossKind.TABLE and relation.kind == "p" and not _goes_whole(relation, found, before):
        return True
    parent = found.get(relation.parent) if relation.parent is not None else None
    if parent is None or parent.kind is not loss.kind:
        return False
    return loss.kind is not LossKind.TABLE or _goes_whole(parent.relation, found, before)


def _goes_whole(parent: Relation, found: Mapping[int, Loss], before: Relations) -> bool:
    return all(
        relation.oid in found and found[relation.oid].kind is LossKind.TABLE and _goes_whole(relation, found, before)
        for relation in before.values()
        if relation.parent == parent.oid
    )


def _words(relation: Relation, now: Relation, before: Inventory, after: Inventory, loss: Loss | None) -> str | None:
    """What of a relation that stays goes without a copy; None when nothing does."""
    if relation.kind == "c":
        gone = [relation.columns[number].name for number in sorted(relation.columns.keys() - now.columns.keys())]
        return f"attribute {', '.join(gone)} of type {relation} goes: its values are not archived" if gone else None
    if loss is not None and loss.kind is LossKind.ROWS:
        return None
    was, mark = before.marks[relation.oid], after.marks[relation.oid]
    changes = [
        f"{verb} {number} rows"
        for verb, number in (("updates", mark.updated - was.updated), ("deletes", mark.deleted - was.deleted))
        if number > 0
    ]
    return f"downgrade() {' and '.join(changes)} of {relation}: not archived" if changes else None
