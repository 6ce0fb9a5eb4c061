"""What would happen: the files against the state of the database. Pure; nothing here touches either."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gasket.migrator.errors import HeldRevisionError, MultipleHeadsError, RevisionFileError, SchemaAheadError
from gasket.migrator.ledger import DatabaseState, LedgerEntry
from gasket.migrator.revisions import RevisionFile, Revisions


class SchemaState(StrEnum):
    """How the live schema stands to this release's files."""

    AT_HEAD = "at_head"
    BEHIND = "behind"
    AHEAD = "ahead"
    """Newer revisions are applied, and every one is recorded as backward compatible."""
    INCOMPATIBLE = "incompatible"
    """Newer revisions are applied that this release cannot run on, or that nothing is known of."""


@dataclass(frozen=True, slots=True)
class UnknownRevision:
    """A revision that the database has and this release lacks, with what the ledger knows of it."""

    revision: str
    release: str | None
    backward_compatible: bool | None


@dataclass(frozen=True, slots=True)
class Plan:
    """`pending` in the order in which they would be applied; the others sorted by revision.

    `unknown` are applied above what this release has. `changed` are applied files whose bytes are not those that
    were applied (their code may be), `missing` are applied revisions below ours whose files are gone. `held` is
    the last ledger row of this release's head where that row is a downgrade.
    """

    state: SchemaState
    head: str | None
    pending: tuple[RevisionFile, ...]
    unknown: tuple[UnknownRevision, ...]
    changed: tuple[RevisionFile, ...]
    missing: tuple[LedgerEntry, ...]
    held: LedgerEntry | None

    @property
    def serves(self) -> bool:
        """Whether this release can serve on the schema as it is."""
        return self.state in (SchemaState.AT_HEAD, SchemaState.AHEAD)


def make_plan(revisions: Revisions, database: DatabaseState) -> Plan:
    """Compare the two.

    Raises:
        MultipleHeadsError: the files have more than one head.
        RevisionFileError: a file stands on a revision that neither a file nor the ledger knows.
    """
    ledger = database.ledger
    for parent, file in revisions.without_file.items():
        if parent not in ledger:
            raise RevisionFileError(file=file.path.name, problem=f"stands on revision {parent}, which no file defines")
    below_missing = _closure(revisions.without_file, revisions, database)
    missing = below_missing - revisions.keys()
    heads = [revision for revision in revisions.heads if revision not in below_missing]
    if len(heads) > 1:
        raise MultipleHeadsError(heads=heads)
    head = heads[0] if heads else None
    applied = _closure(database.versions, revisions, database)
    pending = revisions.in_order(revisions.keys() - applied)
    unknown = tuple(_unknown_revision(r, database) for r in sorted(applied - revisions.keys() - missing))
    if unknown:
        runs = not pending and all(revision.backward_compatible for revision in unknown)
        state = SchemaState.AHEAD if runs else SchemaState.INCOMPATIBLE
    else:
        state = SchemaState.BEHIND if pending else SchemaState.AT_HEAD
    last = ledger.get(head) if head and head not in applied else None
    return Plan(
        state=state,
        head=head,
        pending=pending,
        unknown=unknown,
        changed=tuple(file for r, file in revisions.items() if r in applied and _bytes_differ(file, ledger.get(r))),
        missing=tuple(ledger[r] for r in sorted(missing & applied)),
        held=last if last and last.direction == "downgrade" else None,
    )


def check_upgrade(plan: Plan, release: str) -> None:
    """Refuse an upgrade that would do harm.

    Raises:
        SchemaAheadError: the database has revisions that this release lacks and cannot run on.
    """
    if plan.state is SchemaState.INCOMPATIBLE:
        worst = next((r for r in plan.unknown if not r.backward_compatible), plan.unknown[0])
        if worst.backward_compatible:
            why = f"it lacks {plan.pending[0].revision} of this release, which stands beside it"
        elif worst.backward_compatible is None:
            why = "nothing says that older releases can run on it"
        else:
            why = "it is recorded as not backward compatible"
        raise SchemaAheadError(revision=worst.revision, applied_by=worst.release, release=release, why=why)


def check_hold(plan: Plan, *, release: str, applied_by: str | None) -> None:
    """Refuse a start whose own head was taken back; an explicit upgrade is free to apply it again.

    Raises:
        HeldRevisionError: it was.
    """
    if plan.held:
        raise HeldRevisionError(
            revision=plan.held.revision,
            at=plan.held.started_at,
            by=plan.held.role or "(unknown)",
            release=release,
            applied_by=applied_by,
        )


def _closure(start: Iterable[str], revisions: Revisions, database: DatabaseState) -> set[str]:
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
    return reached


def _bytes_differ(file: RevisionFile, entry: LedgerEntry | None) -> bool:
    return entry is not None and entry.file_sha256 not in (None, file.sha256)


def _unknown_revision(revision: str, database: DatabaseState) -> UnknownRevision:
    entry = database.ledger.get(revision)
    return UnknownRevision(
        revision=revision,
        release=entry.release if entry else None,
        backward_compatible=entry.backward_compatible if entry else None,
    )
