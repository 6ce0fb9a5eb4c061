"""Before a downgrade takes rows or columns away, they are copied, in the same transaction, into the archive.

The step is tried out in a savepoint and taken back, which frees its locks. What it would take away is then locked
against writers, copied, and stays locked through the real step: nothing written in between is lost. Readers go on.
Large objects are not copied; dropping a table or a column does not delete them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from gasket.migrator.archive.copies import Book, Kept, exact_settings
from gasket.migrator.archive.entries import Entry
from gasket.migrator.archive.inventory import (
    Loss,
    LossKind,
    Relation,
    count_rows,
    find_losses,
    held_relations,
    look_after_step,
)
from gasket.migrator.archive.manifest import Manifest
from gasket.migrator.archive.trial import Known, TrialStep, Tried, connection_of, touches_only_indexes, try_out
from gasket.migrator.archive.versions import carry_on, mark_changed
from gasket.migrator.command_line import database_command
from gasket.migrator.errors import NotArchivedError
from gasket.postgres.driver import fetch

log = logging.getLogger("gasket.migrator")

# `lockable` are those on which the role may run LOCK TABLE (PostgreSQL manual, "LOCK"): CASCADE drops the foreign key
# of another application's table without a right on that table.
_BEFORE_LOCKING = """
SELECT current_setting('transaction_isolation') AS isolation,
    (SELECT coalesce(sum(pg_table_size(oid)), 0) FROM pg_class WHERE oid = ANY ($1::bigint[]::oid[])) AS size,
    array(SELECT c.oid::bigint FROM pg_class AS c
          WHERE c.oid = ANY ($2::bigint[]::oid[]) AND has_schema_privilege(c.relnamespace, 'USAGE')
            AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')) AS lockable
"""
_THERE = "SELECT oid::bigint FROM pg_class WHERE oid = ANY ($1::bigint[]::oid[])"
# The row of a system column is written when its relation is made, and never again; a composite type has none of them,
# and its row in pg_type is not written again when it gets another attribute. `xmin` is the lower half of a number.
_MADE_HERE = """
SELECT made.oid::bigint
FROM (SELECT attrelid AS oid, xmin FROM pg_attribute WHERE attnum = -1 AND attrelid = ANY ($1::bigint[]::oid[])
      UNION ALL SELECT c.oid, t.xmin FROM pg_class AS c JOIN pg_type AS t ON t.oid = c.reltype
      WHERE c.relkind = 'c' AND c.oid = ANY ($1::bigint[]::oid[])) AS made,
    (SELECT pg_current_xact_id()::text::numeric AS number) AS own,
    LATERAL (SELECT made.xmin::text::numeric - own.number % 4294967296 AS ahead) AS distance
WHERE pg_xact_status(greatest(0, own.number + ahead + CASE WHEN ahead > 2147483648 THEN -4294967296
    WHEN ahead < -2147483648 THEN 4294967296 ELSE 0 END)::text::xid8) = 'in progress'
"""
_SMALL = 8_000_000  # bytes: copied in some 50 ms


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What was kept of one step, and in words what was not. `archive` is its number in `archive list`.

    `waiting` are entries of later steps: values of rows that this one writes. `held` are oids of what the archive
    itself has locked.
    """

    revision: str
    archive: int | None = None
    kept: tuple[Kept, ...] = ()
    not_archived: tuple[str, ...] = ()
    discarded: bool = False
    seconds: float = 0.0
    tried: Tried | None = field(default=None, repr=False)
    waiting: tuple[Entry, ...] = field(default=(), repr=False)
    held: frozenset[int] = field(default=frozenset(), repr=False)

    def __str__(self) -> str:
        if self.discarded:
            return "nothing was archived, as told"
        copies = [kept for kept in self.kept if kept.kind is not LossKind.SEQUENCE]
        rows = ", ".join(f"{count_rows(copy.rows)} of {copy.name}" for copy in copies)
        problems = [kept.problem for kept in self.kept if kept.problem]
        parts = [f"archive {self.archive} keeps {rows}"] if rows else []
        return "; ".join([*parts, *problems, *self.not_archived]) or "nothing is lost"


def archive_before_downgrade(
    context: MigrationContext,
    *,
    schema: str,
    step: TrialStep,
    digest: str | None,
    release: str,
    discard: bool,
    strong: bool,
    known: Known,
) -> ArchiveReport:
    """Find out what the step would take away, lock it, and copy it. To be called in the step's own transaction.

    The caller then runs the real step in the same transaction. `strong` keeps readers off too: the real step then has
    its locks already. `known` is that of the run.

    Raises:
        NotArchivedError: something cannot be kept; nothing may be committed then.
        MissingPrivilegeError: the role may not make the archive.
        sqlalchemy.exc.DBAPIError: the trial failed, a lock was not free in time, or the connection is gone.
    """
    revision = step.revision
    if discard:
        return ArchiveReport(revision, discarded=True)
    if touches_only_indexes(step.rendering):
        return ArchiveReport(revision)
    connection = connection_of(context)
    [tried] = try_out(context, schema, [step], known)
    if tried.refusal:
        mend = (
            "Write its downgrade() without the autocommit block, run: "
            f"{database_command(f'accept {revision}')}, and downgrade again."
        )
        raise NotArchivedError(revision=revision, reason=tried.refusal, mend=mend)
    entries = _entries_of_written(connection, schema, tried, known)
    if not tried.losses and not tried.not_copied and not entries:
        return ArchiveReport(revision, tried=tried)
    started = time.monotonic()
    relations = tried.before.relations
    lost = {loss.relation.oid for loss in tried.losses}
    [before] = fetch(connection, _BEFORE_LOCKING, list(lost), list(tried.held.exclusive & relations.keys()))
    _refuse_old_snapshot(before["isolation"], revision)
    if not tried.losses and not tried.not_copied:
        waiting = tuple(mark_changed(connection, schema, entries, strong=strong))
        return ArchiveReport(revision, tried=tried, waiting=waiting)
    if not known.archive_is_made:
        Manifest(connection, schema).ensure()
        known.archive_is_made = True
    # A request that has read a row, and changes it next, waits for the copy's lock; the step then waits for what the
    # request has read: a deadlock. A copy that takes a moment begins with the step's own locks instead.
    at_once = strong or before["size"] <= _SMALL
    if strong:
        log.warning("queries of these tables wait while the rows of revision %s are archived", revision)
    to_lock = lost.union(before["lockable"]) if at_once else lost
    _lock(connection, [relations[oid] for oid in sorted(to_lock)], strong=at_once)
    waiting = tuple(mark_changed(connection, schema, entries, strong=strong))
    book = Book(connection, schema, revision=revision, digest=digest, release=release)
    with exact_settings(connection):
        kept = tuple(kept for loss in tried.losses if (kept := book.keep(loss)))
    if any(one.kind is LossKind.COLUMNS for one in kept):
        known.values_wait = True
    for relation, words in tried.not_copied:
        book.note(relation, words)
    report = ArchiveReport(
        revision=revision,
        archive=book.number,
        kept=kept,
        not_archived=tuple(words for _, words in tried.not_copied),
        seconds=time.monotonic() - started,
        tried=tried,
        waiting=waiting,
        held=held_relations(connection).exclusive,
    )
    log.info("archived the rows of revision %s: %s (%.1f s)", revision, report, report.seconds)
    return report


def check_after_downgrade(context: MigrationContext, schema: str, report: ArchiveReport) -> None:
    """Make sure, in the same transaction, that the real step took away no more than its trial did.

    And note which rows it has written, whose other values wait in the archive.

    Raises:
        NotArchivedError: it did (it depends on the clock, the environment, chance): let nothing be committed.
    """
    tried = report.tried
    if tried is None or tried.in_parts:
        return
    connection = connection_of(context)
    after = look_after_step(connection, schema, tried.before.marks)
    held = after.held
    kept = {loss.relation.oid: loss for loss in tried.losses}
    more = [
        str(loss.relation)
        for loss in find_losses(tried.before, after)
        if not _is_kept(loss, kept.get(loss.relation.oid))
    ]
    # Of what it had not locked, nothing is known but that it was there: once rolled back, its oid tells the name.
    unexpected = (held.exclusive & held.marks.keys()) - tried.held.exclusive - report.held
    unexpected -= _made_here(connection, unexpected)
    # What a step makes and drops again, as ALTER COLUMN TYPE does, has another oid each time.
    dropped, only_tried = held.gone - tried.held.exclusive - report.held, tried.held.gone - held.gone
    if len(dropped) > len(only_tried - _there(connection, only_tried if dropped else ())):
        unexpected |= dropped
    more += [str(after.relations.get(oid, f"{oid}::regclass")) for oid in unexpected]
    if more:
        raise NotArchivedError(
            revision=report.revision,
            reason=f"it has changed {', '.join(more)}, and had not done so when it was tried out",
            mend="Let downgrade() do the same every time.",
        )
    carry_on(connection, schema, report.waiting)


def _there(connection: Connection, oids: Collection[int]) -> frozenset[int]:
    """Those of the relations of any kind with these oids that are there."""
    return frozenset(oid for (oid,) in fetch(connection, _THERE, list(oids))) if oids else frozenset()


def _made_here(connection: Connection, oids: Collection[int]) -> frozenset[int]:
    """Those of the tables and sequences with these oids that this transaction has made."""
    return frozenset(oid for (oid,) in fetch(connection, _MADE_HERE, list(oids))) if oids else frozenset()


def _entries_of_written(connection: Connection, schema: str, tried: Tried, known: Known) -> list[Entry]:
    """What earlier steps took out of rows that this one writes: who has changed one is not seen any more afterwards."""
    if not tried.written:
        return []
    manifest = Manifest(connection, schema)
    if known.values_wait is None:
        known.values_wait = manifest.values_wait()
    return manifest.entries_of_tables(tried.written) if known.values_wait else []


def _is_kept(loss: Loss, copy: Loss | None) -> bool:
    if copy is None:
        return False
    return copy.kind is not LossKind.COLUMNS or (loss.kind is LossKind.COLUMNS and loss.columns <= copy.columns)


def _refuse_old_snapshot(isolation: str, revision: str) -> None:
    """A copy must see every row that was committed before its lock was granted."""
    if isolation != "read committed":
        raise NotArchivedError(
            revision=revision,
            reason=f"its transaction is {isolation}, and would not copy rows that were written since it began",
            mend="Set default_transaction_isolation of the migration role to 'read committed'.",
        )


def _lock(connection: Connection, relations: Collection[Relation], *, strong: bool) -> None:
    """SHARE ROW EXCLUSIVE lets readers go on and no writer in (PostgreSQL manual, "Explicit Locking")."""
    tables = [relation for relation in relations if relation.kind in ("r", "p")]
    if not tables:
        return
    names = ", ".join(table.quoted if table.kind == "p" else f"ONLY {table.quoted}" for table in tables)
    connection.exec_driver_sql(f"LOCK TABLE {names} IN {'ACCESS' if strong else 'SHARE ROW'} EXCLUSIVE MODE")
