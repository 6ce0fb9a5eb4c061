"""When a revision is applied again, what its downgrade had taken away comes back, in the same transaction.

What does not fit any more stays in the archive, row by row, with the reason. Where putting back fails, the archive
stays as it was, with the error, and the upgrade goes on: an upgrade never fails for what the archive holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.copies import exact_settings, is_not_about_data
from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.manifest import Entry, entries_to_restore, settle_entry, update_entry
from gasket.migrator.archive.put_back import PutBack, in_order, put_group_back, put_position_back
from gasket.migrator.archive.targets import Target, UnfitError, read_target
from gasket.migrator.archive.trial import connection_of
from gasket.migrator.archive.versions import carry_on, follow, mark_changed
from gasket.migrator.attempts import TRY_LOCK_TIMEOUT_MS
from gasket.migrator.connection import describe
from gasket.migrator.sql.render import Rendering

log = logging.getLogger("gasket.migrator")

_ANOTHER = "another version of the revision's file took it away"
# A row is missing, there twice, refused by a CHECK, or lacks a value.
_ABOUT_ROWS = {"23503", "23505", "23514", "23502"}
_NAMES = "SELECT oid, lower(relname) AS name FROM pg_class WHERE oid = ANY ($1::bigint[]::oid[])"


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What came back with one revision."""

    revision: str
    put_back: tuple[PutBack, ...] = ()
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether nothing stayed in the archive."""
        return not any(put_back.left or put_back.error for put_back in self.put_back)

    def __str__(self) -> str:
        return "; ".join(map(str, self.put_back)) or "nothing was archived"


def upgrade_restoring(
    context: MigrationContext,
    *,
    schema: str,
    revision: str,
    digests: Mapping[str, str | None],
    run_upgrade: Callable[[], None],
    render_upgrade: Callable[[], Rendering],
    restore: bool = True,
    strong: bool = False,
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
    archived = entries_to_restore(connection, schema, revision, later=digests)
    named = partial(_archive_named, [entry for entry in archived if entry.revision == revision])
    if not restore:
        with named():
            run_upgrade()
        return RestoreReport(revision)
    fitting = [entry for entry in archived if entry.digest is not None and entry.digest == digests.get(entry.revision)]
    entries = [entry for entry in fitting if entry.revision == revision]
    of_another = tuple(
        PutBack(entry, error=_ANOTHER)
        for entry in archived
        if entry.revision == revision and entry.stored_in and entry not in entries
    )
    waiting = [entry for entry in fitting if entry.revision != revision and entry.keeps_values]
    if waiting:
        waiting = _concerned(connection, waiting, {entry.relation for entry in entries}, render_upgrade())
    if not entries and not waiting:
        with named():
            run_upgrade()
        return _reported(RestoreReport(revision, of_another))
    watched = [*waiting, *(entry for entry in entries if entry.keeps_values)]
    marked = mark_changed(connection, schema, watched, strong=strong)
    if marked:  # as before a downgrade's step: the shorter wait is ours, or it is a deadlock with a request
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {TRY_LOCK_TIMEOUT_MS}")
    transaction = _transaction(connection)
    with named():
        run_upgrade()
        connection = connection_of(context)
        if entries:  # what upgrade() itself has deferred is checked here, as its error and not as one of the archive
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    if _transaction(connection) != transaction:
        marked, waiting = [], []  # an autocommit block let writers in: now nothing tells which rows they changed
    started = time.monotonic()
    put_back = _put_back(connection, schema, entries, {entry.id for entry in marked}) if entries else ()
    _stay_unchanged(connection, schema, put_back, waiting, marked)
    return _reported(RestoreReport(revision, put_back + of_another, time.monotonic() - started))


def _reported(report: RestoreReport) -> RestoreReport:
    if report.put_back:
        level = logging.INFO if report.complete else logging.WARNING
        text = "revision %s is applied again and brings back: %s (%.1f s)"
        log.log(level, text, report.revision, report, report.seconds)
    return report


@contextmanager
def _archive_named(archived: Sequence[Entry]) -> Iterator[None]:
    """upgrade() may fail for want of what comes back only after it: say so in a note to the driver's error."""
    try:
        yield
    except DBAPIError as error:
        kept = ", ".join(f"archive {e.archive}: {e.row_count} rows of {e.name}" for e in archived if e.stored_in)
        if kept and error.orig and getattr(error.orig, "sqlstate", None) in _ABOUT_ROWS:
            error.orig.add_note(
                f"what its downgrade took away comes back only after upgrade() ({kept}): if that is what it lacks, "
                "change the rows that it stumbles over, start again, and change them back"
            )
        raise


def _concerned(
    connection: Connection, waiting: Sequence[Entry], tables: Collection[int | None], rendering: Rendering
) -> list[Entry]:
    """Of entries for later steps those of the given tables, and of such as this step's SQL speaks of.

    What it does to others (by a trigger, say) counts there as somebody's change, which loses nothing.
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


def _put_back(
    connection: Connection, schema: str, entries: Sequence[Entry], marked: Collection[int]
) -> tuple[PutBack, ...]:
    with exact_settings(connection):
        return tuple(
            result
            for _, archive in groupby(entries, key=lambda entry: entry.archive)
            for result in _put_archive_back(connection, schema, list(archive), marked)
        )


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
    carry_on(connection, schema, [entry for entry in following.values() if entry])


def _transaction(connection: Connection) -> str:
    number: str = connection.exec_driver_sql("SELECT pg_current_xact_id()::text").scalar_one()
    return number


def _put_archive_back(
    connection: Connection, schema: str, entries: Sequence[Entry], marked: Collection[int]
) -> Iterator[PutBack]:
    targets: list[Target] = []
    for entry in entries:
        if entry.kind == LossKind.SEQUENCE:
            continue
        if not entry.stored_in:
            settle_entry(connection, schema, entry.id, rows=0, left={})  # there was no row
            continue
        try:
            targets.append(read_target(connection, schema, entry))
        except UnfitError as error:
            yield _failed(connection, schema, entry, str(error))
    for group in in_order(targets):
        trusted = {t.oid for t in group if t.entry.id in marked and t.entry.relation == t.oid}
        work = partial(put_group_back, connection, schema, group, trusted)
        yield from _guarded(connection, schema, [target.entry for target in group], work)
    for entry in entries:  # after the rows: the sequence of a column that came back is found by the column
        if entry.kind == LossKind.SEQUENCE:
            yield from _guarded(connection, schema, [entry], partial(put_position_back, connection, schema, entry))


def _guarded(
    connection: Connection, schema: str, entries: Iterable[Entry], work: Callable[[], list[PutBack]]
) -> list[PutBack]:
    """In a savepoint: either all of it, or the archive as it was, with the error."""
    try:
        with connection.begin_nested():
            return work()
    except DBAPIError as error:
        if is_not_about_data(error):
            raise
        reason = describe(error.orig or error)
    return [_failed(connection, schema, entry, reason) for entry in entries]


def _failed(connection: Connection, schema: str, entry: Entry, reason: str) -> PutBack:
    update_entry(connection, schema, entry.id, restore_error=reason)
    return PutBack(entry, error=reason)
