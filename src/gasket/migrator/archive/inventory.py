"""What of a schema's data a step would take away: the catalog before it against the catalog after it.

Relations are told apart by oid and columns by number, so a rename is no loss, and dropping and making anew is one.
Parsing the SQL instead would miss CASCADE, functions, and statements that Python puts together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

import asyncpg
import msgspec
from sqlalchemy import Connection

from gasket.migrator.archive.schema import archive_schema
from gasket.migrator.ledger.tables import OWN_TABLES_PREFIX, VERSION_TABLE
from gasket.postgres.driver import fetch
from gasket.postgres.quoting import quote_identifier

_MARK = """c.relfilenode::bigint AS file, pg_stat_get_xact_tuples_inserted(c.oid) AS inserted,
    pg_stat_get_xact_tuples_updated(c.oid) AS updated, pg_stat_get_xact_tuples_deleted(c.oid) AS deleted"""
_HAS_DATA = """c.relkind IN ('r', 'p', 'S', 'c') AND c.relpersistence <> 't' AND c.relnamespace NOT IN (
    SELECT n.oid FROM pg_namespace AS n WHERE n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast'))"""
# Each a list of one row, so that a schema of thousands of tables costs no more than a few milliseconds.
_MARKS = f"""
SELECT array_agg(oid), array_agg(file), array_agg(inserted), array_agg(updated), array_agg(deleted)
FROM (SELECT c.oid::bigint AS oid, {_MARK} FROM pg_class AS c WHERE {_HAS_DATA}) AS marks
"""
# By name, whatever the schema: to_regclass raises an error where this role may not look into it.
_MARKS_OF = _MARKS.replace(
    _HAS_DATA, f"{_HAS_DATA} AND (c.oid = ANY ($1::bigint[]::oid[]) OR c.relname = ANY ($2::text[]::name[]))"
)
_RELATIONS = f"""
SELECT c.oid::bigint, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
    CASE WHEN c.relispartition THEN (SELECT i.inhparent FROM pg_inherits AS i WHERE i.inhrelid = c.oid) END AS parent,
    (SELECT jsonb_object_agg(a.attnum, jsonb_build_array(a.attname, a.atttypid::bigint, a.atttypmod))::text
     FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
    CASE WHEN c.relkind = 'S' THEN (
        SELECT ARRAY[tn.nspname, t.relname, a.attname]::text[]
        FROM pg_depend AS d JOIN pg_class AS t ON t.oid = d.refobjid JOIN pg_namespace AS tn ON tn.oid = t.relnamespace
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
          AND d.deptype IN ('a', 'i')) END AS owner,
    n.nspname = $2 OR (n.nspname = $3 AND (c.relname = $4 OR starts_with(c.relname, $5))) AS own, {_MARK}
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = ANY ($1::bigint[]::oid[]) AND {_HAS_DATA}
"""
# What this transaction has locked so as to write to it or to change it.
_HELD = f"""
SELECT held.relation::bigint AS oid, held.exclusive, c.oid IS NULL AS gone, {_HAS_DATA} AS has_data, {_MARK}
FROM (SELECT relation, bool_or(mode = 'AccessExclusiveLock') AS exclusive FROM pg_locks
      WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted
        AND mode NOT IN ('AccessShareLock', 'RowShareLock') GROUP BY relation) AS held
LEFT JOIN pg_class AS c ON c.oid = held.relation
"""


class _Column(NamedTuple):
    """`type` and `modifier` as in `pg_attribute`."""

    name: str
    type: int
    modifier: int


class Relation(msgspec.Struct, frozen=True):
    """A table (`kind` r, partitioned p), sequence (S) or composite type (c), as `pg_class` has it.

    `owner` is the schema, table and column that a sequence belongs to.
    """

    oid: int
    schema: str
    name: str
    kind: str
    parent: int | None
    columns: Mapping[int, _Column]
    owner: tuple[str, ...] | None = None

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


_COLUMNS = msgspec.json.Decoder(dict[int, _Column])

_Relations = Mapping[int, Relation]
_Marks = Mapping[int, Mark]
"""Both by oid."""


class Inventory(NamedTuple):
    """The relations that a step had to do with at one moment, and their marks."""

    relations: _Relations
    marks: _Marks


class LossKind(StrEnum):
    """What goes."""

    TABLE = "table"
    ROWS = "rows"
    """All rows, by TRUNCATE; the table stays."""
    COLUMNS = "columns"
    SEQUENCE = "sequence"
    """Its position: it is dropped or restarted."""


class Loss(msgspec.Struct, frozen=True):
    """`relation` is as it was before. `columns` are numbers, of LossKind.COLUMNS only; `retyped` is a part of them.

    `doubtful`: rows were inserted after a rewrite, so they may all be there still.
    """

    kind: LossKind
    relation: Relation
    columns: frozenset[int] = frozenset()
    retyped: frozenset[int] = frozenset()
    doubtful: bool = False


def read_marks(connection: Connection, oids: Collection[int] | None, names: Iterable[str]) -> _Marks:
    """Of the relations with these oids or of these names, in whichever schema, that are there.

    Without `oids`, of every relation but PostgreSQL's own.
    """
    found = fetch(connection, _MARKS) if oids is None else fetch(connection, _MARKS_OF, list(oids), list(names))
    [columns] = found
    known, *marks = (column or () for column in columns)
    return dict(zip(known, map(Mark, *marks), strict=True))


def read_inventory(connection: Connection, schema: str, oids: Collection[int]) -> Inventory:
    """Of the given oids those that are there; without the relations that are the archive's or, in `schema`, our own."""
    if not oids:
        return Inventory({}, {})
    own = (archive_schema(schema), schema, VERSION_TABLE, OWN_TABLES_PREFIX)
    rows = fetch(connection, _RELATIONS, list(oids), *own)
    relations = {
        row["oid"]: Relation(
            oid=row["oid"],
            schema=row["schema"],
            name=row["name"],
            kind=row["kind"],
            parent=row["parent"],
            columns=_COLUMNS.decode(row["columns"] or "{}"),
            owner=tuple(row["owner"]) if row["owner"] else None,
        )
        for row in rows
        if not row["own"]
    }
    return Inventory(relations, {row["oid"]: _mark(row) for row in rows})


def _mark(row: asyncpg.Record) -> Mark:
    return Mark(row["file"], row["inserted"], row["updated"], row["deleted"])


class Held(NamedTuple):
    """Relations that this transaction holds locks on with which it may write; `exclusive` are those that nothing can be
    dropped, retyped or truncated without, and `gone` are of these such as are not there any more. `marks` are of the
    others.
    """

    oids: frozenset[int]
    exclusive: frozenset[int]
    gone: frozenset[int]
    marks: _Marks


def held_relations(connection: Connection) -> Held:
    """It tells what a step did from what other sessions do to the catalog meanwhile."""
    rows = fetch(connection, _HELD)
    exclusive = [row for row in rows if row["exclusive"]]
    return Held(
        oids=frozenset(row["oid"] for row in rows),
        exclusive=frozenset(row["oid"] for row in exclusive),
        gone=frozenset(row["oid"] for row in exclusive if row["gone"]),
        marks={row["oid"]: _mark(row) for row in rows if row["has_data"]},
    )


class After(NamedTuple):
    """The state after a step: its locks; the relations that it has changed, or may have; and which of those tables are
    empty and have, or may have, a new file.
    """

    held: Held
    relations: _Relations
    empty: frozenset[int]


def look_after_step(connection: Connection, schema: str, before: _Marks) -> After:
    """`before` are the marks before the step, as far as they are known."""
    held = held_relations(connection)
    with_changed_rows = {
        oid
        for oid, mark in held.marks.items()
        if (mark.updated, mark.deleted) != (before[oid][2:] if oid in before else (0, 0))
    }
    relations = read_inventory(connection, schema, held.exclusive - held.gone | with_changed_rows).relations
    empty = frozenset(
        oid
        for oid, relation in relations.items()
        if relation.kind == "r"
        and (oid not in before or held.marks[oid].file != before[oid].file)
        and not connection.exec_driver_sql(f"SELECT EXISTS (SELECT FROM ONLY {relation.quoted})").scalar_one()
    )
    return After(held, relations, empty)


def find_losses(before: Inventory, after: After) -> tuple[Loss, ...]:
    """What a step takes away and can be copied first."""
    found = {
        oid: loss
        for oid, relation in before.relations.items()
        if oid in after.held.exclusive and (loss := _loss(relation, before, after))
    }
    return tuple(loss for loss in found.values() if not _covered(loss, found, before.relations))


def find_changes(before: Inventory, after: After, losses: Iterable[Loss]) -> list[tuple[Relation, str]]:
    """What a step takes away beside `losses` and cannot be copied: the relation, and what of it, in words."""
    emptied = {loss.relation.oid for loss in losses if loss.kind is LossKind.ROWS}
    return [
        (relation, words)
        for oid, relation in before.relations.items()
        if oid in after.relations and oid not in emptied and (words := _words(relation, before, after))
    ]


def _loss(relation: Relation, before: Inventory, after: After) -> Loss | None:
    now, empty = after.relations.get(relation.oid), relation.oid in after.empty
    was, mark = before.marks[relation.oid], after.held.marks.get(relation.oid)
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
        if relation.columns[number][1:] != now.columns[number][1:]
    )
    return Loss(LossKind.COLUMNS, relation, columns=gone | retyped, retyped=retyped) if gone | retyped else None


def _covered(loss: Loss, found: Mapping[int, Loss], before: _Relations) -> bool:
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


def _goes_whole(parent: Relation, found: Mapping[int, Loss], before: _Relations) -> bool:
    return all(
        relation.oid in found and found[relation.oid].kind is LossKind.TABLE and _goes_whole(relation, found, before)
        for relation in before.values()
        if relation.parent == parent.oid
    )


def count_rows(number: int) -> str:
    """`1 row`, `2 rows`."""
    return "1 row" if number == 1 else f"{number:,} rows"


def _words(relation: Relation, before: Inventory, after: After) -> str | None:
    """What of a relation that stays goes without a copy; None when nothing does."""
    if relation.kind == "c":
        now = after.relations[relation.oid]
        gone = [relation.columns[number].name for number in sorted(relation.columns.keys() - now.columns.keys())]
        return f"attribute {', '.join(gone)} of type {relation} goes: its values are not archived" if gone else None
    was, mark = before.marks[relation.oid], after.held.marks[relation.oid]
    changes = [
        f"{verb} {count_rows(number)}"
        for verb, number in (("updates", mark.updated - was.updated), ("deletes", mark.deleted - was.deleted))
        if number > 0
    ]
    return f"downgrade() {' and '.join(changes)} of {relation}: not archived" if changes else None
