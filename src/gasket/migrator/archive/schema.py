"""The schema in which the rows that a downgrade takes away are kept: its name, and the rights to it.

It is the migration role's alone, whatever default privileges say.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import asyncpg
from sqlalchemy import Connection

from gasket.migrator.errors import MissingPrivilegeError
from gasket.postgres.driver import fetch
from gasket.postgres.quoting import quote_identifier

MANIFEST = "manifest"
"""The table of the archive that says what the others hold."""
_NAME = "gasket_archive"
_LONGEST_NAME = 63  # bytes (PostgreSQL manual, "Identifiers and Key Words")

# Asked of the catalog: to_regclass raises an error for a schema that this role may not look into.
_RIGHTS = f"""
SELECT current_user::text AS role, n.oid IS NOT NULL AS there,
    EXISTS (SELECT FROM aclexplode(n.nspacl) AS a WHERE a.grantee = 0) AS open_to_all,
    has_database_privilege(current_database(), 'CREATE') AS may_create,
    coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), false) AS may_use,
    (SELECT coalesce(bool_and(has_table_privilege(c.oid, needed.privilege)), true)
     FROM pg_class AS c CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed(privilege)
     WHERE c.relnamespace = n.oid AND c.relname = '{MANIFEST}') AS may_write
FROM (SELECT $1::text AS name) AS wanted LEFT JOIN pg_namespace AS n ON n.nspname = wanted.name
"""
_GRANTEES = """
SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
FROM pg_namespace AS n CROSS JOIN aclexplode(n.nspacl) AS a WHERE n.nspname = $1 AND a.grantee <> n.nspowner
"""


def archive_schema(schema: str) -> str:
    """The name of the schema in which the rows that `schema` loses are kept."""
    name = _NAME if schema == "public" else f"{_NAME}_{schema}"
    if len(name.encode()) > _LONGEST_NAME:  # PostgreSQL would cut it, and two schemas might share one archive
        name = f"{_NAME}_{sha256(schema.encode()).hexdigest()[:32]}"
    return name


def stored(schema: str, table: str) -> str:
    """The qualified name of a table of the archive, as SQL."""
    return f"{quote_identifier(archive_schema(schema))}.{quote_identifier(table)}"


async def check_archive_rights(connection: asyncpg.Connection, schema: str) -> None:
    """Refuse a downgrade whose rows could not be kept, before any of it starts.

    Raises:
        MissingPrivilegeError: the role may not make the schema, or not write in it.
    """
    _refuse_without_rights(await connection.fetchrow(_RIGHTS, archive_schema(schema)), schema)


def ensure_schema(connection: Connection, schema: str) -> None:
    """Make it, in the transaction that needs it.

    Raises:
        MissingPrivilegeError: the role may not.
    """
    name = archive_schema(schema)
    [rights] = fetch(connection, _RIGHTS, name)
    _refuse_without_rights(rights, schema)
    if not rights["there"]:
        connection.exec_driver_sql(f"CREATE SCHEMA {quote_identifier(name)}")
        # ALTER DEFAULT PRIVILEGES ... ON SCHEMAS may have opened it already.
        for grantee in connection.exec_driver_sql(_GRANTEES, (name,)).scalars().all():
            connection.exec_driver_sql(f"REVOKE ALL ON SCHEMA {quote_identifier(name)} FROM {grantee}")
    elif rights["open_to_all"]:
        connection.exec_driver_sql(f"REVOKE ALL ON SCHEMA {quote_identifier(name)} FROM PUBLIC")


def _refuse_without_rights(rights: Any, schema: str) -> None:
    name = archive_schema(schema)
    quoted, role = quote_identifier(name), quote_identifier(rights["role"])
    purpose = "which keeps the rows that a downgrade takes away"
    if not rights["there"]:
        if rights["may_create"]:
            return
        need, statement = f"create schema {name}, {purpose}", f"CREATE SCHEMA {quoted} AUTHORIZATION {role}"
    elif not rights["may_use"]:
        need = f"create tables in schema {name}, {purpose}"
        statement = f"GRANT USAGE, CREATE ON SCHEMA {quoted} TO {role}"
    elif not rights["may_write"]:
        need = f"write in {name}.{MANIFEST}, the book of what downgrades took away"
        statement = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {quoted} TO {role}"
    else:
        return
    raise MissingPrivilegeError(role=rights["role"], need=need, statement=statement)
