"""What would happen: the files against the state of the database. Pure; nothing here touches either."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gasket.migrator.errors import RevisionFileError, SchemaAheadError
from gasket.migrator.ledger import DatabaseState
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
    """`pending` in the order in which they would be applied; `unknown` sorted by revision."""

    state: SchemaState
    head: str | None
    pending: tuple[RevisionFile, ...]
    unknown: tuple[UnknownRevision, ...]

    @property
    def serves(self) -> bool:
        """Whether this release can serve on the schema as it is."""
        return self.state in (SchemaState.AT_HEAD, SchemaState.AHEAD)


def make_plan(revisions: Revisions, database: DatabaseState) -> Plan:
    """Compare the two.

    Raises:
        MultipleHeadsError: the files have more than one head.
    """
    head = revisions.head
    unknown, known_below = _unknown(revisions, database)
    applied = revisions.with_ancestors((database.versions & revisions.keys()) | known_below)
    pending = revisions.in_order(revisions.keys() - applied)
    if unknown:
        runs = not pending and all(revision.backward_compatible for revision in unknown)
        state = SchemaState.AHEAD if runs else SchemaState.INCOMPATIBLE
    else:
        state = SchemaState.BEHIND if pending else SchemaState.AT_HEAD
    return Plan(state=state, head=head, pending=pending, unknown=unknown)


def check_upgrade(plan: Plan, release: str) -> None:
    """Refuse an upgrade that would do harm.

    Raises:
        SchemaAheadError: the database has revisions that this release lacks and cannot run on.
        RevisionFileError: the author of a pending revision has not decided `backward_compatible`.
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
    for file in plan.pending:
        if file.backward_compatible is None:
            raise RevisionFileError(
                file=file.path.name, problem="has not decided `backward_compatible`: write True or False"
            )


def _unknown(revisions: Revisions, database: DatabaseState) -> tuple[tuple[UnknownRevision, ...], set[str]]:
    """The applied revisions without a file, and the files' revisions that they stand on."""
    found: dict[str, UnknownRevision] = {}
    known_below: set[str] = set()
    waiting = sorted(database.versions - revisions.keys())
    while waiting:
        revision = waiting.pop()
        entry = database.ledger.get(revision)
        found[revision] = UnknownRevision(
            revision=revision,
            release=entry.release if entry else None,
            backward_compatible=entry.backward_compatible if entry else None,
        )
        for parent in entry.down_revisions if entry else ():
            if parent in revisions:
                known_below.add(parent)
            elif parent not in found:
                waiting.append(parent)
    return tuple(found[revision] for revision in sorted(found)), known_below
