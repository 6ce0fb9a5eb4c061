"""What a revision does to the tables that are there before it: locks, rewrites, scans, index builds."""

from __future__ import annotations

import msgspec

from gasket.migrator.scratch.requirements import Requirement
from gasket.migrator.sql.locks import LockMode


class Statement(msgspec.Struct, frozen=True):
    """One statement as it is sent; `autocommit` is outside the revision's transaction, as CONCURRENTLY has to be."""

    sql: str
    autocommit: bool = False


class TableLock(msgspec.Struct, frozen=True, kw_only=True):
    """The strongest lock on a table; `statement` counts from 1. Estimated: from the SQL, not seen.

    `rows` and `bytes` are of the live table, None until it is looked at. `rows` is PostgreSQL's estimate, None also
    where there is none yet. `bytes` are with indexes and TOAST, None also for a table that is not live yet.
    """

    table: str
    mode: LockMode
    blocks: str = ""
    statement: int
    estimated: bool
    rows: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "blocks", self.mode.blocks)


class IndexBuild(msgspec.Struct, frozen=True):
    """An index built over the rows of a table."""

    index: str
    table: str


class NotTried(msgspec.Struct, frozen=True):
    """A statement that was not tried out, counted from 1; `kind` are its first words: `create role`."""

    statement: int
    kind: str
    reason: str


class Effects(msgspec.Struct):
    """Of one revision, in the order of its statements. Tables that it makes itself are left out.

    A lock on an index or on a column's sequence counts as one on its table: no query of the table does without.
    `unknown` says, in sentences, what could not be found out. `requirements` are what rows that are there must fulfil.
    `row_locks` are tables with the statement (from 1) that took ROW EXCLUSIVE on them: it may write to their rows.
    """

    statements: list[Statement] = []
    locks: list[TableLock] = []
    rewrites: list[str] = []
    scans: list[str] = []
    index_builds: list[IndexBuild] = []
    unknown: list[str] = []
    not_tried: list[NotTried] = []
    requirements: list[Requirement] = []
    row_locks: list[tuple[int, str]] = []

    @property
    def concurrently(self) -> bool:
        """Whether it leaves its transaction: such a revision stands alone, and can stop half done."""
        return any(statement.autocommit for statement in self.statements)

    def add_lock(self, table: str, mode: LockMode, *, estimated: bool) -> None:
        """By the last statement; a weaker lock than the one known of that table changes nothing."""
        known = next((lock for lock in self.locks if lock.table == table), None)
        if known and known.mode.strength >= mode.strength:
            return
        if known:
            self.locks.remove(known)
        self.locks.append(TableLock(table=table, mode=mode, statement=len(self.statements), estimated=estimated))

    def add_rewrite(self, table: str) -> None:
        """The whole table is written anew."""
        if table not in self.rewrites:
            self.rewrites.append(table)

    def add_scan(self, table: str) -> None:
        """The whole table is read."""
        if table not in self.scans:
            self.scans.append(table)
