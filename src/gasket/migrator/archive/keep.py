"""Before a downgrade takes rows or columns away, they are copied, in the same transaction, into the archive.

The step is tried out in a savepoint and taken back, which frees its locks. What it would take away is then locked
against writers, copied, and stays locked through the real step: nothing written in between is lost. Readers go on.
Large objects are not copied; dropping a table or a column does not delete them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from gasket.migrator.archive.copies import Book, Kept, exact_settings
from gasket.migrator.archive.inventory import (
    Inventory,
    Loss,
    LossKind,
    Relation,
    emptied,
    find_losses,
    locked_relations,
    read_marks,
    read_relations,
)
from gasket.migrator.archive.manifest import Entry, ensure_manifest, entries_of_tables
from gasket.migrator.archive.trial import Tried, connection_of, touches_only_indexes, try_out
from gasket.migrator.archive.versions import carry_on, mark_changed
from gasket.migrator.errors import NotArchivedError
from gasket.migrator.sql.render import Rendering

log = logging.getLogger("gasket.migrator")

_SMALL = 8_000_000  # bytes: copied in some 50 ms


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What was kept of one step, and in words what was not. `archive` is its number in `archive list`.

    `waiting` are entries of later steps: values of rows that this one writes.
    """

    revision: str
    archive: int | None = None
    kept: tuple[Kept, ...] = ()
    not_archived: tuple[str, ...] = ()
    discarded: bool = False
    seconds: float = 0.0
    tried: Tried | None = field(default=None, repr=False)
    waiting: tuple[Entry, ...] = field(default=(), repr=False)

    @property
    def copied(self) -> bool:
        """Whether rows were copied: when the real step then fails for a lock, it cost something."""
        return any(kept.rows for kept in self.kept)

    def __str__(self) -> str:
        if self.discarded:
            return "nothing was archived, as told"
        rows = ", ".join(f"{kept.rows} rows of {kept.name}" for kept in self.kept if kept.kind is not LossKind.SEQUENCE)
        problems = [kept.problem for kept in self.kept if kept.problem]
        parts = [f"archive {self.archive} keeps {rows}"] if rows else []
        return "; ".join([*parts, *problems, *self.not_archived]) or "nothing is lost"


def archive_before_downgrade(
    context: MigrationContext,
    *,
    schema: str,
    revision: str,
    digest: str | None,
    release: str,
    rendering: Rendering,
    run_downgrade: Callable[[], None],
    discard: bool = False,
    strong: bool = False,
) -> ArchiveReport:
    """Find out what the step would take away, lock it, and copy it. To be called in the step's own transaction.

    The caller then runs the real step in the same transaction. `run_downgrade` is called here only where `rendering`
    gives a reason, to try it out. `strong` keeps readers off too: the real step then has its locks already.

    Raises:
        NotArchivedError: something cannot be kept; nothing may be committed then.
        MissingPrivilegeError: the role may not make the archive.
        sqlalchemy.exc.DBAPIError: the trial failed, a lock was not free in time, or the connection is gone.
    """
    if discard:
        return ArchiveReport(revision, discarded=True)
    if touches_only_indexes(rendering):
        return ArchiveReport(revision)
    connection = connection_of(context)
    _refuse_old_snapshot(connection, revision)
    [tried] = try_out(context, schema, [(revision, rendering, run_downgrade)])
    losses = tried.losses
    if losses.found and tried.in_parts:
        raise NotArchivedError(
            revision=revision,
            reason=f"it takes data of {', '.join(str(loss.relation) for loss in losses.found)} away and has an "
            "autocommit block, which commits the copy and lets writers in before the rest is done",
            mend="Put what stands in the autocommit block into a revision of its own.",
        )
    if not losses.found and not losses.not_copied:
        return ArchiveReport(revision, tried=tried, waiting=_mark_waiting(connection, schema, tried, strong=strong))
    started = time.monotonic()
    ensure_manifest(connection, schema)
    relations = tried.before.relations
    lost = {loss.relation.oid for loss in losses.found}
    # A request that has read a row, and changes it next, waits for the copy's lock; the step then waits for what the
    # request has read: a deadlock. A copy that takes a moment begins with the step's own locks instead.
    at_once = strong or _is_small(connection, lost)
    if strong:
        log.warning("readers wait while rows of revision %s are copied", revision)
    to_lock = tried.locked & relations.keys() if at_once else lost
    _lock(connection, [relations[oid] for oid in sorted(to_lock)], strong=at_once)
    waiting = _mark_waiting(connection, schema, tried, strong=strong)
    book = Book(connection, schema, revision=revision, digest=digest, release=release)
    with exact_settings(connection):
        kept = tuple(kept for loss in losses.found if (kept := book.keep(loss)))
    for relation, words in losses.not_copied:
        book.note(relation, words)
    report = ArchiveReport(
        revision=revision,
        archive=book.number,
        kept=kept,
        not_archived=tuple(words for _, words in losses.not_copied),
        seconds=time.monotonic() - started,
        tried=tried,
        waiting=waiting,
    )
    log.info("downgrade of revision %s: %s (%.1f s)", revision, report, report.seconds)
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
    locked = locked_relations(connection)
    after = Inventory(read_relations(connection, schema, locked), read_marks(connection))
    empty = emptied(connection, tried.before.marks, after)
    kept = {loss.relation.oid: loss for loss in tried.losses.found}
    more = [
        str(loss.relation)
        for loss in find_losses(tried.before, after, locked=locked, empty=empty).found
        if not _is_kept(loss, kept.get(loss.relation.oid))
    ]
    # Of what it had not locked, nothing is known but that it was there: once rolled back, its oid tells the name.
    more += [
        str(after.relations.get(oid, f"{oid}::regclass")) for oid in locked & tried.before.marks.keys() - tried.locked
    ]
    if more:
        raise NotArchivedError(
            revision=report.revision,
            reason=f"it has changed {', '.join(more)}, and had not done so when it was tried out",
            mend="Let downgrade() do the same every time.",
        )
    carry_on(connection, schema, report.waiting)


def _mark_waiting(connection: Connection, schema: str, tried: Tried, *, strong: bool) -> tuple[Entry, ...]:
    """What earlier steps took out of rows that this one writes: who has changed one is not seen any more afterwards."""
    if not tried.written:
        return ()
    entries = entries_of_tables(connection, schema, tried.written)
    return tuple(mark_changed(connection, schema, entries, strong=strong))


def _is_kept(loss: Loss, copy: Loss | None) -> bool:
    if copy is None:
        return False
    return copy.kind is not LossKind.COLUMNS or (loss.kind is LossKind.COLUMNS and loss.columns <= copy.columns)


def _refuse_old_snapshot(connection: Connection, revision: str) -> None:
    """A copy must see every row that was committed before its lock was granted."""
    level = connection.exec_driver_sql("SELECT current_setting('transaction_isolation')").scalar_one()
    if level != "read committed":
        raise NotArchivedError(
            revision=revision,
            reason=f"its transaction is {level}, and would not copy rows that were written since it began",
            mend="Set default_transaction_isolation of the migration role to 'read committed'.",
        )


def _is_small(connection: Connection, tables: Collection[int]) -> bool:
    size = "SELECT coalesce(sum(pg_table_size(oid)), 0) FROM pg_class WHERE oid = ANY ($1::bigint[]::oid[])"
    return bool(connection.exec_driver_sql(size, (list(tables),)).scalar_one() <= _SMALL)


def _lock(connection: Connection, relations: Collection[Relation], *, strong: bool) -> None:
    """SHARE ROW EXCLUSIVE lets readers go on and no writer in (PostgreSQL manual, "Explicit Locking")."""
    tables = [relation for relation in relations if relation.kind in ("r", "p")]
    if not tables:
        return
    names = ", ".join(table.quoted if table.kind == "p" else f"ONLY {table.quoted}" for table in tables)
    connection.exec_driver_sql(f"LOCK TABLE {names} IN {'ACCESS' if strong else 'SHARE ROW'} EXCLUSIVE MODE")
