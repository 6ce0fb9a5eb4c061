"""The name of the command line that is in use, for the sentences that tell a reader which command to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_name = ContextVar("command line", default="gasket database")
"""A start and the API have no typed name; there the sentences use the default."""


@contextmanager
def called_as(name: str) -> Iterator[None]:
    """Inside, sentences use the name that the user typed, such as `gasket db` or `litestar database`."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def database_command(arguments: str) -> str:
    """`gasket database status` of `status`, under the name that the user typed."""
    return f"{_name.get()} {arguments}"
