"""Applied files that are no longer what was applied: edited, or gone from the middle of the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from gasket.migrator.errors import RevisionFileError
from gasket.migrator.ledger.read import LedgerEntry, read_digests
from gasket.migrator.revisions.digest import digest
from gasket.migrator.revisions.files import RevisionFile


class Edit(msgspec.Struct, frozen=True):
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
    connection: asyncpg.Connection,
    schema: str,
    *,
    changed: Sequence[RevisionFile],
    missing: Sequence[LedgerEntry],
    ledger: Mapping[str, LedgerEntry],
) -> tuple[Edit, ...]:
    """Which of the `changed` files, whose bytes differ, do something else than what was applied; and the `missing`.

    Only changed files are parsed. Another comment is no edit. Another statement is one, and so is a file that is
    not Python any more.
    """
    applied = await read_digests(connection, schema, [file.revision for file in changed]) if changed else {}
    edited = [
        file.revision for file in changed if file.revision in applied and _is_edited(file, applied[file.revision])
    ]
    found = [(revision, False) for revision in edited] + [(entry.revision, True) for entry in missing]
    return tuple(
        Edit(revision, gone, ledger[revision].started_at, ledger[revision].release) for revision, gone in found
    )


def _is_edited(file: RevisionFile, applied: set[str]) -> bool:
    try:
        return digest(file.parse()) not in applied
    except RevisionFileError:
        return True
