"""INVALID indexes that a CREATE INDEX CONCURRENTLY left behind when it was cut short.

PostgreSQL keeps such an index, unused and still updated by every write, and `IF NOT EXISTS` takes it for done
(PostgreSQL manual, "CREATE INDEX", "Building Indexes Concurrently").
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import asyncpg

from gasket.migrator.connection import quote_identifier
from gasket.migrator.errors import InvalidIndexError
from gasket.migrator.sql.render import Statement

log = logging.getLogger("gasket.migrator")

_NAME = r'("(?:[^"]|"")+"|[\w$]+)'
_CREATE = re.compile(
    rf"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}\s+ON\s+(?:ONLY\s+)?"
    rf"(?:{_NAME}\.)?{_NAME}",
    re.IGNORECASE,
)
_INVALID = """
SELECT t.relname AS on_table, c.relkind <> 'i' AS partitioned,
    EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conindid = c.oid) AS backs_constraint,
    (SELECT pid FROM pg_catalog.pg_stat_progress_create_index WHERE index_relid = c.oid) AS builder
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid AND NOT i.indisvalid
JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
WHERE c.relname = $1 AND c.relnamespace = to_regnamespace(quote_ident($2))
"""


async def drop_invalid_indexes(
    connection: asyncpg.Connection, schema: str, revision: str, statements: Iterable[Statement]
) -> None:
    """Drop what an earlier try of these statements left behind, and nothing else. No transaction is open.

    Raises:
        InvalidIndexError: an INVALID index has the name, but it is not certain that it is such a leftover.
    """
    for name, table in _concurrent_indexes(statements):
        row = await connection.fetchrow(_INVALID, name, schema)
        if row is None:
            continue
        doubt = None
        if row["on_table"] != table:
            doubt = f"it is on table {row['on_table']}, not on {table}"
        elif row["partitioned"]:
            doubt = "it belongs to a partitioned table"
        elif row["backs_constraint"]:
            doubt = "it backs a constraint"
        elif row["builder"]:
            doubt = f"pid {row['builder']} is building it"
        if doubt:
            raise InvalidIndexError(revision=revision, index=name, doubt=doubt)
        log.warning("revision %s: dropping the INVALID index %s that an earlier try left behind", revision, name)
        await connection.execute(f"DROP INDEX CONCURRENTLY {quote_identifier(schema)}.{quote_identifier(name)}")


def _concurrent_indexes(statements: Iterable[Statement]) -> list[tuple[str, str]]:
    """(index, table) of each CREATE INDEX CONCURRENTLY."""
    found = (_CREATE.match(statement.sql) for statement in statements)
    return [(_unquoted(match[1]), _unquoted(match[3])) for match in found if match]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
