"""Old entries are deleted, a few at a time. That they were is an entry, too, which a trigger makes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.models import AuditEntry

MOST_AT_ONCE = 5000
"""Entries that one statement deletes."""


async def delete_old(session: AsyncSession, *, days: int, at_once: int = MOST_AT_ONCE) -> bool:
    """Delete one batch of the entries of days that are so long ago; whether there may be more. The caller commits.

    Whole days: so there is one entry about it a day, and not one an hour. The database's clock decides.
    """
    too_old = AuditEntry.at < func.date_trunc("day", func.now()) - timedelta(days=days)
    batch = select(AuditEntry.id).where(too_old).order_by(AuditEntry.id).limit(at_once)
    old = batch.with_for_update(skip_locked=True).cte("old")
    await session.execute(select(func.set_config("gasket.audit_exception", "retention", True)))
    # The ids stay in the database: to have thousands of them here holds requests up for 20 ms and more.
    statement = delete(AuditEntry).where(AuditEntry.id == old.c.id).execution_options(synchronize_session=False)
    deleted = cast(CursorResult[Any], await session.execute(statement))
    return deleted.rowcount == at_once
