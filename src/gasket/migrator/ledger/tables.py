"""The `migration_*` tables: their names and columns, and how they are made.

They belong to the migrator and not to the revisions. Columns are only ever added, under the lock: the tables survive
`downgrade base`, and an older release can read and write them.
"""

from __future__ import annotations

import asyncpg

from gasket.postgres.quoting import quote_identifier

VERSION_TABLE = "alembic_version"
OWN_TABLES_PREFIX = "migration_"
LEDGER = "migration_ledger"
FAILURES = "migration_failures"
CATALOG = "migration_catalog"
PROGRESS = "migration_progress"
BACKGROUND = "migration_background"

# Those of the first release: every ledger has them. A new column goes into _ADDED_COLUMNS.
LEDGER_COLUMNS = {
    "revision": "text NOT NULL",
    "down_revision": "text",
    "direction": "text NOT NULL",
    "file_sha256": "text",
    "release": "text",
    "role": "text",
    "host": "text",
    "started_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
    "duration_ms": "bigint",
    "backward_compatible": "boolean",
}
_ADDED_COLUMNS = {"digest": "text", "script": "jsonb", "downgrade_sql": "jsonb", "command": "text", "files": "text"}
"""Columns that the ledger of an older release may lack; `files` is the fingerprint of the writing release's files."""

FAILURE_COLUMNS = {
    "revision": "text",
    "direction": "text",
    "error": "text NOT NULL",
    "release": "text",
    "role": "text DEFAULT current_user",
    "host": "text",
    "failed_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
}
_ADDED_FAILURE_COLUMNS = {"files": "text"}
_CATALOG_COLUMNS = {
    "ledger_row": "bigint NOT NULL",
    "server_version": "integer NOT NULL",
    "objects": "text NOT NULL",
    "recorded_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
}
"""`objects` is JSON: kind, name, schema, owner and definition of each object that is expected."""
_PROGRESS_COLUMNS = {
    "revision": "text NOT NULL",
    "downgrade": "boolean NOT NULL",
    "statement": "text NOT NULL",
    "finished": "boolean NOT NULL",
    "row_count": "bigint",
    "command": "text",
    "role": "text DEFAULT current_user",
    "begun_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
}
"""A row for each statement that an unrecorded step has committed; there are none once the step is on the ledger.

`finished` is false where PostgreSQL runs the statement outside of transactions: it has begun, and the catalog tells
whether it has ended.
"""
_BACKGROUND_COLUMNS = {
    "revision": "text NOT NULL",
    "number": "integer NOT NULL",
    "kind": "text NOT NULL",
    "table_name": "text NOT NULL",
    "statement": "text NOT NULL",
    "condition": "text",
    "state": "text NOT NULL DEFAULT 'pending'",
    "cursor": "text[]",
    "walk": "integer NOT NULL DEFAULT 1",
    "rows_done": "bigint NOT NULL DEFAULT 0",
    "rows_estimated": "bigint",
    "worker": "text",
    "error": "text",
    "release": "text",
    "declared_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
    "changed_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
}
"""A row for each piece of work that a revision leaves for the time after the start, in the order of its declaration.

`statement` is what a backfill sets, or the CREATE INDEX. `cursor` is the primary key of the last row that the present
walk has passed, as text; `walk` counts how often the table is walked through.
"""

_COLUMNS_OF = """
SELECT name, a.attname::text FROM unnest($1::text[]) AS name
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = to_regclass(name) AND a.attnum > 0 AND NOT a.attisdropped
"""
_TABLES = {
    LEDGER: LEDGER_COLUMNS | _ADDED_COLUMNS,
    FAILURES: FAILURE_COLUMNS | _ADDED_FAILURE_COLUMNS,
    CATALOG: _CATALOG_COLUMNS,
    PROGRESS: _PROGRESS_COLUMNS,
    BACKGROUND: _BACKGROUND_COLUMNS,
}


async def missing_tables(connection: asyncpg.Connection, schema: str) -> str:
    """The script that makes the migrator's tables, or adds the columns that an older release did not know.

    Empty where all is there. Only under the lock.
    """
    tables = {qualified(schema, name): columns for name, columns in _TABLES.items()}
    present: dict[str, set[str]] = {}
    for table, column in await connection.fetch(_COLUMNS_OF, list(tables)):
        present.setdefault(table, set()).add(column)
    statements: list[str] = []
    for table, columns in tables.items():
        if table in present:
            missing = columns.keys() - present[table]
            statements += [f"ALTER TABLE {table} ADD COLUMN {column} {columns[column]}" for column in missing]
        else:
            definitions = ", ".join(f"{column} {kind}" for column, kind in columns.items())
            statements.append(
                f"CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {definitions})"
            )
    return ";\n".join(statements)


def qualified(schema: str, table: str) -> str:
    """The table's name with its schema, as SQL."""
    return f"{quote_identifier(schema)}.{table}"
