"""What is done around the schema and changes no audited row: each time it is an entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.service import AuditService
from gasket.migrator.archive.look import ArchivedRows
from gasket.migrator.ledger.background import Work
from gasket.migrator.operations import SchemaOperations
from gasket.origin import Origin

HIDDEN = frozenset(
    {"api_key", "client_certificate", "credential", "digest", "headers", "key_value", "proxy_url", "root_proof"}
)
"""Columns with secrets and digests, whatever table an archive has of them: they are not shown."""


class AuditedSchema:
    """The verbs of `SchemaOperations` that somebody has to answer for. The entry is of the request's transaction.

    It is written first: if the database does not take it, nothing else is done.
    """

    def __init__(self, operations: SchemaOperations, session: AsyncSession, origin: Origin) -> None:
        self._operations = operations
        self._audit = AuditService(session)
        self._origin = origin

    async def archived_rows(self, archive: int, entry: int, *, cursor: str | None, limit: int) -> ArchivedRows:
        """Rows that an archive keeps, as `SchemaOperations.archived_rows` has them."""
        await self._record("look", "archive", archive, {"entry": entry, "cursor": cursor})
        return await self._operations.archived_rows(archive, entry, cursor=cursor, limit=limit, hidden=HIDDEN)

    async def pause(self, work: int) -> Work:
        """As `SchemaOperations.pause`."""
        await self._record("pause", "background", work)
        return await self._operations.pause(work)

    async def resume(self, work: int) -> Work:
        """As `SchemaOperations.resume`."""
        await self._record("resume", "background", work)
        return await self._operations.resume(work)

    async def _record(self, action: str, kind: str, number: int, details: Mapping[str, Any] | None = None) -> None:
        await self._audit.record(self._origin, action, object_kind=kind, object_id=str(number), details=details)
