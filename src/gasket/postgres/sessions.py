"""What a session is called in `pg_stat_activity`, and the settings of a session that changes the schema."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple, TypeVar

import asyncpg

from gasket.postgres.quoting import quote_identifier

T = TypeVar("T")

MIGRATING = "gasket-migrate"
LOOKING = "gasket-status"
READINESS = "gasket-ready"
WORKING = "gasket-work"
WATCHING = "gasket-drift"
_SERVING = (READINESS, "gasket", "gasket-keys", "gasket-listen", "gasket-limits", "gasket-usage")
"""The activities of a replica that serves. The readiness connection is there for as long as it does."""

DEFAULT_SCHEMA = "public"
_LONGEST_NAME = 63
_LONGEST_ACTIVITY = MIGRATING

# Settings of the migration session. "0" is "no limit" (PostgreSQL manual, "Client Connection Defaults"): limits
# that a role carries are meant for requests. client_connection_check_interval makes a statement end soon after
# its client was killed; names that the server's version does not know are left out.
_SESSION_SETTINGS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",  # this and the next one: unless `prepare_session` is given an `idle_limit`
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "standard_conforming_strings": "on",
    "client_connection_check_interval": "500ms",
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
}
_TRIES = 100
PINNED = "concat_ws('|', {}, current_user)".format(
    ", ".join(f"current_setting('{name}', true)" for name in ("search_path", *_SESSION_SETTINGS))
)
"""SQL text: what `prepare_session` has set, and the role, as one value in which a change shows."""


def application_name(activity: str, release: str, schema: str = DEFAULT_SCHEMA) -> str:
    """`<activity>[@<schema>] <release> <host>:<pid>` in the 63 bytes that PostgreSQL keeps.

    What follows the activity is the same for all sessions of a process, also where it has to be shortened: a long host
    name loses its middle, for the ends are what tells the replicas of a deployment apart.
    """
    pid = f":{os.getpid()}"
    tag = _schema_tag(schema)
    room = _LONGEST_NAME - len(f"{_LONGEST_ACTIVITY}{tag}  {shown_release(release)}{pid}")
    host = socket.gethostname().encode("ascii", "replace").decode()
    if len(host) > room:
        host = f"{host[: (room - 1) // 2]}~{host[len(host) - room // 2 :]}"
    return f"{activity}{tag} {shown_release(release)} {host}{pid}"


def shown_release(release: str) -> str:
    """A release as `application_name` shows it."""
    return release[:20].encode("ascii", "replace").decode()


class Replica(NamedTuple):
    """A process that serves. `release` is as `shown_release` has it, `process` is `<host>:<pid>`.

    `since` is when the oldest of its sessions began; None where this role may not see that.
    """

    release: str
    process: str
    since: datetime | None = None


async def serving_replicas(connection: asyncpg.Connection, schema: str) -> list[Replica]:
    """The replicas that serve from this schema of this database, as far as their sessions' names tell.

    Every role may see the names. Behind a pooler a session keeps the name of the client that used it last.
    """
    names = await connection.fetch(
        "SELECT application_name, min(backend_start) FROM pg_catalog.pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'gasket%' GROUP BY application_name"
    )
    begun: dict[tuple[str, str], list[datetime]] = {}
    for name, since in names:
        activity, _, rest = name.partition(" ")
        release, _, process = rest.rpartition(" ")
        if process and activity in {f"{serving}{_schema_tag(schema)}" for serving in _SERVING}:
            begun.setdefault((release, process), []).extend([since] if since else [])
    return [Replica(*which, min(moments, default=None)) for which, moments in sorted(begun.items())]


def _schema_tag(schema: str) -> str:
    return "" if schema == DEFAULT_SCHEMA else f"@{schema[:12]}"


async def insist(work: Callable[[], Awaitable[T]]) -> T:
    """Do what takes a moment, again where the role's `statement_timeout` has ended it: a millisecond may be too short.

    Raises:
        asyncpg.QueryCanceledError: the limit has ended each of a hundred tries.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            return await work()
        except asyncpg.QueryCanceledError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


async def prepare_session(connection: asyncpg.Connection, schema: str, *, idle_limit: str = "0", **others: str) -> str:
    """Pin the session's settings and its `search_path`, whatever the role or the database set; returns the role.

    `idle_limit`: the server ends the session when the client sends nothing for that long. `others` are set as well.
    """
    await insist(lambda: connection.execute("SET statement_timeout = 0"))
    idle = dict.fromkeys(("idle_session_timeout", "idle_in_transaction_session_timeout"), idle_limit)
    settings = {**_SESSION_SETTINGS, **idle, "search_path": quote_identifier(schema), **others}
    rows = await connection.fetch(
        "SELECT current_user::text, set_config(name, value, false) "
        "FROM unnest($1::text[], $2::text[]) AS wanted(name, value) WHERE current_setting(name, true) IS NOT NULL",
        list(settings),
        list(settings.values()),
    )
    return str(rows[0][0])
