"""INVALID indexes that CREATE INDEX and REINDEX CONCURRENTLY left behind when they were cut short.

PostgreSQL keeps such an index, unused and still updated by every write, and `IF NOT EXISTS` takes it for done
(PostgreSQL manual, "CREATE INDEX", "Building Indexes Concurrently"). Those of REINDEX end in _ccnew or _ccold, and
nobody else's do (PostgreSQL manual, "REINDEX", "Rebuilding Indexes Concurrently").
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import asyncpg

from gasket.migrator.errors import InvalidIndexError
from gasket.migrator.sql.lexer import Name
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import TouchIndex
from gasket.migrator.sql.render import Statement
from gasket.postgres.quoting import quote_identifier, quote_name

log = logging.getLogger("gasket.migrator")

_INVALID = """
SELECT t.relname AS on_table, c.relkind <> 'i' AS partitioned,
    EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conindid = c.oid) AS backs_constraint,
    (SELECT pid FROM pg_catalog.pg_stat_progress_create_index WHERE index_relid = c.oid) AS builder
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid AND NOT i.indisvalid
JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
WHERE c.relname = $1 AND c.relnamespace = to_regnamespace(quote_ident($2))
"""

# Of the table or the index of that name, of its partitions, and of what is stored beside them.
_REINDEXED = """
WITH named AS (SELECT to_regclass($1) AS relid UNION SELECT relid FROM pg_partition_tree(to_regclass($1))),
tables AS (
    SELECT relid FROM named
    UNION SELECT i.indrelid FROM pg_catalog.pg_index AS i JOIN named ON i.indexrelid = named.relid
),
all_tables AS (
    SELECT relid FROM tables
    UNION SELECT c.reltoastrelid FROM pg_catalog.pg_class AS c JOIN tables ON tables.relid = c.oid
)
SELECT i.indexrelid::regclass::text AS name
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN all_tables AS t ON t.relid = i.indrelid
WHERE NOT i.indisvalid AND c.relname ~ '_cc(new|old)[0-9]*$'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index WHERE relid = i.indrelid)
"""


async def drop_invalid_indexes(
    connection: asyncpg.Connection, schema: str, revision: str, statements: Iterable[Statement]
) -> None:
    """Drop what an earlier try of these statements left behind, and nothing else. No transaction is open.

    Raises:
        InvalidIndexError: an INVALID index has the name, but it is not certain that it is such a leftover.
    """
    changes = [
        change
        for statement in statements
        for reading in read(statement.sql)
        for change in reading.changes
        if isinstance(change, TouchIndex) and change.concurrently
    ]
    for named in (change.index or change.table for change in changes if change.action == "reindex"):
        await _drop_those_of_reindex(connection, revision, schema, named or ())
    for index, on in ((change.index, change.table) for change in changes if change.index and change.table):
        name, table = index[-1], on[-1]
        home = on[0] if len(on) > 1 else schema  # an index is in the schema of its table
        row = await connection.fetchrow(_INVALID, name, home)
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
        await connection.execute(f"DROP INDEX CONCURRENTLY {quote_identifier(home)}.{quote_identifier(name)}")


async def _drop_those_of_reindex(connection: asyncpg.Connection, revision: str, schema: str, named: Name) -> None:
    for (index,) in await connection.fetch(_REINDEXED, quote_name(named, schema)):
        log.warning("revision %s: dropping the INVALID index %s of a REINDEX that was cut short", revision, index)
        await connection.execute(f"DROP INDEX CONCURRENTLY {index}")
