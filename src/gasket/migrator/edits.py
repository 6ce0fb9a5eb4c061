"""Applied files that are no longer what was applied: edited, or gone from the middle of the chain."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from gasket.migrator.digest import digest
from gasket.migrator.errors import EditedRevisionError, RevisionFileError
from gasket.migrator.ledger import DatabaseState, read_digests
from gasket.migrator.plan import Plan
from gasket.migrator.revisions import RevisionFile


@dataclass(frozen=True, slots=True)
class Edit:
    """An applied file that differs, or is gone; when it was applied, and by which release."""

    revision: str
    gone: bool
    applied_at: str
    applied_by: str | None

    def __str__(self) -> str:
        what = "is gone" if self.gone else "was edited"
        by = self.applied_by or "(unknown)"
        return f"the file of revision {self.revision} {what} since release {by} applied it at {self.applied_at}"


async def find_edits(
    connection: asyncpg.Connection, schema: str, plan: Plan, database: DatabaseState
) -> tuple[Edit, ...]:
    """Parse only files whose bytes differ: another comment is no edit, another statement is, and so is no Python."""
    applied = await read_digests(connection, schema, [f.revision for f in plan.changed]) if plan.changed else {}
    edited = [
        file.revision for file in plan.changed if file.revision in applied and _is_edited(file, applied[file.revision])
    ]
    found = [(revision, False) for revision in edited] + [(entry.revision, True) for entry in plan.missing]
    return tuple(
        Edit(revision, gone, database.ledger[revision].started_at, database.ledger[revision].release)
        for revision, gone in found
    )


def file_digest(file: RevisionFile) -> str:
    """The digest of a file as it is now.

    Raises:
        RevisionFileError: it is not Python.
    """
    try:
        return digest(file.path.read_bytes())
    except SyntaxError as error:
        raise RevisionFileError(
            file=file.path.name, problem=f"is not Python ({error.msg}, line {error.lineno})"
        ) from None
    except ValueError as error:
        raise RevisionFileError(file=file.path.name, problem=f"is not Python ({error})") from None


def check_edits(plan: Plan, edits: tuple[Edit, ...]) -> None:
    """Refuse to build on files that are not what was applied.

    Raises:
        EditedRevisionError: there is an edit, and something is pending.
    """
    if edits and plan.pending:
        edit = edits[0]
        raise EditedRevisionError(
            revision=edit.revision,
            gone=edit.gone,
            applied_at=edit.applied_at,
            applied_by=edit.applied_by,
            pending=[file.revision for file in plan.pending],
        )


def _is_edited(file: RevisionFile, applied: str) -> bool:
    try:
        return file_digest(file) != applied
    except RevisionFileError:
        return True
