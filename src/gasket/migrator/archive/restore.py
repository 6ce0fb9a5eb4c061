"""When a revision is applied again, what its downgrade had taken away comes back, in the same transaction.

What does not fit any more stays in the archive, row by row, with the reason, and the upgrade goes on: an upgrade never
fails for what the archive holds. A passing fault (a full disk, a lock) does fail it: then nothing of it is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
from alembic.runtime.migration import MigrationContext
from msgspec.structs import replace
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.apply.attempts import TRY_LOCK_TIMEOUT_MS
from gasket.migrator.archive.entries import Entry
from gasket.migrator.archive.faults import sqlstate
from gasket.migrator.archive.inventory import LossKind, count_rows
from gasket.migrator.archive.manifest import Manifest
from gasket.migrator.archive.put_back import PutBack, put_archives_back
from gasket.migrator.archive.refused_rows import TOO_NEW
from gasket.migrator.archive.trial import connection_of
from gasket.migrator.archive.versions import carry_on, follow, mark_changed
from gasket.migrator.archive.views import refresh_views
from gasket.migrator.command_line import database_command
from gasket.migrator.sql.render import Rendering
from gasket.postgres.errors import describe

log = logging.getLogger("gasket.migrator")

_ANOTHER = "another version of the revision's file took it away"
# A row is missing, there twice, refused by a CHECK, or lacks a value.
_ABOUT_ROWS = {"23503", "23505", "23514", "23502"}
_NAMES = "SELECT oid, lower(relname) AS name FROM pg_class WHERE oid = ANY ($1::bigint[]::oid[])"


class RestoreReport(msgspec.Struct, frozen=True):
    """What came back with one revision. `stale` are the names, as SQL, of materialized views that do not show it."""

    revision: str
    put_back: tuple[PutBack, ...] = ()
    seconds: float = 0.0
    stale: tuple[str, ...] = ()

    @property
    def incomplete(self) -> bool:
        """Whether something stays in the archive, or a view is stale."""
        return bool(self.stale) or any(one.left or one.error for one in self.put_back)

    @property
    def remedies(self) -> tuple[str, ...]:
        """The commands that bring what stayed, and refresh what is stale. Of what only a person can put back: none."""
        failed = [one.entry for one in self.put_back if one.left or one.error]
        numbers = sorted({entry.archive for entry in failed if not entry.problem})
        return (
            *(database_command(f"archive restore {number}") for number in numbers),
            *(f"REFRESH MATERIALIZED VIEW {view}" for view in self.stale),
        )

    def __str__(self) -> str:
        stale = [f"materialized view {view} is stale" for view in self.stale]
        return "; ".join([*map(str, self.put_back), *stale]) or "nothing was archived"


def upgrade_restoring(
    context: MigrationContext,
    *,
    schema: str,
    revision: str,
    digests: Mapping[str, str | None],
    run_upgrade: Callable[[], None],
    render_upgrade: Callable[[], Rendering],
    restore: bool,
    strong: bool,
) -> RestoreReport:
    """Run the step, and put back what a downgrade under the same digest had taken away. In the step's transaction.

    `digests` are those of the revision's file and of others that are yet to be applied again. The tables whose columns
    come back with this step or, as far as it has to do with them, with those, are locked against writers before it, to
    see which rows were changed meanwhile; `strong` keeps readers off as well, so that the step has these locks already.
    Without `restore` everything stays in the archive.

    Raises:
        sqlalchemy.exc.DBAPIError: of the step itself; or a lock was not free in time, or the connection is gone.
    """
    connection = connection_of(context)
    manifest = Manifest(connection, schema)
    found = manifest.entries_to_restore(revision, later=digests)
    archived, by_hand = [e for e in found if not e.problem], [e for e in found if e.problem]
    own = [entry for entry in archived if entry.revision == revision]
    if not restore:
        with _archive_named(own):
            run_upgrade()
        return RestoreReport(revision)
    fitting = [entry for entry in archived if entry.digest is not None and entry.digest == digests.get(entry.revision)]
    entries = [entry for entry in fitting if entry.revision == revision]
    not_back = tuple(PutBack(entry, error=_ANOTHER) for entry in own if entry.stored_in and entry not in entries)
    not_back += tuple(PutBack(entry, error=entry.problem) for entry in by_hand)
    for one in not_back:
        manifest.update(one.entry.id, restore_error=one.error)
    waiting = [entry for entry in fitting if entry.revision != revision and entry.keeps_values]
    if waiting:
        waiting = _reached_by_step(connection, waiting, {entry.relation for entry in entries}, render_upgrade())
    if not entries and not waiting:
        with _archive_named(own):
            run_upgrade()
        return _reported(RestoreReport(revision, not_back))
    watched = [*waiting, *(entry for entry in entries if entry.keeps_values)]
    marked = mark_changed(connection, schema, watched, strong=strong)
    if marked:  # as before a downgrade's step: the shorter wait is ours, or it is a deadlock with a request
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {TRY_LOCK_TIMEOUT_MS}")
    transaction = _transaction(connection)
    with _archive_named(own):
        run_upgrade()
        if entries:  # what upgrade() itself has deferred is checked here, as its error and not as one of the archive
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    if _transaction(connection) != transaction:
        marked, waiting = [], []  # an autocommit block let writers in: now nothing tells which rows they changed
    started = time.monotonic()
    put_back = put_archives_back(manifest, entries, {entry.id for entry in marked}) if entries else ()
    _stay_unchanged(connection, schema, put_back, waiting, marked)
    stale = refresh_views(connection, _tables(put_back))
    return _reported(RestoreReport(revision, put_back + not_back, time.monotonic() - started, stale))


def restore_archive(connection: Connection, schema: str, number: int) -> RestoreReport:
    """Put back what is left in one archive, as far as it fits now, in the transaction that is open.

    Of columns, values come back where nothing else is, and into rows that are as the revision's step has left them.

    Raises:
        TargetError: there is none of that number.
        sqlalchemy.exc.DBAPIError: a passing fault: a lock, the disk, the connection.
    """
    manifest = Manifest(connection, schema)
    found = manifest.entries_of_archive(number)
    started = time.monotonic()
    left = [entry for entry in found if entry.is_left]
    connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    fitting = [entry for entry in left if not entry.problem]
    marked = mark_changed(connection, schema, [entry for entry in fitting if entry.keeps_values], strong=False)
    put_back = put_archives_back(manifest, fitting, {entry.id for entry in marked})
    problems = tuple(PutBack(entry, error=entry.problem) for entry in left if entry.problem)
    stale = refresh_views(connection, _tables(put_back))
    return RestoreReport(found[0].revision, put_back + problems, time.monotonic() - started, stale)


def restore_late(connection: Connection, schema: str, report: RestoreReport) -> RestoreReport:
    """After the commit of the step that `report` is of: put back the rows that had to wait for it.

    Returns what is true then. Where it fails the rows stay in the archive, for the revision itself is applied.

    Raises:
        sqlalchemy.exc.DBAPIError: the connection is gone.
    """
    for number in sorted({put_back.entry.archive for put_back in report.put_back if TOO_NEW in put_back.left}):
        try:
            with connection.begin():
                again = restore_archive(connection, schema, number)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            log.warning("archive %d could not be put back after the commit: %s", number, describe(error))
            continue
        later = {put_back.entry.id: put_back for put_back in again.put_back}
        put_back = tuple(later.get(put_back.entry.id, put_back) for put_back in report.put_back)
        report = replace(report, put_back=put_back, stale=(*report.stale, *again.stale))
        log.info(
            "after the commit of revision %s, rows of archive %d were put back: %s", report.revision, number, again
        )
    return report


def _tables(put_back: Iterable[PutBack]) -> frozenset[int]:
    return frozenset(result.table for result in put_back if result.table is not None and result.rows)


def _reported(report: RestoreReport) -> RestoreReport:
    if report.put_back:
        level = logging.WARNING if report.incomplete else logging.INFO
        then = f"; then run: {'; '.join(report.remedies)}" if report.remedies else ""
        text = "rows of revision %s were put back: %s (%.1f s)%s"
        log.log(level, text, report.revision, report, report.seconds, then)
    return report


@contextmanager
def _archive_named(archived: Sequence[Entry]) -> Iterator[None]:
    """upgrade() may fail for want of what comes back only after it: say so in a note to the driver's error."""
    try:
        yield
    except DBAPIError as error:
        kept = ", ".join(f"archive {e.archive}: {count_rows(e.row_count)} of {e.name}" for e in archived if e.stored_in)
        if kept and error.orig and sqlstate(error) in _ABOUT_ROWS:
            error.orig.add_note(
                f"what its downgrade took away comes back only after upgrade() ({kept}): if that is what it lacks, "
                "change the rows on which it fails, start again, and change them back"
            )
        raise


def _reached_by_step(
    connection: Connection, waiting: Sequence[Entry], tables: Collection[int | None], rendering: Rendering
) -> list[Entry]:
    """Of entries for later steps those of the given tables, and of tables that this step's SQL may write to.

    A table counts when its name is anywhere in the SQL. The reader of SQL would find fewer: it does not look into
    functions, EXECUTE or subqueries. A table too many costs a lock; a write that is missed (by a trigger, say) counts
    as a change by an application, which loses nothing.
    """
    sql = "\n".join(statement.sql.lower() for statement in rendering.statements)
    live = connection.exec_driver_sql(_NAMES, ([entry.relation for entry in waiting],))
    names = {row.oid: row.name for row in live}
    return [
        entry
        for entry in waiting
        if entry.relation in tables
        or (entry.relation in names and (rendering.reason is not None or names[entry.relation] in sql))
    ]


def _stay_unchanged(
    connection: Connection,
    schema: str,
    put_back: Iterable[PutBack],
    waiting: Sequence[Entry],
    marked: Sequence[Entry],
) -> None:
    """What the step wrote into rows whose other values wait for a later one is no change of anybody's."""
    known = {entry.id: entry for entry in marked}
    following = {entry.id: known.get(entry.id) for entry in waiting}
    for result in put_back:
        if result.table is not None and result.entry.kind in (LossKind.TABLE, LossKind.ROWS):
            # A table made anew is the step's own; of one that was there only what is known to be unchanged.
            candidates = waiting if result.entry.kind == LossKind.TABLE else list(filter(None, following.values()))
            following |= {entry.id: entry for entry in follow(connection, schema, result, candidates)}
    later = [known[result.entry.id] for result in put_back if result.left and result.entry.id in known]
    carry_on(connection, schema, [*filter(None, following.values()), *later])


def _transaction(connection: Connection) -> str:
    number: str = connection.exec_driver_sql("SELECT pg_current_xact_id()::text").scalar_one()
    return number
