"""Who makes a change, and how: each transaction that may change something tells the database, for the audit's triggers.

Who asks sets it once, around all that follows; the sessions of `db.py` pass it on.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

ActorKind = Literal["root", "token", "person", "subject", "os_user", "replica", "unknown", "role"]
"""`subject`: of a signed token at `/v1`. `role`: a database role, where the transaction told nothing. `replica`: Gasket
by itself. `unknown`: who did not sign in."""
How = Literal["api", "page", "command", "sql"]


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """As the function `add_audit_entry` of the database reads it."""

    actor: str
    kind: ActorKind
    how: How
    source: str | None = None
    """An address, None behind a Unix socket; of a command the host's name."""
    request_id: str | None = None


_current: ContextVar[Origin | None] = ContextVar("origin", default=None)


@contextmanager
def acting(origin: Origin | None) -> Iterator[None]:
    """Inside, transactions are this one's; with None they are the database role's, and cost no further round trip."""
    token = _current.set(origin)
    try:
        yield
    finally:
        _current.reset(token)


def current_origin() -> Origin | None:
    """Who acts here, if that is known."""
    return _current.get()


def origin_of_command() -> Origin:
    """Who runs a command: the user of the operating system, on this host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has no name
        user = f"uid {os.getuid()}"
    return Origin(actor=user, kind="os_user", how="command", source=socket.gethostname())


def parameters_of(origin: Origin) -> dict[str, Any]:
    """The columns of an entry that say who."""
    return {
        "actor": origin.actor,
        "actor_kind": origin.kind,
        "how": origin.how,
        "source": origin.source,
        "request_id": origin.request_id,
    }
