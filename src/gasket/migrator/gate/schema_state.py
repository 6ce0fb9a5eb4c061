"""What would happen: the files against the state of the database. Pure, and no judgement: `checks` refuses."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from gasket.migrator.ledger.read import DatabaseState, LedgerEntry
from gasket.migrator.revisions.files import RevisionFile, Revisions


class SchemaState(StrEnum):
    """How the live schema stands to this release's files."""

    AT_HEAD = "at_head"
    BEHIND = "behind"
    AHEAD = "ahead"
    """Newer revisions are applied, and every one is recorded as backward compatible."""
    INCOMPATIBLE = "incompatible"
    """Newer revisions are applied that this release cannot run on, or that nothing is known of."""


class Plan(msgspec.Struct, frozen=True):
    """`pending` in the order in which they would be applied; the others sorted by revision.

    `heads` are those of the files, of which there should be one. `applied` are the live versions and all that they
    stand on, by the files and, where those are missing, by the ledger. `unknown` are applied above what this release
    has: of one that the ledger does not know either, the entry has no more than its name.
    `changed` are applied files whose bytes are not those that were applied (their code may be), `missing` are applied
    revisions below ours whose files are gone. `taken_back` are the last ledger rows of pending revisions where those
    rows are downgrades. `unfounded` are files with a parent that neither a file nor the ledger knows.
    """

    state: SchemaState
    heads: tuple[str, ...]
    applied: frozenset[str]
    pending: tuple[RevisionFile, ...]
    unknown: tuple[LedgerEntry, ...]
    changed: tuple[RevisionFile, ...]
    missing: tuple[LedgerEntry, ...]
    taken_back: tuple[LedgerEntry, ...]
    unfounded: tuple[tuple[RevisionFile, str], ...]

    @property
    def head(self) -> str | None:
        """Where this release brings a schema."""
        return self.heads[0] if self.heads else None

    @property
    def serves(self) -> bool:
        """Whether this release can serve on the schema as it is."""
        return self.state in (SchemaState.AT_HEAD, SchemaState.AHEAD)

    @property
    def worst(self) -> LedgerEntry:
        """Of the unknown revisions, the first on which this release cannot run."""
        return next((entry for entry in self.unknown if not entry.backward_compatible), self.unknown[0])

    def why_incompatible(self) -> str:
        """Why this release cannot run on revisions that it lacks, as a clause."""
        if self.worst.backward_compatible:
            return f"it lacks {self.pending[0].revision} of this release, which stands beside it"
        if self.worst.backward_compatible is None:
            return "nothing says that older releases can run on it"
        return "it is recorded as not backward compatible"


def make_plan(revisions: Revisions, database: DatabaseState) -> Plan:
    """Compare the two.

    Raises:
        RevisionFileError: a pending file stands on itself, through others or not.
    """
    ledger = database.ledger
    without_file = revisions.without_file
    below_missing = _closure(without_file, revisions, database)
    missing = below_missing - revisions.keys()
    applied = _closure(database.versions, revisions, database)
    pending = revisions.in_order(revisions.keys() - applied)
    unknown = tuple(ledger.get(r) or _not_in_ledger(r) for r in sorted(applied - revisions.keys() - missing))
    if unknown:
        runs = not pending and all(revision.backward_compatible for revision in unknown)
        state = SchemaState.AHEAD if runs else SchemaState.INCOMPATIBLE
    else:
        state = SchemaState.BEHIND if pending else SchemaState.AT_HEAD
    last_rows = (ledger.get(file.revision) for file in pending)
    return Plan(
        state=state,
        applied=applied,
        heads=tuple(revision for revision in revisions.heads if revision not in below_missing),
        pending=pending,
        unknown=unknown,
        changed=tuple(file for r, file in revisions.items() if r in applied and _bytes_differ(file, ledger.get(r))),
        missing=tuple(ledger[r] for r in sorted(missing & applied) if r in ledger),
        taken_back=tuple(row for row in last_rows if row and row.direction == "downgrade"),
        unfounded=tuple((file, parent) for parent, file in without_file.items() if parent not in ledger),
    )


def _closure(start: Iterable[str], revisions: Revisions, database: DatabaseState) -> frozenset[str]:
    """The revisions and all that they stand on, by the files and, where those are missing, by the ledger."""
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        revision = waiting.pop()
        if revision not in reached:
            reached.add(revision)
            known = revisions.get(revision)
            entry = database.ledger.get(revision)
            waiting += known.parents if known else entry.down_revisions if entry else ()
    return frozenset(reached)


def _bytes_differ(file: RevisionFile, entry: LedgerEntry | None) -> bool:
    if entry is None or entry.file_sha256 is None:
        return False
    return file.sha256 != entry.file_sha256 and file.sha256 not in entry.accepted


def _not_in_ledger(revision: str) -> LedgerEntry:
    return LedgerEntry(revision, (), direction="", file_sha256=None, release=None, backward_compatible=None)
