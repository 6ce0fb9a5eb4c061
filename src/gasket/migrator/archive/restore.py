"""When a revision is applied again, what its downgrade had taken away comes back, in the same transaction.

What does not fit any more stays in the archive, row by row, with the reason. Where putting back fails, the archive
stays as it was, with the error, and the upgrade goes on: an upgrade never fails for what the archive holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.copies import CHANGED, VERSION, exact_settings, is_not_about_data
from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.manifest import Entry, entries_to_restore, settle_entry, update_entry
from gasket.migrator.archive.put_back import PutBack, in_order, put_group_back, put_position_back
from gasket.migrator.archive.schema import stored
from gasket.migrator.archive.targets import Target, UnfitError, read_target
from gasket.migrator.archive.trial import connection_of
from gasket.migrator.connection import describe, quote_identifier

log = logging.getLogger("gasket.migrator")

_ANOTHER = "another version of the revision's file took it away"
_RELATION = """
SELECT c.oid::regclass::text AS name, c.relkind::text AS kind
FROM pg_class AS c WHERE c.oid = $1::bigint::oid AND c.relkind IN ('r', 'p')
"""
_NAMES = """
SELECT attnum AS number, quote_ident(attname) AS name, format_type(atttypid, atttypmod) AS type
FROM pg_attribute WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped
"""


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
    digest: str | None,
    run_upgrade: Callable[[], None],
    strong: bool = False,
) -> RestoreReport:
    """Run the step, and put back what a downgrade under the same digest had taken away. In the step's transaction.

    Whose columns come back is locked against writers before the step, to see which rows were changed meanwhile;
    `strong` keeps readers off as well, so that the step has these locks already.

    Raises:
        sqlalchemy.exc.DBAPIError: of the step itself; or a lock was not free in time, or the connection is gone.
    """
    connection = connection_of(context)
    archived = entries_to_restore(connection, schema, revision)
    entries = [entry for entry in archived if digest is not None and entry.digest == digest]
    of_another = tuple(PutBack(e.name, e.archive, error=_ANOTHER) for e in archived if e.stored_in and e not in entries)
    if not entries:
        run_upgrade()
        return _reported(RestoreReport(revision, of_another))
    marked = {
        entry.id
        for entry in entries
        if entry.kind == LossKind.COLUMNS and entry.stored_in and _mark_changed(connection, schema, entry, strong)
    }
    transaction = _transaction(connection)
    run_upgrade()
    connection = connection_of(context)
    if _transaction(connection) != transaction:
        marked = set()  # an autocommit block let writers in: now nothing tells which rows they changed
    started = time.monotonic()
    # What upgrade() itself has deferred is checked here, as its error and not as one of the archive.
    connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    with exact_settings(connection):
        put_back = tuple(
            result
            for _, archive in groupby(entries, key=lambda entry: entry.archive)
            for result in _put_archive_back(connection, schema, list(archive), marked)
        )
    return _reported(RestoreReport(revision, put_back + of_another, time.monotonic() - started))


def _reported(report: RestoreReport) -> RestoreReport:
    if report.put_back:
        level = logging.INFO if report.complete else logging.WARNING
        text = "revision %s is applied again and brings back: %s (%.1f s)"
        log.log(level, text, report.revision, report, report.seconds)
    return report


def _mark_changed(connection: Connection, schema: str, entry: Entry, strong: bool) -> bool:
    """Mark the archived values whose live row has a version that is neither the downgrade's nor from before it.

    False if that cannot be told: after a dump and restore it is another table.
    """
    try:
        with connection.begin_nested():
            live = connection.exec_driver_sql(_RELATION, (entry.relation,)).one_or_none()
            if live is None:
                return False
            source = live.name if live.kind == "p" else f"ONLY {live.name}"
            connection.exec_driver_sql(f"LOCK TABLE {source} IN {'ACCESS' if strong else 'SHARE ROW'} EXCLUSIVE MODE")
            # By number: upgrade() has yet to give them the names that they had.
            columns = {row.number: row for row in connection.exec_driver_sql(_NAMES, (entry.relation,))}
            joined = " AND ".join(
                f"t.{columns[key.number].name} = a.{quote_identifier(key.name)}::{columns[key.number].type}"
                for key in entry.columns
                if key.key
            )
            connection.exec_driver_sql(
                f"UPDATE {stored(schema, entry.stored_in or '')} AS a SET {CHANGED} = true FROM {source} AS t "
                f"WHERE {joined} AND t.xmin <> a.{VERSION} AND t.xmin <> $1::text::xid",
                (entry.transaction,),
            )
    except KeyError:
        return False
    except DBAPIError as error:
        if is_not_about_data(error):
            raise
        return False
    return True


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
    return PutBack(entry.name, entry.archive, error=reason)
