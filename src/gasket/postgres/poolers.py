"""Connection poolers between Gasket and the server."""

from __future__ import annotations

import asyncpg


async def leads_through_pooler(connection: asyncpg.Connection) -> bool:
    """Whether a pooler hands sessions around: it invents the backend pid that the client is told."""
    return bool(await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid())
