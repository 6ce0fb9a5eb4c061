"""What the caller's role needs of the server, looked at before anything is made."""

from __future__ import annotations

from gasket.migrator.archive.schema import check_archive_rights
from gasket.migrator.errors import MissingPrivilegeError, ReadOnlyServerError
from gasket.migrator.gate.situation import Case
from gasket.postgres.quoting import quote_identifier

_RIGHTS = """
SELECT current_user::text AS role, n.oid IS NOT NULL AS there,
    has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
    coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), false) AS may_create_tables
FROM (SELECT to_regnamespace(quote_ident($1)) AS oid) AS n
"""


async def writable(case: Case) -> None:
    """A standby is waited for, because it may be promoted."""
    if not case.writes:
        return
    read_only = await case.connection.fetchval(
        "SELECT current_setting('transaction_read_only') = 'on' AND NOT pg_is_in_recovery()"
    )
    if read_only:
        raise ReadOnlyServerError(setting=case.config.migration_setting, in_recovery=False)


async def rights(case: Case) -> None:
    """The role may have to make the schema, and tables in it."""
    if not case.writes:
        return
    schema = case.config.schema
    [found] = await case.connection.fetch(_RIGHTS, schema)
    name, role = quote_identifier(schema), quote_identifier(found["role"])
    if not found["there"] and not found["may_create_schema"]:
        raise MissingPrivilegeError(
            role=found["role"], need=f"create schema {schema}", statement=f"CREATE SCHEMA {name} AUTHORIZATION {role}"
        )
    if found["there"] and not found["may_create_tables"]:
        raise MissingPrivilegeError(
            role=found["role"],
            need=f"create tables in schema {schema}",
            statement=f"GRANT USAGE, CREATE ON SCHEMA {name} TO {role}",
        )


async def archive_rights(case: Case) -> None:
    """If rows are going to be archived, the role has the rights to make the archive."""
    if not case.request.discard_data:
        await check_archive_rights(case.connection, case.config.schema)
