"""Whether a database without a version table holds tables that our revisions would make."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable

import asyncpg

from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import AdoptionError, MigratorError
from gasket.migrator.gate.situation import Case
from gasket.migrator.ledger.read import read_versions
from gasket.migrator.ledger.tables import OWN_TABLES_PREFIX, VERSION_TABLE
from gasket.migrator.revisions.files import Revisions

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


async def nothing_in_the_way(case: Case) -> MigratorError | None:
    if case.situation.database.has_version_table:
        return None
    found = await collisions_with_revisions(case.connection, case.config, case.situation.revisions)
    # Without the lock, another start may have made the tables, and the version table with them, since the situation
    # was read.
    if not found or await read_versions(case.connection, case.config.schema):
        return None
    return AdoptionError(found=found)


async def collisions_with_revisions(
    connection: asyncpg.Connection, config: MigratorConfig, revisions: Revisions
) -> list[str]:
    """The names that revisions make and that are there already: for a database without a version table.

    In an empty schema it is one short SELECT; only where something is there are the revisions rendered.
    """
    if not await connection.fetchval(_ANYTHING, config.schema):
        return []
    rows = await connection.fetch(_NAMES, config.schema, VERSION_TABLE, OWN_TABLES_PREFIX)
    present = {row["name"] for row in rows}
    if not present:
        return []
    names_made: Callable[[MigratorConfig, Revisions], set[str]] = pkgutil.resolve_name(_NAMES_MADE)
    return sorted(present & names_made(config, revisions))
