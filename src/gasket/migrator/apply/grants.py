"""Rights of the application's role, where the role that migrates is another."""

from __future__ import annotations

import asyncpg

from gasket.migrator.ledger.tables import OWN_TABLES_PREFIX, VERSION_TABLE
from gasket.postgres.quoting import quote_identifier

# Only what the migration role owns: a schema may hold other applications' tables.
_MISSING = """
SELECT CASE
    WHEN c.relkind = 'S'
        THEN format('GRANT USAGE, SELECT, UPDATE ON SEQUENCE %I.%I TO %I', $1::text, c.relname, $2::name)
    WHEN own.own THEN format('GRANT SELECT ON %I.%I TO %I', $1::text, c.relname, $2::name)
    ELSE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I.%I TO %I', $1::text, c.relname, $2::name)
END
FROM pg_catalog.pg_class AS c
CROSS JOIN LATERAL (SELECT c.relname = $3::text OR starts_with(c.relname, $4::text) AS own) AS own
WHERE c.relnamespace = to_regnamespace(quote_ident($1::text))
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  AND pg_get_userbyid(c.relowner) = current_user
  AND NOT CASE
    WHEN c.relkind = 'S' THEN own.own OR has_sequence_privilege($2::name, c.oid, 'USAGE')
    WHEN own.own THEN has_table_privilege($2::name, c.oid, 'SELECT')
    ELSE has_table_privilege($2::name, c.oid, 'SELECT') AND has_table_privilege($2::name, c.oid, 'INSERT')
        AND has_table_privilege($2::name, c.oid, 'UPDATE') AND has_table_privilege($2::name, c.oid, 'DELETE')
  END
ORDER BY c.relname
"""


async def grant_to_application(connection: asyncpg.Connection, schema: str, role: str) -> None:
    """Give `role` DML on what the migrating role owns in `schema`, and SELECT on the migrator's own tables.

    Asks the catalog what is missing, so that a second call does nothing.
    """
    missing = [row[0] for row in await connection.fetch(_MISSING, schema, role, VERSION_TABLE, OWN_TABLES_PREFIX)]
    usage = "SELECT has_schema_privilege($1::name, to_regnamespace(quote_ident($2)), 'USAGE')"
    if not await connection.fetchval(usage, role, schema):
        missing.insert(0, f"GRANT USAGE ON SCHEMA {quote_identifier(schema)} TO {quote_identifier(role)}")
    if missing:
        await connection.execute(";\n".join(missing))
