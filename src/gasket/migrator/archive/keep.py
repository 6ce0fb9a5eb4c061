"""Before a downgrade takes rows or columns away, they are copied, in the same transaction, into the archive.

The step is tried out in a savepoint and taken back, which frees its locks. What it would take away is then locked
against writers, copied, and stays locked through the real step: nothing written in between is lost. Readers go on.
Large objects are not copied; dropping a table or a column does not delete them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import asyncpg
import msgspec
from alembic.runtime.migration import MigrationContext
from msgspec.structs import replace
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
from gasket.migrator.archive.trial import Known, TrialStep, Tried, connection_of, try_out
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


class ArchiveReport(msgspec.Struct, frozen=True):
    """What was kept of one step, and in words what was not. `archive` is its number in `archive list`.

    `waiting` are entries of later steps: values of rows that this one writes.
    """

    revision: str
    archive: int | None = None
    kept: tuple[Kept, ...] = ()
    not_archived: tuple[str, ...] = ()
    discarded: bool = False
    seconds: float = 0.0
    waiting: tuple[Entry, ...] = ()

    def __str__(self) -> str:
        if self.discarded:
            return "nothing was archived, as told"
        copies = [kept for kept in self.kept if kept.kind is not LossKind.SEQUENCE]
        rows = ", ".join(f"{count_rows(copy.rows)} of {copy.name}" for copy in copies)
        problems = [kept.problem for kept in self.kept if kept.problem]
        parts = [f"archive {self.archive} keeps {rows}"] if rows else []
        return "; ".join([*parts, *problems, *self.not_archived]) or "nothing is lost"


@contextmanager
def archiving(
    context: MigrationContext,
    *,
    schema: str,
    step: TrialStep,
    digest: str | None,
    release: str,
    discard: bool,
    strong: bool,
    known: Known,
) -> Iterator[ArchiveReport]:
    """Around the real step, in its transaction: copy what it will take away, then make sure that it took no more.

    `strong` keeps readers off too: the real step then has its locks already. `known` is that of the run.

    Raises:
        NotArchivedError: something cannot be kept, or the step has done more than when it was tried out (it depends on
            the clock, the environment, chance); nothing may be committed then.
        MissingPrivilegeError: the role may not make the archive.
        sqlalchemy.exc.DBAPIError: the trial failed, a lock was not free in time, or the connection is gone.
    """
    if discard or step.touches_only_indexes:
        yield ArchiveReport(step.revision, discarded=discard)
        return
    connection = connection_of(context)
    [tried] = try_out(context, schema, [step], known)
    if tried.refusal:
        mend = (
            "Write its downgrade() without the autocommit block, run: "
            f"{database_command(f'accept {step.revision}')}, and downgrade again."
        )
        raise NotArchivedError(revision=step.revision, reason=tried.refusal, mend=mend)
    entries = _entries_of_written(connection, schema, tried, known)
    report, own_locks = ArchiveReport(step.revision), frozenset[int]()
    if tried.losses or tried.not_copied:
        book = Book(connection, schema, revision=step.revision, digest=digest, release=release)
        report = _archive(connection, schema, tried, entries, book, strong, known)
        own_locks = held_relations(connection).exclusive
    elif entries:
        _look_before_locking(connection, step.revision, tried)
        report = replace(report, waiting=tuple(mark_changed(connection, schema, entries, strong=strong)))
    yield report
    if not tried.in_parts:
        _refuse_more(connection, schema, step.revision, tried, own_locks)
        carry_on(connection, schema, report.waiting)  # what the step has written is no change of anybody's


def _archive(
    connection: Connection,
    schema: str,
    tried: Tried,
    entries: Iterable[Entry],
    book: Book,
    strong: bool,
    known: Known,
) -> ArchiveReport:
    started = time.monotonic()
    before = _look_before_locking(connection, book.revision, tried)
    if not known.archive_is_made:
        Manifest(connection, schema).ensure()
        known.archive_is_made = True
    # A request that has read a row, and changes it next, waits for the copy's lock; the step then waits for what the
    # request has read: a deadlock. A copy that takes a moment begins with the step's own locks instead.
    at_once = strong or before["size"] <= _SMALL
    if strong:
        log.warning("queries of these tables wait while the rows of revision %s are archived", book.revision)
    to_lock = {loss.relation.oid for loss in tried.losses}.union(before["lockable"] if at_once else ())
    _lock(connection, [tried.before.relations[oid] for oid in sorted(to_lock)], strong=at_once)
    waiting = tuple(mark_changed(connection, schema, entries, strong=strong))
    with exact_settings(connection):
        kept = tuple(kept for loss in tried.losses if (kept := book.keep(loss)))
    if any(one.kind is LossKind.COLUMNS for one in kept):
        known.values_wait = True
    for relation, words in tried.not_copied:
        book.note(relation, words)
    report = ArchiveReport(
        revision=book.revision,
        archive=book.number,
        kept=kept,
        not_archived=tuple(words for _, words in tried.not_copied),
        seconds=time.monotonic() - started,
        waiting=waiting,
    )
    log.info("archived the rows of revision %s: %s (%.1f s)", book.revision, report, report.seconds)
    return report


def _refuse_more(connection: Connection, schema: str, revision: str, tried: Tried, own_locks: frozenset[int]) -> None:
    """Refuse a real step that took away more than its trial did. `own_locks` are on what the archive has locked."""
    after = look_after_step(connection, schema, tried.before.marks)
    held = after.held
    kept = {loss.relation.oid: loss for loss in tried.losses}
    more = [
        str(loss.relation)
        for loss in find_losses(tried.before, after)
        if not _is_kept(loss, kept.get(loss.relation.oid))
    ]
    # Of what it had not locked, nothing is known but that it was there: once rolled back, its oid tells the name.
    unexpected = (held.exclusive & held.marks.keys()) - tried.held.exclusive - own_locks
    unexpected -= _made_here(connection, unexpected)
    # What a step makes and drops again, as ALTER COLUMN TYPE does, has another oid each time.
    dropped, only_tried = held.gone - tried.held.exclusive - own_locks, tried.held.gone - held.gone
    if len(dropped) > len(only_tried - _there(connection, only_tried if dropped else ())):
        unexpected |= dropped
    more += [str(after.relations.get(oid, f"{oid}::regclass")) for oid in unexpected]
    if more:
        raise NotArchivedError(
            revision=revision,
            reason=f"it has changed {', '.join(more)}, and had not done so when it was tried out",
            mend="Let downgrade() do the same every time.",
        )


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


def _look_before_locking(connection: Connection, revision: str, tried: Tried) -> asyncpg.Record:
    """How large the tables are, and which may be locked; a copy must see all rows committed before its lock."""
    lost = [loss.relation.oid for loss in tried.losses]
    to_lock = list(tried.held.exclusive & tried.before.relations.keys())
    [found] = fetch(connection, _BEFORE_LOCKING, lost, to_lock)
    if found["isolation"] != "read committed":
        raise NotArchivedError(
            revision=revision,
            reason=f"its transaction is {found['isolation']}, and would not copy rows that were written since it began",
            mend="Set default_transaction_isolation of the migration role to 'read committed'.",
        )
    return found


def _lock(connection: Connection, relations: Collection[Relation], *, strong: bool) -> None:
    """SHARE ROW EXCLUSIVE lets readers go on and no writer in (PostgreSQL manual, "Explicit Locking")."""
    tables = [relation for relation in relations if relation.kind in ("r", "p")]
    if not tables:
        return
    names = ", ".join(table.quoted if table.kind == "p" else f"ONLY {table.quoted}" for table in tables)
    connection.exec_driver_sql(f"LOCK TABLE {names} IN {'ACCESS' if strong else 'SHARE ROW'} EXCLUSIVE MODE")
