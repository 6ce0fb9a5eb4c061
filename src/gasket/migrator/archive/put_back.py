"""Archived rows put back into their tables: of tables that refer to each other in a circle, all at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from gasket.migrator.archive.copies import LEFT_BEHIND
from gasket.migrator.archive.fitting import (
    count_left,
    is_empty,
    leave_changed,
    leave_duplicates,
    leave_gone,
    leave_orphans,
    remove_identical,
)
from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.manifest import Entry, settle_entry
from gasket.migrator.archive.targets import ForeignKey, Target, archived, name
from gasket.migrator.connection import quote_identifier

_TRIGGERS = """
SELECT tgrelid::regclass::text AS table, quote_ident(tgname) AS name, tgenabled::text AS enabled
FROM pg_trigger
WHERE tgrelid IN (SELECT relid FROM pg_partition_tree($1::bigint::oid::regclass) UNION SELECT $1::bigint::oid::regclass)
  AND NOT tgisinternal AND tgparentid = 0 AND tgenabled IN ('O', 'A')
"""


@dataclass(frozen=True, slots=True)
class PutBack:
    """What became of one entry of the archive: `rows` are back, `left` stay, by reason; or an error, and all stay.

    `table` is the oid of the table that they went back to.
    """

    entry: Entry
    table: int | None = None
    rows: int = 0
    left: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        """As the entry has it."""
        return self.entry.name

    def __str__(self) -> str:
        if self.error:
            return f"{self.name}: nothing, {self.error}"
        stay = "".join(f", {number} stay in archive {self.entry.archive} ({why})" for why, number in self.left.items())
        return f"{self.rows} rows of {self.name}{stay}"


def in_order(targets: Sequence[Target]) -> list[list[Target]]:
    """Parents before children; tables that refer to each other in a circle are one group."""
    needs = {
        target.oid: {
            other.oid for other in targets for key in target.foreign_keys if other is not target and brings(other, key)
        }
        for target in targets
    }
    reached: dict[int, set[int]] = {}
    for start in needs:
        found, waiting = set[int](), [start]
        while waiting:
            new = needs[waiting.pop()] - found
            found |= new
            waiting += new
        reached[start] = found
    groups: list[list[Target]] = []
    # What another one needs reaches less than that one does.
    for target in sorted(targets, key=lambda target: len(reached[target.oid] - {target.oid})):
        circle = next((g for g in groups if g[0].oid in reached[target.oid] and target.oid in reached[g[0].oid]), None)
        if circle:
            circle.append(target)
        else:
            groups.append([target])
    return groups


def brings(target: Target, key: ForeignKey) -> bool:
    """Whether rows that the key may refer to come back with `target`."""
    by_key = target.entry.kind == LossKind.COLUMNS
    return key.parent == target.oid and not (by_key and {v.name for v in target.values}.isdisjoint(key.keys))


def put_group_back(
    connection: Connection, schema: str, group: Sequence[Target], trusted: Collection[int]
) -> list[PutBack]:
    for target in group:
        connection.exec_driver_sql(f"LOCK TABLE {target.source} IN SHARE ROW EXCLUSIVE MODE")
    opening, closing = _around(connection, group)
    for statement in opening:
        connection.exec_driver_sql(statement)
    for target in group:
        if target.keys:
            leave_gone(connection, target)
            leave_changed(connection, target, trusted=target.oid in trusted)
            leave_duplicates(connection, target)
        elif not is_empty(connection, target):
            remove_identical(connection, target)
            leave_duplicates(connection, target)
    _leave_orphans(connection, group)
    for target in group:
        connection.exec_driver_sql(_update(target) if target.keys else _insert(target))
    for statement in closing:
        connection.exec_driver_sql(statement)
    return [_settle(connection, schema, target) for target in group]


def _leave_orphans(connection: Connection, group: Sequence[Target]) -> None:
    """A row without parent may be the parent of another: to a fixpoint, where the tables refer to themselves."""
    while sum(
        leave_orphans(connection, target, key, [parent for parent in group if brings(parent, key)])
        for target in group
        for key in target.foreign_keys
    ):
        if not any(brings(parent, key) for target in group for key in target.foreign_keys for parent in group):
            return


def _insert(target: Target) -> str:
    columns = ", ".join(map(name, target.values))
    return (
        f"INSERT INTO {target.table} {columns and f'({columns})'} OVERRIDING SYSTEM VALUE "
        f"SELECT {columns} FROM ({target.incoming}) AS i"
    )


def _update(target: Target) -> str:
    changes = ", ".join(f"{name(value)} = {archived(value)}" for value in target.values)
    live = ", ".join(f"t.{name(value)}" for value in target.values)
    kept = ", ".join(map(archived, target.values))
    return (
        f"UPDATE {target.source} AS t SET {changes} FROM {target.archive} AS a "
        f"WHERE {target.joined} AND a.{LEFT_BEHIND} IS NULL AND ROW({live})::record *<> ROW({kept})::record"
    )


def _around(connection: Connection, group: Sequence[Target]) -> tuple[list[str], list[str]]:
    """What to switch off before rows are put into the tables, and exactly that on again afterwards."""
    opening, closing = list[str](), list[str]()
    circular = [
        (target, key)
        for target in group
        for key in target.foreign_keys
        for other in group
        if other is not target and brings(other, key)
    ]
    if circular:
        closing.append("SET CONSTRAINTS ALL IMMEDIATE")
    for target, key in circular:
        alter = f"ALTER TABLE {target.table} ALTER CONSTRAINT {quote_identifier(key.name)}"
        opening.append(f"{alter} DEFERRABLE INITIALLY DEFERRED")
        closing.append(f"{alter} {key.timing}")
    for target in group:
        for trigger in connection.exec_driver_sql(_TRIGGERS, (target.oid,)):
            always = "ALWAYS " if trigger.enabled == "A" else ""
            opening.append(f"ALTER TABLE {trigger.table} DISABLE TRIGGER {trigger.name}")
            closing.append(f"ALTER TABLE {trigger.table} ENABLE {always}TRIGGER {trigger.name}")
        for value in target.values:
            if target.keys and value.always_identity:  # which an UPDATE may not set
                alter = f"ALTER TABLE {target.table} ALTER COLUMN {name(value)} SET GENERATED"
                opening.append(f"{alter} BY DEFAULT")
                closing.append(f"{alter} ALWAYS")
    return [*opening, *(["SET CONSTRAINTS ALL DEFERRED"] if circular else [])], closing


def _settle(connection: Connection, schema: str, target: Target) -> PutBack:
    """Take out of the archive what is back, so that it is not put back twice."""
    left = count_left(connection, target)
    if left:
        connection.exec_driver_sql(f"DELETE FROM {target.archive} WHERE {LEFT_BEHIND} IS NULL")
    else:
        connection.exec_driver_sql(f"DROP TABLE {target.archive}")
    rows = target.entry.row_count - sum(left.values())
    settle_entry(connection, schema, target.entry.id, rows=rows, left=left)
    return PutBack(target.entry, target.oid, rows, left)


def put_position_back(connection: Connection, schema: str, entry: Entry) -> list[PutBack]:
    """Never backwards: whatever was handed out meanwhile stays handed out."""
    sequence = entry.quoted
    if entry.owner:
        table = ".".join(map(quote_identifier, entry.owner[:2]))
        sequence = connection.exec_driver_sql(
            "SELECT coalesce(pg_get_serial_sequence($1, $2), $3)", (table, entry.owner[2], sequence)
        ).scalar_one()
    now = connection.exec_driver_sql(
        f"SELECT s.last_value, s.is_called, p.seqincrement > 0 AS ascending FROM {sequence} AS s "
        "CROSS JOIN pg_sequence AS p WHERE p.seqrelid = $1::text::regclass",
        (sequence,),
    ).one()
    assert entry.position is not None
    value, called = entry.position
    if value == now.last_value:
        called = called or now.is_called
    elif (value > now.last_value) is not now.ascending:
        value, called = now.last_value, now.is_called
    connection.exec_driver_sql("SELECT setval($1::text::regclass, $2, $3)", (sequence, value, called))
    settle_entry(connection, schema, entry.id, rows=0, left={})
    return []
