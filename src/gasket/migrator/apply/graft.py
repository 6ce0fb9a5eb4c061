"""Revisions that this release has no file for, put into Alembic's map from what the ledger keeps of them.

Alembic's own downgrade then works on them as on any other, merges and branches included. Only a way down is
grafted: with grafts in the map, `upgrade head` would take the newer schema for this release's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import TopologicalSorter
from types import ModuleType
from typing import Any

from alembic import op
from alembic.script import Script, ScriptDirectory

from gasket.migrator.errors import NotReplayableError
from gasket.migrator.ledger.read import StoredRevision
from gasket.migrator.sql.render import from_json, replay


def graft(directory: ScriptDirectory, stored: Mapping[str, StoredRevision]) -> None:
    """Add the revisions to the directory's map, what they stand on first."""
    parents = {
        revision: [parent for parent in _parents_of(stored[revision].script) if parent in stored]
        for revision in sorted(stored)
    }
    for revision in TopologicalSorter(parents).static_order():
        module = _module(stored[revision])
        directory.revision_map.add_revision(_Grafted(module, revision, f"<ledger:{revision}>"))


class _Grafted(Script):
    """A revision of another release: `alembic current` does not call it a head of this one."""

    def cmd_format(self, verbose: bool, *shape: bool, **named_shape: bool) -> str:
        """Alembic's line of it, or its lines, without the mark."""
        return super().cmd_format(verbose, *shape, **named_shape).replace(" (head)", "", 1)


def never_seen(revision: str) -> StoredRevision:
    """A stand-in for a revision of which the ledger keeps no script, so that Alembic can at least name it."""
    script = {"doc": "this release does not have its file"}
    return StoredRevision(revision, release=None, digest=None, script=script, downgrade_sql=None)


def _parents_of(script: Mapping[str, Any]) -> tuple[str, ...]:
    """Down revisions and dependencies of a stored script."""
    return tuple(name for field in ("down_revision", "depends_on") for name in _tuple(script.get(field)))


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
