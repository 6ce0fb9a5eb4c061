"""The listener of this process: it is called with each fact while a start or a command goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

_listener: ContextVar[Callable[[object], None] | None] = ContextVar("gasket_migration_listener", default=None)


class Waiting(msgspec.Struct, frozen=True):
    """The start waits; `what` stands behind "waiting" in a sentence for everybody, so it names no role and no host."""

    what: str


@contextmanager
def told_to(listener: Callable[[object], None]) -> Iterator[None]:
    """`listener` is called with each fact that is told inside; it must not raise."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(fact: object) -> None:
    """Tell the listener, if there is one: a `Waiting`, or a fact of `apply/events.py`."""
    if (listener := _listener.get()) is not None:
        listener(fact)
