"""What a revision does to the tables that are there before it: locks, rewrites, scans, index builds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum


class LockMode(StrEnum):
    """Table-level lock modes, weakest first (PostgreSQL manual, "Explicit Locking")."""

    ACCESS_SHARE = "ACCESS SHARE"
    ROW_SHARE = "ROW SHARE"
    ROW_EXCLUSIVE = "ROW EXCLUSIVE"
    SHARE_UPDATE_EXCLUSIVE = "SHARE UPDATE EXCLUSIVE"
    SHARE = "SHARE"
    SHARE_ROW_EXCLUSIVE = "SHARE ROW EXCLUSIVE"
    EXCLUSIVE = "EXCLUSIVE"
    ACCESS_EXCLUSIVE = "ACCESS EXCLUSIVE"

    @classmethod
    def of_pg_locks(cls, mode: str) -> LockMode:
        """`AccessExclusiveLock`, as `pg_locks.mode` has it."""
        return cls(re.sub(r"(?<!^)(?=[A-Z])", " ", mode.removesuffix("Lock")).upper())

    @property
    def strength(self) -> int:
        """1 to 8."""
        return list(LockMode).index(self) + 1

    @property
    def blocks(self) -> str:
        """Whom it keeps waiting, for as long as it is held."""
        if self is LockMode.ACCESS_EXCLUSIVE:
            return "blocks reads and writes"
        if self.strength >= LockMode.SHARE.strength:
            return "blocks writes"
        if self is LockMode.SHARE_UPDATE_EXCLUSIVE:
            return "reads and writes go on"
        return "blocks schema changes only"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as it is sent; `autocommit` is outside the revision's transaction, as CONCURRENTLY has to be."""

    sql: str
    autocommit: bool = False


@dataclass(frozen=True, slots=True)
class TableLock:
    """The strongest lock on a table; `statement` counts from 1. Estimated: from the SQL, not seen."""

    table: str
    mode: LockMode
    statement: int
    estimated: bool


@dataclass(frozen=True, slots=True)
class IndexBuild:
    """An index built over the rows of a table."""

    index: str
    table: str


@dataclass(slots=True)
class Effects:
    """Of one revision, in the order of its statements. Tables that it makes itself are left out.

    A lock on an index or on a column's sequence counts as one on its table: no query of the table does without.
    `unknown` says, in sentences, what could not be found out.
    """

    statements: list[Statement] = field(default_factory=list)
    locks: list[TableLock] = field(default_factory=list)
    rewrites: list[str] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    index_builds: list[IndexBuild] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

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
        self.locks.append(TableLock(table, mode, len(self.statements), estimated))

    def add_rewrite(self, table: str) -> None:
        """The whole table is written anew."""
        if table not in self.rewrites:
            self.rewrites.append(table)

    def add_scan(self, table: str) -> None:
        """The whole table is read."""
        if table not in self.scans:
            self.scans.append(table)
