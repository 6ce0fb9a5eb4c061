"""Whether a database without a version table holds tables that our revisions would make."""

from __future__ import annotations

import pkgutil

from gasket.migrator.errors import AdoptionError
from gasket.migrator.gate.situation import Case
from gasket.migrator.ledger.read import read_versions
from gasket.migrator.ledger.tables import OWN_TABLES_PREFIX, VERSION_TABLE

_NAMES_MADE = "gasket.migrator.revisions.names_made:names_made"
# Whatever is in a schema depends on it.
_ANYTHING = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::regclass
               AND refobjid = to_regnamespace(quote_ident($1)))
"""
_NAMES = """
SELECT c.relname::text AS name FROM pg_catalog.pg_class AS c
WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c', 'S')
  AND c.relname <> $2 AND NOT starts_with(c.relname, $3)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
UNION
SELECT t.typname::text FROM pg_catalog.pg_type AS t
WHERE t.typnamespace = to_regnamespace(quote_ident($1)) AND t.typtype IN ('e', 'd', 'r')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                  WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
"""


async def nothing_in_the_way(case: Case) -> None:
    """In an empty schema it is one short SELECT; only where something is there are the revisions rendered."""
    connection, config, situation = case.connection, case.config, case.situation
    if situation.database.has_version_table or not await connection.fetchval(_ANYTHING, config.schema):
        return
    rows = await connection.fetch(_NAMES, config.schema, VERSION_TABLE, OWN_TABLES_PREFIX)
    present = {row["name"] for row in rows}
    found = sorted(present & pkgutil.resolve_name(_NAMES_MADE)(config, situation.revisions)) if present else []
    # Without the lock, another start may have made the tables, and the version table with them, since the situation
    # was read.
    if found and not await read_versions(connection, config.schema):
        raise AdoptionError(found=found)
