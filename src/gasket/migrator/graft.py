"""Revisions that this release has no file for, put into Alembic's map from what the ledger keeps of them.

Alembic's own downgrade then works on them as on any other, merges and branches included. Only a way down is
grafted: with grafts in the map, `upgrade head` would take the newer schema for this release's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from alembic import op
from alembic.script import Script, ScriptDirectory

from gasket.migrator.errors import NotReplayableError
from gasket.migrator.ledger import StoredRevision
from gasket.migrator.sql.render import from_json, replay


def check_replayable(revisions: Iterable[str], stored: Mapping[str, StoredRevision]) -> None:
    """Before anything is taken back: can all of it be?

    Raises:
        NotReplayableError: the first that cannot, with the reason.
    """
    for revision in revisions:
        record = stored.get(revision)
        if record is None:
            raise NotReplayableError(revision=revision, applied_by=None, reason="the ledger has no record of it")
        if record.downgrade_sql is None:
            raise NotReplayableError(
                revision=revision, applied_by=record.release, reason="the SQL of its downgrade was not stored"
            )
        if reason := from_json(record.downgrade_sql).reason:
            raise NotReplayableError(revision=revision, applied_by=record.release, reason=f"its downgrade {reason}")


def graft(directory: ScriptDirectory, stored: Mapping[str, StoredRevision]) -> None:
    """Add the revisions to the directory's map, what they stand on first."""
    for revision in _parents_first(stored):
        module = _module(stored[revision])
        directory.revision_map.add_revision(Script(module, revision, f"<ledger:{revision}>"))


def parents_of(script: Mapping[str, Any]) -> tuple[str, ...]:
    """Down revisions and dependencies of a stored script."""
    return tuple(name for field in ("down_revision", "depends_on") for name in _tuple(script.get(field)))


def _parents_first(stored: Mapping[str, StoredRevision]) -> list[str]:
    order: list[str] = []
    seen: set[str] = set()
    waiting = [(revision, False) for revision in sorted(stored)]
    while waiting:  # iterative: a long chain would overflow recursion
        revision, parents_done = waiting.pop()
        if parents_done:
            order.append(revision)
        elif revision not in seen:
            seen.add(revision)
            waiting.append((revision, True))
            waiting += [(parent, False) for parent in parents_of(stored[revision].script) if parent in stored]
    return order


def _module(record: StoredRevision) -> ModuleType:
    module: Any = ModuleType(f"ledger_{record.revision}")
    module.__doc__ = record.script.get("doc") or ""
    module.revision = record.revision
    for name in ("down_revision", "depends_on", "branch_labels"):
        value = record.script.get(name)
        setattr(module, name, tuple(value) if isinstance(value, list) else value)

    def upgrade() -> None:
        raise NotReplayableError(
            revision=record.revision, applied_by=record.release, reason="only its downgrade is in the ledger"
        )

    def downgrade() -> None:
        replay(op.get_context(), from_json(record.downgrade_sql or "").statements)

    module.upgrade, module.downgrade = upgrade, downgrade
    result: ModuleType = module
    return result


def _tuple(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]
