"""What the archive's book says of one thing that was taken away, and of all that went with one downgrade."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gasket.migrator.archive.inventory import LossKind
from gasket.migrator.archive.partitions import Partition
from gasket.migrator.command_line import database_command
from gasket.postgres.quoting import quote_identifier

NOTE = "note"
"""The kind of an entry that only says what could not be archived; the others are those of `LossKind`."""


class KeptColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of an archive's table.

    `lost` are those that went, of a table that stayed, `retyped` those that got another type. By `key` a row is found.
    """

    name: str
    number: int
    lost: bool = False
    key: bool = False
    retyped: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that one downgrade took away.

    `relation` is an oid. `owner` is the table and column that a sequence belongs to, `position` its last value and
    whether that was handed out. `partitions` are those of a table that went with all of them. `problem` says why it
    cannot be put back by itself, or what was not archived at all.
    """

    id: int
    archive: int
    revision: str
    digest: str | None
    release: str | None
    role: str
    archived_at: datetime
    transaction: str
    kind: str
    relation: int | None
    schema_name: str | None
    object_name: str | None
    columns: tuple[KeptColumn, ...]
    owner: tuple[str, str, str] | None
    position: tuple[int, bool] | None
    stored_in: str | None
    row_count: int
    problem: str | None
    restored_at: datetime | None
    restored_rows: int
    left_behind: dict[str, int]
    restore_error: str | None
    partitions: tuple[Partition, ...] = ()
    size: int

    @property
    def name(self) -> str:
        """What was lost, for people: `schema.table` or `schema.table (column, column)`."""
        lost = ", ".join(column.name for column in self.columns if column.lost)
        return f"{self.schema_name}.{self.object_name}" + (f" ({lost})" if lost else "")

    @property
    def quoted(self) -> str:
        """The qualified name of what was lost, as SQL."""
        return f"{quote_identifier(self.schema_name or '')}.{quote_identifier(self.object_name or '')}"

    @property
    def keeps_values(self) -> bool:
        """Whether it keeps values of rows that stay: of a column, and not of all."""
        return self.kind == LossKind.COLUMNS and self.stored_in is not None and self.relation is not None

    @property
    def rows_left(self) -> int:
        """Rows that are in the archive still."""
        if self.stored_in is None:
            return 0
        return sum(self.left_behind.values()) if self.restored_at else self.row_count

    @property
    def is_left(self) -> bool:
        """Whether it keeps something that may go back: rows, or the position of a sequence."""
        return self.rows_left > 0 or (self.kind == LossKind.SEQUENCE and self.restored_at is None)

    @property
    def left_words(self) -> str | None:
        """What stayed although its revision was applied again, and why; None where nothing did."""
        if not self.rows_left or not (self.restored_at or self.restore_error):
            return None
        reasons = [f"{why}: {number}" for why, number in self.left_behind.items()] if self.restored_at else []
        why = self.restore_error or ", ".join(reasons)
        what = f"{self.rows_left} of {self.row_count} rows of {self.name} stay in archive {self.archive} ({why})"
        if self.problem:
            return f"{what}; once nobody needs them, run: {database_command(f'archive drop {self.archive}')}"
        return f"{what}; to try again run: {database_command(f'archive restore {self.archive}')}"


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """What one downgrade of one revision took away. `size` is in bytes, as it stands now."""

    number: int
    revision: str
    release: str | None
    role: str
    archived_at: datetime
    entries: tuple[Entry, ...]

    @property
    def rows(self) -> int:
        """Rows that were kept."""
        return sum(entry.row_count for entry in self.entries)

    @property
    def rows_left(self) -> int:
        """Rows that are in the archive still."""
        return sum(entry.rows_left for entry in self.entries)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(entry.size for entry in self.entries)
