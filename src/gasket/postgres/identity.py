"""Which database a connection leads to."""

from __future__ import annotations

import asyncpg


async def database_identity(connection: asyncpg.Connection) -> str | None:
    """What tells a database from all others, but not from its physical standbys; None where the role may not know."""
    try:
        identity: str = await connection.fetchval(
            "SELECT concat_ws(' ', system_identifier, oid) FROM pg_catalog.pg_control_system(), pg_catalog.pg_database "
            "WHERE datname = current_database()"
        )
    except asyncpg.InsufficientPrivilegeError:
        return None
    return identity
