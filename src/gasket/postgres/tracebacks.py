"""Tracebacks in which errors of the database have no values of rows.

Python would print the error's own text: with the server's DETAIL, and of SQLAlchemy's errors with the SQL.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

import asyncpg

from gasket.postgres.errors import describe, driver_error


def format_exception(error: BaseException) -> str:
    """As Python prints it, with the errors that it came of; no newline at the end."""
    formatted = traceback.TracebackException.from_exception(error)
    _tell_without_values(formatted, error)
    return "".join(formatted.format()).rstrip("\n")


def print_tracebacks_without_values() -> None:
    """From now on an error that ends this process is printed so. A hook that is there already stays."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print


def _print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, Exception):
        sys.stderr.write(f"{format_exception(error)}\n")
    else:
        sys.__excepthook__(kind, error, trace)


def _tell_without_values(formatted: traceback.TracebackException, error: BaseException) -> None:
    if isinstance(driver_error(error), asyncpg.PostgresError | asyncpg.InterfaceError) or hasattr(error, "orig"):
        text = f"{type(error).__module__}.{type(error).__qualname__}: {describe(error)}\n"
        # What `format` asks each error of the chain for; the arguments differ between versions of Python.
        setattr(formatted, "format_exception_only", lambda *_, **__: [text])  # noqa: B010  # a method, for mypy
    if formatted.__cause__ and error.__cause__:
        _tell_without_values(formatted.__cause__, error.__cause__)
    if formatted.__context__ and error.__context__:
        _tell_without_values(formatted.__context__, error.__context__)
    if formatted.exceptions and isinstance(error, BaseExceptionGroup):
        for inner, one in zip(formatted.exceptions, error.exceptions, strict=False):
            _tell_without_values(inner, one)
