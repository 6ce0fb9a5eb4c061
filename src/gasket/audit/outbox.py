"""Each entry becomes a log line of one replica, so that whoever collects logs has the audit, too."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sqlalchemy import Row, case, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.models import AuditEntry, AuditOutbox

_log = logging.getLogger("gasket.audit")

MOST_AT_ONCE = 100
"""Entries of one transaction."""

LOGGED_AT_ONCE = 10
"""Lines for which requests wait, half a millisecond. A change of 100,000 rows by SQL leaves as many entries."""

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

# The rows before and after stay in the database: a log is read by more people, and nothing can be erased there. Where
# no row was changed, `after` has Gasket's own words.
_DETAILS = case((AuditEntry.table_name.is_(None), AuditEntry.after)).label("details")
_WAITING = (
    select(AuditOutbox.entry_id)
    .order_by(AuditOutbox.entry_id)
    .limit(MOST_AT_ONCE)
    .with_for_update(skip_locked=True)
    .cte("waiting")
)
_TAKE = (
    select(AuditEntry.id, AuditEntry.at, *(getattr(AuditEntry, name) for name in _FIELDS), _DETAILS)
    .join(_WAITING, _WAITING.c.entry_id == AuditEntry.id)
    .order_by(AuditEntry.id)
    .add_cte(delete(AuditOutbox).where(AuditOutbox.entry_id == _WAITING.c.entry_id).cte("taken"))
)


async def log_entries(session: AsyncSession) -> int:
    """Write log lines of entries that have none yet; of how many. The caller commits.

    Replicas that do so at the same time take different ones. If the commit then fails, an entry is logged once more,
    with the same `entry`: none is missing.
    """
    entries = (await session.execute(_TAKE)).all()
    for start in range(0, len(entries), LOGGED_AT_ONCE):
        for entry in entries[start : start + LOGGED_AT_ONCE]:
            _log_entry(entry)
        await asyncio.sleep(0)
    return len(entries)


def _log_entry(entry: Row[Any]) -> None:
    fields = {name: value for name in (*_FIELDS, "details") if (value := getattr(entry, name)) is not None}
    fields |= {"entry": entry.id, "at": entry.at.isoformat()}
    subject = " ".join(filter(None, [entry.object_kind, entry.object_id]))
    _log.info("%r (%s): %s %s", entry.actor, entry.how, entry.action, subject, extra=fields)
