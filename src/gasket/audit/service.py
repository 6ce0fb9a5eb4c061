"""Reading the audit. What writes it are triggers, and `record` for what changes no row. Nothing here commits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.models import AuditEntry
from gasket.audit.schemas import AuditEntryOut, AuditPage, AuditQuery
from gasket.origin import Origin, parameters_of


class AuditService:
    """Entries of the audit."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(self, query: AuditQuery, *, size: int) -> AuditPage:
        """At most `size` entries, the newest first."""
        statement = select(AuditEntry).where(*_conditions(query)).order_by(AuditEntry.id.desc()).limit(size + 1)
        rows = (await self._session.scalars(statement)).all()
        fields = AuditEntryOut.__struct_fields__
        items = [AuditEntryOut(**{name: getattr(row, name) for name in fields}) for row in rows[:size]]
        return AuditPage(items=items, next=items[-1].id if len(rows) > size else None)

    async def record(
        self,
        origin: Origin,
        action: str,
        *,
        object_kind: str | None = None,
        object_id: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an entry of something that changes no row."""
        values = parameters_of(origin) | {
            "action": action,
            "object_kind": object_kind,
            "object_id": object_id,
            "after": details,
        }
        await self._session.execute(insert(AuditEntry).values(values))


def _conditions(query: AuditQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.who is not None:
        conditions.append(func.lower(AuditEntry.actor) == func.lower(query.who))
    for name in ("object_kind", "object_id", "action"):
        wanted = getattr(query, name)
        if wanted is not None:
            conditions.append(getattr(AuditEntry, name) == wanted)
    if query.start is not None:
        conditions.append(AuditEntry.at >= query.start)
    if query.end is not None:
        conditions.append(AuditEntry.at < query.end)
    if query.before is not None:
        conditions.append(AuditEntry.id < query.before)
    return conditions
