"""A part of a transaction that may fail alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.faults import is_passing

_NAME = "gasket_part"


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Take the block's work back when it raises an error.

    SQLAlchemy's own `begin_nested` leaves the subtransaction open then, and rows that are written later would not bear
    the number of the transaction, by which they are told from rows that others have changed.
    """
    connection.exec_driver_sql(f"SAVEPOINT {_NAME}")
    try:
        yield
    except BaseException:
        if not (connection.closed or connection.invalidated):
            connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_NAME}")
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {_NAME}")
        raise
    connection.exec_driver_sql(f"RELEASE SAVEPOINT {_NAME}")


def unless_refused(connection: Connection, sql: str) -> bool:
    """Run it in a savepoint; False where the server refuses it.

    Raises:
        sqlalchemy.exc.DBAPIError: a passing fault.
    """
    try:
        with savepoint(connection):
            connection.exec_driver_sql(sql)
    except DBAPIError as error:
        if is_passing(error):
            raise
        return False
    return True
