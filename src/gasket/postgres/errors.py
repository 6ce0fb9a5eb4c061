"""Errors of a server or of the driver: what they say, and whether waiting may help."""

from __future__ import annotations

import os
import re
import socket
import ssl

import asyncpg

from gasket.postgres.messages import message_without_values

DRIVER_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""All that asyncpg raises when the database does not answer, or not as it should; a timeout is an OSError."""

AWAY = (
    OSError,  # refused, no such host, no such socket, timed out
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.PostgresConnectionError,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.ProtocolViolationError,  # PgBouncer's word for "I cannot reach the server"
    asyncpg.InternalClientError,  # the driver's own state is upset when the server's last words come too early
)
"""The server cannot be reached now; the next try may succeed."""

LOST = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,
)
"""An open connection is gone or cannot be used any longer; the server may be well."""

REFUSED = (
    ssl.SSLError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.UndefinedObjectError,  # an unknown parameter in the URL
    asyncpg.FeatureNotSupportedError,
    asyncpg.InvalidParameterValueError,
    asyncpg.PostgresSyntaxError,  # of `options`
    ValueError,
)
"""The server answers and refuses this role or these parameters; another try would end the same way."""

# SQLSTATEs (PostgreSQL manual, "PostgreSQL Error Codes"). The server shuts down, crashed, or starts.
_ENDED = frozenset({"57P01", "57P02", "57P03"})
# Undefined table, column, function, object; no such schema.
_NOT_THERE = frozenset({"42P01", "42703", "42883", "42704", "3F000"})
_ERRNO = re.compile(r"\[Errno -?\d+\] ")
_FAILED_CONNECT = re.compile(r"\[Errno (\d+)\] Connect call failed \('([^']*)', (\d+)[^)]*\)")


def is_lost(error: BaseException) -> bool:
    """Whether the error is one of LOST; an error of SQLAlchemy's is judged by the driver's that it stands for.

    The session goes on after an ERROR, whatever its SQLSTATE: dblink and postgres_fdw tell with class 08 that another
    server is away. What ends a session is FATAL, or the driver's own error.
    """
    if getattr(driver_error(error), "severity_en", None) == "ERROR":
        return False
    original = getattr(error, "orig", None) or error
    lost = isinstance(original, LOST) or isinstance(original.__cause__, LOST)
    state = getattr(original, "sqlstate", None) or ""
    return lost or state.startswith("08") or state in _ENDED or bool(getattr(error, "connection_invalidated", False))


def lacks_object(error: BaseException) -> bool:
    """Whether a statement named a schema, a table, a column, a type or a function that is not there."""
    state = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
    return state in _NOT_THERE


def describe(error: BaseException) -> str:
    """What a server or a driver said, in one line, without the URL that was used and without values of rows.

    An error of SQLAlchemy's is described by the driver's that it stands for: its own text has the SQL and values.
    """
    error = driver_error(error)
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    if isinstance(error, AWAY) and (hosts := getattr(error, "__notes__", ())):
        return "; ".join(hosts)  # as `connections.open_connection` has tried them
    if isinstance(error, asyncpg.PostgresError):
        text = message_without_values(error) or type(error).__name__
        return f"{text} [SQLSTATE {error.sqlstate}]" if error.sqlstate else text
    if isinstance(error, OSError):
        return _of_the_system(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__


def driver_error(error: BaseException) -> BaseException:
    """The driver's error that one of SQLAlchemy's stands for; another error as it is."""
    original = getattr(error, "orig", None) or error
    adapted = type(original).__module__.startswith("sqlalchemy.")
    cause = original.__cause__
    return cause if adapted and isinstance(cause, asyncpg.PostgresError | asyncpg.InterfaceError) else original


def _of_the_system(error: OSError) -> str:
    """In words: the number of an error says nothing to a reader. asyncio puts several tries into one text."""
    if isinstance(error, socket.gaierror):
        return f"the host name cannot be resolved ({error.strerror})"
    text = _FAILED_CONNECT.sub(lambda found: f"{os.strerror(int(found[1]))} at {found[2]}:{found[3]}", str(error))
    return _ERRNO.sub("", text) or type(error).__name__
