"""The modes in which PostgreSQL locks a table (PostgreSQL manual, "Explicit Locking")."""

from __future__ import annotations

import re
from enum import StrEnum


class LockMode(StrEnum):
    """Table-level lock modes, weakest first."""

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
        """Which other sessions wait for as long as the lock is held."""
        if self is LockMode.ACCESS_EXCLUSIVE:
            return "blocks reads and writes"
        if self.strength >= LockMode.SHARE.strength:
            return "blocks writes"
        if self is LockMode.SHARE_UPDATE_EXCLUSIVE:
            return "reads and writes go on"
        return "blocks schema changes only"
