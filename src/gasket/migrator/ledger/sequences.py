"""The sequence of a `migration_*` table that lies behind the table's ids, as after a restore without sequences."""

from __future__ import annotations

import asyncpg

from gasket.migrator.ledger.tables import BACKGROUND, FAILURES, LEDGER, PROGRESS, qualified

# Not the catalog's: its only row is replaced, so its number is never taken.
_TABLES = (LEDGER, FAILURES, PROGRESS, BACKGROUND)


def lagging_table(error: BaseException, schema: str, *others: tuple[str, str]) -> str | None:
    """The table, as SQL, whose sequence gave out an id that a row has; None where `error` is about something else.

    It is one of the migrator's in `schema`, or one of `others`, each a schema and a table. `error` may be SQLAlchemy's.
    """
    original = getattr(error, "orig", None) or error
    cause = original if isinstance(original, asyncpg.PostgresError) else original.__cause__
    if not isinstance(cause, asyncpg.UniqueViolationError) or cause.constraint_name != f"{cause.table_name}_pkey":
        return None
    found = (cause.schema_name, cause.table_name)
    own = [(schema, table) for table in _TABLES]
    return qualified(*found) if found in (*own, *others) else None


def set_sequence(table: str) -> str:
    """The statement that sets the sequence of `table`, as SQL, to its last id."""
    literal = table.replace("'", "''")
    return f"SELECT setval(pg_get_serial_sequence('{literal}', 'id'), (SELECT max(id) FROM {table}));"
