"""Whether the migrating role may keep the migrator's own tables."""

from __future__ import annotations

import asyncpg

from gasket.migrator.errors import MissingPrivilegeError
from gasket.migrator.ledger.tables import BACKGROUND, FAILURES, LEDGER, PROGRESS, VERSION_TABLE
from gasket.postgres.errors import describe
from gasket.postgres.quoting import quote_identifier


async def not_our_books(connection: asyncpg.Connection, schema_name: str, error: Exception) -> MissingPrivilegeError:
    """The refusal of a role that may not keep the migrator's own tables, with the statements that mend it."""
    books = "relnamespace = to_regnamespace(quote_ident($1)) AND relname = ANY ($2)"
    [(name, tables)] = await connection.fetch(
        f"SELECT current_user, ARRAY(SELECT relname::text FROM pg_catalog.pg_class WHERE {books} ORDER BY 1)",
        schema_name,
        [VERSION_TABLE, LEDGER, FAILURES, PROGRESS, BACKGROUND],
    )
    schema, role = quote_identifier(schema_name), quote_identifier(name)
    statements = [f"ALTER TABLE {schema}.{table} OWNER TO {role}" for table in tables]
    return MissingPrivilegeError(
        role=name,
        need=f"keep the migrator's own tables ({describe(error)})",
        statement="; ".join(statements or [f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}"]),
    )
