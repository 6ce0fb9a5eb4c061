"""Statements that PostgreSQL refuses in a transaction: whether an earlier try has finished one.

A process that dies after such a statement and before the revision is recorded leaves its work behind. The next try
recognises it: not by the name alone, but by comparing it with what the statement would make.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import asyncpg

from gasket.migrator.errors import InvalidIndexError
from gasket.migrator.sql.lexer import Name, Words, tokens
from gasket.migrator.sql.reader import read, without_concurrently
from gasket.migrator.sql.reading import Reading, TouchIndex
from gasket.postgres.quoting import quote_identifier, quote_name

log = logging.getLogger("gasket.migrator")

_INDEX = """
SELECT c.oid, i.indisvalid AS valid, t.relname AS on_table, pg_get_indexdef(c.oid) AS definition
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
WHERE c.relname = $1 AND c.relnamespace = to_regnamespace(quote_ident($2))
"""
# All that a definition says except the names of the index and of its table.
_PROPERTIES = """
SELECT i.indisunique, m.amname::text, i.indnkeyatts, i.indclass::text, i.indcollation::text, i.indoption::text,
    c.reloptions, pg_get_expr(i.indpred, i.indrelid), to_jsonb(i) ->> 'indnullsnotdistinct',
    ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, false) FROM generate_series(1, i.indnatts) AS k)
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
WHERE i.indexrelid = $1
"""
_INDEXES_OF_TABLE = """
SELECT i.indexrelid AS oid, i.indisvalid AS valid, i.indexrelid::regclass::text AS name
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = to_regclass($1)
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conindid = i.indexrelid)
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index WHERE index_relid = i.indexrelid)
"""
_PARTITION = """
SELECT c.oid IS NOT NULL AS there, i.inhrelid IS NOT NULL AS attached,
    coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false) AS pending
FROM (SELECT to_regclass($1)::oid AS parent, to_regclass($2)::oid AS partition) AS named
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = named.partition
LEFT JOIN pg_catalog.pg_inherits AS i ON i.inhparent = named.parent AND i.inhrelid = named.partition
"""


def is_compared(readings: Sequence[Reading]) -> bool:
    """Whether the catalog tells how far such a statement came: one CONCURRENTLY."""
    if len(readings) != 1 or not readings[0].needs_autocommit:
        return False
    return readings[0].kind in ("alter table", "create index", "drop index", "reindex")


async def what_is_left(
    connection: asyncpg.Connection, schema: str, revision: str, sql: str, *, begun: bool
) -> str | None:
    """The statement that is still to be run instead of `sql`, mostly `sql` itself; None when its work is done.

    No transaction is open. `begun`: an earlier try has begun this very statement.

    Raises:
        InvalidIndexError: an index of that name is there, and it is not the one that the statement would build.
    """
    readings = read(sql)
    done = False
    for change in readings[0].changes:
        match change:
            case TouchIndex(action="create" | "create unique", index=None, table=(*_,) as table, concurrently=True):
                done = begun and await _is_built_unnamed(connection, schema, revision, sql, tuple(table))
            case TouchIndex(action="create" | "create unique", index=(*_,) as index, table=(*_,) as table):
                done = change.concurrently and await _is_built(
                    connection, schema, revision, sql, tuple(index), tuple(table)
                )
            case TouchIndex(action="drop", index=(*_,) as index, concurrently=True):
                done = await _find_index(connection, schema, tuple(index)) is None
    if readings[0].kind == "alter table" and readings[0].needs_autocommit:
        return await _what_is_left_of_detaching(connection, schema, sql)
    return None if done else sql


async def is_untouched(connection: asyncpg.Connection, schema: str, sql: str) -> bool:
    """Whether a statement that failed outside of a transaction has for certain left no part of its work behind."""
    for change in (change for reading in read(sql) for change in reading.changes):
        if isinstance(change, TouchIndex) and change.action == "drop" and change.index:
            there = await _find_index(connection, schema, change.index)
            return there is not None and there["valid"]
    return False


async def _find_index(connection: asyncpg.Connection, schema: str, name: Name) -> asyncpg.Record | None:
    return await connection.fetchrow(_INDEX, name[-1], name[0] if len(name) > 1 else schema)


async def _is_built(
    connection: asyncpg.Connection, schema: str, revision: str, sql: str, name: Name, table: Name
) -> bool:
    there = await _find_index(connection, table[0] if len(table) > 1 else schema, (name[-1],))
    if there is None or not there["valid"]:
        return False
    wanted = await _properties_wanted(connection, schema, sql, table)
    if there["on_table"] == table[-1] and wanted == tuple(await connection.fetchrow(_PROPERTIES, there["oid"]) or ()):
        return True
    raise InvalidIndexError(
        revision=revision, index=name[-1], doubt=f"it is another one: {there['definition']}", invalid=False
    )


async def _is_built_unnamed(connection: asyncpg.Connection, schema: str, revision: str, sql: str, table: Name) -> bool:
    """PostgreSQL chose the name: an index of the table with the same properties. An INVALID one is dropped."""
    wanted = await _properties_wanted(connection, schema, sql, table)
    for index in await connection.fetch(_INDEXES_OF_TABLE, quote_name(table, schema)):
        if wanted != tuple(await connection.fetchrow(_PROPERTIES, index["oid"]) or ()):
            continue
        if index["valid"]:
            return True
        log.warning(
            "revision %s: dropping the INVALID index %s that an earlier try left behind", revision, index["name"]
        )
        await connection.execute(f"DROP INDEX CONCURRENTLY {index['name']}")
    return False


async def _properties_wanted(connection: asyncpg.Connection, schema: str, sql: str, table: Name) -> Sequence[object]:
    """Those of the index as the statement builds it on an empty copy of the table, which nobody else sees."""
    live = quote_name(table, schema)
    copy = quote_identifier(table[-1])
    build = _without_schema(without_concurrently(sql))
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"CREATE TEMPORARY TABLE {copy} (LIKE {live}) ON COMMIT DROP")
        await connection.execute(build)
        index = await connection.fetchval(
            "SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = to_regclass('pg_temp.' || quote_ident($1))",
            table[-1],
        )
        return tuple(await connection.fetchrow(_PROPERTIES, index) or ())
    finally:
        await transaction.rollback()


def _without_schema(sql: str) -> str:
    """The same CREATE INDEX, on the table of this name that the session comes to first."""
    words = Words(list(tokens(sql)))
    words.until("on")
    words.take("on")
    words.take("only")
    match words.rest():
        case [schema, dot, *_] if schema.is_identifier and dot.is_symbol("."):
            return sql[: schema.start] + sql[dot.end :]
    return sql


async def _what_is_left_of_detaching(connection: asyncpg.Connection, schema: str, sql: str) -> str | None:
    """A DETACH PARTITION CONCURRENTLY that was cut short is finished by FINALIZE (PostgreSQL manual, "ALTER TABLE")."""
    words = Words(list(tokens(sql)))
    words.take("alter", "table")
    words.take("if", "exists")
    parent = quote_name(words.name(), schema)
    if not words.take("detach", "partition"):
        return sql
    partition = quote_name(words.name(), schema)
    state = await connection.fetchrow(_PARTITION, parent, partition)
    if state is None or not state["there"]:
        return sql
    if state["pending"]:
        return f"ALTER TABLE {parent} DETACH PARTITION {partition} FINALIZE"
    return sql if state["attached"] else None
