"""What an error of the server is about: the rows that go back, or something that may pass."""

from __future__ import annotations

from asyncpg import LockNotAvailableError
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.schema import MANIFEST, archive_schema
from gasket.migrator.ledger.sequences import lagging_table

# Classes of PostgreSQL's errors (manual, "PostgreSQL Error Codes") that say nothing of the rows: the connection, the
# transaction, the role's log-in, a transaction that has to be run again, memory and disk, an operator, the system, a
# snapshot, a configuration file, a foreign server, the server itself.
_PASSING_CLASSES = ("08", "25", "28", "2D", "3B", "40", "53", "57", "58", "72", "F0", "HV", "XX")

PASSING_SQL = f"(left(SQLSTATE, 2) IN {_PASSING_CLASSES} OR SQLSTATE = '{LockNotAvailableError.sqlstate}')"
"""`is_passing`, in an exception handler of PL/pgSQL."""


def sqlstate(error: DBAPIError) -> str | None:
    """The server's five characters; None where the driver failed."""
    found: str | None = getattr(error.orig, "sqlstate", None)
    return found


def is_passing(error: DBAPIError) -> bool:
    """Whether it says nothing of the rows: the same statement may succeed once the server is well again.

    A full disk, a lock that is not free in time, a deadlock, a cancelled statement, a lost connection.
    """
    state = sqlstate(error)
    return (
        error.connection_invalidated
        or state is None
        or state == LockNotAvailableError.sqlstate
        or state.startswith(_PASSING_CLASSES)
    )


def lagging_own_table(error: BaseException, schema: str) -> str | None:
    """The migrator's own table or the manifest, as SQL, whose sequence gave out an id that a row has."""
    return lagging_table(error, schema, (archive_schema(schema), MANIFEST))
