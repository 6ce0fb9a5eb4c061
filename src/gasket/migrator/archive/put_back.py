"""What became of archived rows that go back to their tables: archive by archive, parents before children.

Whatever fails does so alone, in a savepoint, and stays in the archive with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby

import msgspec
from msgspec.structs import replace
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.copies import LEFT_BEHIND, exact_settings
from gasket.migrator.archive.entries import Entry
from gasket.migrator.archive.faults import is_passing
from gasket.migrator.archive.inventory import LossKind, count_rows
from gasket.migrator.archive.live_table import Target, UnfitError, read_target
from gasket.migrator.archive.manifest import Manifest
from gasket.migrator.archive.partitions import make_partitions
from gasket.migrator.archive.savepoints import savepoint
from gasket.migrator.archive.write import write_group
from gasket.postgres.errors import describe
from gasket.postgres.quoting import quote_identifier


class PutBack(msgspec.Struct, frozen=True):
    """What became of one entry of the archive: `rows` are back now, `left` stay, by reason; or an error, and all stay.

    `table` is the oid of the table that they went back to, `made` are partitions of it that were made for them.
    """

    entry: Entry
    table: int | None = None
    rows: int = 0
    left: Mapping[str, int] = msgspec.field(default_factory=dict)
    error: str | None = None
    made: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the entry has it."""
        return self.entry.name

    def __str__(self) -> str:
        if self.error:
            return f"{self.name}: nothing, {self.error}"
        stay = "".join(f", {number} stay in archive {self.entry.archive} ({why})" for why, number in self.left.items())
        made = f" (partitions made again: {', '.join(self.made)})" if self.made else ""
        return f"{count_rows(self.rows)} of {self.name}{made}{stay}"


def put_archives_back(manifest: Manifest, entries: Sequence[Entry], marked: Collection[int]) -> tuple[PutBack, ...]:
    """Put the entries of one or more archives back, as far as they fit, in the transaction that is open.

    `marked` are the ids of those of columns of which it is known which rows were changed since.

    Raises:
        sqlalchemy.exc.DBAPIError: a passing fault: a lock, the disk, the connection.
    """
    with exact_settings(manifest.connection):
        return tuple(
            result
            for _, archive in groupby(entries, key=lambda entry: entry.archive)
            for result in _put_archive_back(manifest, list(archive), marked)
        )


def _in_order(targets: Sequence[Target]) -> list[list[Target]]:
    """Parents before children; tables that refer to each other in a circle are one group."""
    needs = {
        target.oid: {
            other.oid for other in targets for key in target.foreign_keys if other is not target and other.brings(key)
        }
        for target in targets
    }
    reached: dict[int, set[int]] = {}
    for start in needs:
        found, waiting = set[int](), [start]
        while waiting:
            new = needs[waiting.pop()] - found
            found |= new
            waiting += new
        reached[start] = found
    groups: list[list[Target]] = []
    # What another one needs reaches less than that one does.
    for target in sorted(targets, key=lambda target: len(reached[target.oid] - {target.oid})):
        circle = next((g for g in groups if g[0].oid in reached[target.oid] and target.oid in reached[g[0].oid]), None)
        if circle:
            circle.append(target)
        else:
            groups.append([target])
    return groups


def _put_archive_back(manifest: Manifest, entries: Sequence[Entry], marked: Collection[int]) -> Iterator[PutBack]:
    targets: list[Target] = []
    made: dict[int, tuple[str, ...]] = {}
    for entry in entries:
        if entry.kind == LossKind.SEQUENCE:
            continue
        if not entry.stored_in:
            manifest.settle(entry.id, rows=0, left={})  # there was no row
            continue
        try:
            target = read_target(manifest.connection, manifest.schema, entry, marked=entry.id in marked)
        except UnfitError as error:
            yield _failed(manifest, entry, str(error))
            continue
        targets.append(target)
        if not entry.restored_at:  # what is dropped later is dropped on purpose
            made[entry.id] = make_partitions(manifest.connection, entry.partitions)
    for group in _in_order(targets):
        for result in _in_savepoint(manifest, [t.entry for t in group], partial(_put_group_back, manifest, group)):
            yield replace(result, made=made.get(result.entry.id, ()))
    for entry in entries:  # after the rows: the sequence of a column that came back is found by the column
        if entry.kind == LossKind.SEQUENCE:
            yield from _in_savepoint(manifest, [entry], partial(_put_position_back, manifest, entry))


def _in_savepoint(manifest: Manifest, entries: Iterable[Entry], work: Callable[[], list[PutBack]]) -> list[PutBack]:
    """In a savepoint: either all of it, or the archive as it was, with the error."""
    try:
        with savepoint(manifest.connection):
            return work()
    except UnfitError as error:
        reason = str(error)
    except DBAPIError as error:
        if is_passing(error):
            raise
        reason = describe(error)
    return [_failed(manifest, entry, reason) for entry in entries]


def _failed(manifest: Manifest, entry: Entry, reason: str) -> PutBack:
    manifest.update(entry.id, restore_error=reason)
    return PutBack(entry, error=reason)


def _put_group_back(manifest: Manifest, group: Sequence[Target]) -> list[PutBack]:
    """All rows with one statement for each table. Where the server refuses that, only the rows at fault stay."""
    try:
        with savepoint(manifest.connection):
            left = write_group(manifest.connection, group, one_by_one=False)
    except DBAPIError as error:
        if is_passing(error):
            raise
        left = write_group(manifest.connection, group, one_by_one=True)
    return [_settle(manifest, target, left) for target, left in zip(group, left, strict=True)]


def _settle(manifest: Manifest, target: Target, left: Mapping[str, int]) -> PutBack:
    """Take out of the archive what is back, so that it is not put back twice."""
    if left:
        manifest.connection.exec_driver_sql(f"DELETE FROM {target.archive} WHERE {LEFT_BEHIND} IS NULL")
    else:
        manifest.connection.exec_driver_sql(f"DROP TABLE {target.archive}")
    entry = target.entry
    rows = entry.rows_left - sum(left.values())
    manifest.settle(entry.id, rows=entry.restored_rows + rows, left=left)
    return PutBack(entry, target.oid, rows, left)


def _put_position_back(manifest: Manifest, entry: Entry) -> list[PutBack]:
    """Never backwards: whatever was handed out meanwhile stays handed out."""
    connection = manifest.connection
    sequence = entry.quoted
    if entry.owner:
        table = ".".join(map(quote_identifier, entry.owner[:2]))
        sequence = connection.exec_driver_sql(
            "SELECT coalesce(pg_get_serial_sequence($1, $2), $3)", (table, entry.owner[2], sequence)
        ).scalar_one()
    now = connection.exec_driver_sql(
        f"SELECT s.last_value, s.is_called, p.seqincrement > 0 AS ascending FROM {sequence} AS s "
        "CROSS JOIN pg_sequence AS p WHERE p.seqrelid = $1::text::regclass",
        (sequence,),
    ).one()
    assert entry.position is not None
    value, called = entry.position
    if value == now.last_value:
        called = called or now.is_called
    elif (value > now.last_value) is not now.ascending:
        value, called = now.last_value, now.is_called
    connection.exec_driver_sql("SELECT setval($1::text::regclass, $2, $3)", (sequence, value, called))
    manifest.settle(entry.id, rows=0, left={})
    return []
