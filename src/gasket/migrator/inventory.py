"""What of a schema's data a step would take away: the catalog before it against the catalog after it.

Relations are told apart by oid and columns by number, so a rename is no loss, and dropping and making anew is one.
Parsing the SQL instead would miss CASCADE, functions, and statements that Python puts together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from sqlalchemy import Connection

from gasket.migrator.archive_schema import archive_schema
from gasket.migrator.connection import quote_identifier
from gasket.migrator.ledger import OWN_TABLES_PREFIX, VERSION_TABLE

# The counters are those of this session. Another session's schema changes show too; see `locked_relations`.
_INVENTORY = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relfilenode AS file,
    CASE WHEN c.relispartition THEN (SELECT i.inhparent FROM pg_inherits AS i WHERE i.inhrelid = c.oid) END AS parent,
    (SELECT jsonb_object_agg(a.attnum, jsonb_build_array(a.attname, a.atttypid::bigint, a.atttypmod))::text
     FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
    pg_stat_get_xact_tuples_inserted(c.oid) AS inserted, pg_stat_get_xact_tuples_updated(c.oid) AS updated,
    pg_stat_get_xact_tuples_deleted(c.oid) AS deleted
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S', 'c') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname <> $1
  AND NOT (n.nspname = $2 AND (c.relname = $3 OR starts_with(c.relname, $4)))
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
    """A table (`kind` r, partitioned p), sequence (S) or composite type (c), as `pg_class` has it.

    `file` changes when the contents are written anew or thrown away. The counters are rows that this session changed.
    """

    oid: int
    schema: str
    name: str
    kind: str
    file: int
    parent: int | None
    columns: Mapping[int, ColumnShape]
    inserted: int
    updated: int
    deleted: int

    @property
    def quoted(self) -> str:
        """The qualified name as SQL."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


Inventory = Mapping[int, Relation]
"""By oid."""


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


def take_inventory(connection: Connection, schema: str) -> Inventory:
    """Every relation but PostgreSQL's own, those of the archive, and the migrator's tables in `schema`."""
    own = (archive_schema(schema), schema, VERSION_TABLE, OWN_TABLES_PREFIX)
    return {
        row.oid: Relation(
            oid=row.oid,
            schema=row.schema,
            name=row.name,
            kind=row.kind,
            file=row.file,
            parent=row.parent,
            columns={
                number: ColumnShape(*shape)
                for number, shape in msgspec.json.decode(
                    row.columns or "{}", type=dict[int, tuple[str, int, int]]
                ).items()
            },
            inserted=row.inserted,
            updated=row.updated,
            deleted=row.deleted,
        )
        for row in connection.exec_driver_sql(_INVENTORY, own)
    }


def locked_relations(connection: Connection) -> frozenset[int]:
    """What this transaction holds ACCESS EXCLUSIVE: nothing can be dropped, retyped or truncated without.

    It tells what the step did from what other sessions do to the catalog meanwhile.
    """
    return frozenset(connection.exec_driver_sql(_LOCKED).scalars())


def emptied(connection: Connection, before: Inventory, after: Inventory) -> frozenset[int]:
    """Of the tables whose file changed: those without a row now."""
    return frozenset(
        oid
        for oid, relation in after.items()
        if relation.kind == "r"
        and oid in before
        and relation.file != before[oid].file
        and not connection.exec_driver_sql(f"SELECT EXISTS (SELECT FROM ONLY {relation.quoted})").scalar_one()
    )


def find_losses(before: Inventory, after: Inventory, *, locked: Collection[int], empty: Collection[int]) -> Losses:
    """Compare; `locked` and `empty` are what `locked_relations` and `emptied` say after the step."""
    found = {
        oid: loss
        for oid, relation in before.items()
        if oid in locked and (loss := _loss(relation, after.get(oid), empty=oid in empty))
    }
    return Losses(
        found=tuple(loss for oid, loss in found.items() if not _covered(loss, found, before)),
        not_copied=tuple(
            (relation, words)
            for oid, relation in before.items()
            if (now := after.get(oid)) and (words := _words(relation, now, found.get(oid)))
        ),
    )


def _loss(before: Relation, after: Relation | None, *, empty: bool) -> Loss | None:
    if before.kind == "c":
        return None
    if before.kind == "S":
        return Loss(LossKind.SEQUENCE, before) if after is None or after.file != before.file else None
    if after is None:
        return Loss(LossKind.TABLE, before)
    if before.kind == "r" and after.file != before.file:
        # A rewrite (ALTER COLUMN TYPE) keeps the rows and counts none as inserted under the table's own oid.
        inserted = after.inserted != before.inserted
        if empty or inserted:
            return Loss(LossKind.ROWS, before, doubtful=not empty)
    gone = frozenset(before.columns.keys() - after.columns.keys())
    retyped = frozenset(
        number
        for number in before.columns.keys() & after.columns.keys()
        if _type(before.columns[number]) != _type(after.columns[number])
    )
    return Loss(LossKind.COLUMNS, before, columns=gone | retyped, retyped=retyped) if gone | retyped else None


def _type(column: ColumnShape) -> tuple[int, int]:
    return column.type_oid, column.type_modifier


def _covered(loss: Loss, found: Mapping[int, Loss], before: Inventory) -> bool:
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


def _goes_whole(parent: Relation, found: Mapping[int, Loss], before: Inventory) -> bool:
    return all(
        relation.oid in found and found[relation.oid].kind is LossKind.TABLE and _goes_whole(relation, found, before)
        for relation in before.values()
        if relation.parent == parent.oid
    )


def _words(before: Relation, after: Relation, loss: Loss | None) -> str | None:
    """What of a relation that stays goes without a copy; None when nothing does."""
    if before.kind == "c":
        gone = [before.columns[number].name for number in sorted(before.columns.keys() - after.columns.keys())]
        return f"attribute {', '.join(gone)} of type {before} goes: its values are not archived" if gone else None
    if loss is not None and loss.kind is LossKind.ROWS:
        return None
    changes = [
        f"{verb} {number} rows"
        for verb, number in (("updates", after.updated - before.updated), ("deletes", after.deleted - before.deleted))
        if number > 0
    ]
    return f"downgrade() {' and '.join(changes)} of {before}: not archived" if changes else None
