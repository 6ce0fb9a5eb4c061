"""Partitions that were made at run time: no revision makes them again, and without them their rows fit nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from gasket.migrator.archive.savepoints import unless_refused
from gasket.postgres.quoting import quote_identifier

_PARTITIONS = """
SELECT n.nspname AS schema, c.relname AS name, pn.nspname AS parent_schema, p.relname AS parent,
    pg_get_expr(c.relpartbound, c.oid) AS bound, pg_get_partkeydef(c.oid) AS key
FROM pg_partition_tree($1::bigint::oid::regclass) AS t
JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_class AS p ON p.oid = t.parentrelid JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
WHERE t.level > 0 AND c.relkind IN ('r', 'p') ORDER BY t.level, c.oid
"""


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of a table that was dropped. `bound` and `key`, by which it is partitioned itself, are SQL."""

    schema: str
    name: str
    parent_schema: str
    parent: str
    bound: str
    key: str | None

    @property
    def quoted(self) -> str:
        """The qualified name as SQL."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


def read_partitions(connection: Connection, table: int) -> tuple[Partition, ...]:
    """All below `table` (an oid), parents first. Foreign tables are left out: dropping one keeps its rows."""
    rows = connection.exec_driver_sql(_PARTITIONS, (table,)).mappings()
    return tuple(msgspec.convert(dict(row), Partition) for row in rows)


def make_partitions(connection: Connection, partitions: Sequence[Partition]) -> tuple[str, ...]:
    """Make those that are not there; returns the names of those made. What cannot be made is left out.

    Raises:
        sqlalchemy.exc.DBAPIError: a passing fault.
    """
    return tuple(f"{partition.schema}.{partition.name}" for partition in partitions if _make(connection, partition))


def _make(connection: Connection, partition: Partition) -> bool:
    parent = f"{quote_identifier(partition.parent_schema)}.{quote_identifier(partition.parent)}"
    split = f" PARTITION BY {partition.key}" if partition.key else ""
    if connection.exec_driver_sql("SELECT to_regclass($1)", (partition.quoted,)).scalar_one() is not None:
        return False
    # Refused where another partition takes these rows now, or the parent is partitioned in another way.
    return unless_refused(connection, f"CREATE TABLE {partition.quoted} PARTITION OF {parent} {partition.bound}{split}")
