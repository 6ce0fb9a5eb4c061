"""Each entry becomes a log line of one replica, so that whoever collects logs has the audit, too."""

from __future__ import annotations

import logging

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.models import AuditEntry, AuditOutbox

_log = logging.getLogger("gasket.audit")

MOST_AT_ONCE = 500
"""Entries of one transaction."""

_FIELDS = (
    "actor",
    "actor_kind",
    "how",
    "source",
    "request_id",
    "action",
    "object_kind",
    "object_id",
    "table_name",
    "changed",
    "database_role",
)


async def log_entries(session: AsyncSession) -> int:
    """Write log lines of entries that have none yet; of how many. The caller commits.

    Replicas that do so at the same time take different ones. If the commit then fails, an entry is logged once more,
    with the same `entry`: none is missing.
    """
    waiting = select(AuditOutbox.entry_id).order_by(AuditOutbox.entry_id).limit(MOST_AT_ONCE)
    ids = (await session.scalars(waiting.with_for_update(skip_locked=True))).all()
    if not ids:
        return 0
    await session.execute(delete(AuditOutbox).where(AuditOutbox.entry_id.in_(ids)))
    entries = await session.scalars(select(AuditEntry).where(AuditEntry.id.in_(ids)).order_by(AuditEntry.id))
    for entry in entries:
        _log_entry(entry)
    return len(ids)


def _log_entry(entry: AuditEntry) -> None:
    """The rows before and after stay in the database: a log is read by more people, and nothing can be erased there."""
    fields = {name: value for name in _FIELDS if (value := getattr(entry, name)) is not None}
    fields |= {"entry": entry.id, "at": entry.at.isoformat()}
    if entry.table_name is None and entry.after is not None:
        fields["details"] = entry.after  # Gasket's own words, not the values of a row
    subject = " ".join(filter(None, [entry.object_kind, entry.object_id]))
    _log.info("%r (%s): %s %s", entry.actor, entry.how, entry.action, subject, extra=fields)
