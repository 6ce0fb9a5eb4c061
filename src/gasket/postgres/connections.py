"""How a connection to PostgreSQL is opened, and when it is given up for dead.

Networks swallow packets: a firewall forgets a connection, a machine vanishes. Without limits of its own the kernel
notices after 2 hours if nothing is under way, and after some 16 minutes if something is (tcp(7), `tcp_retries2`).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from gasket.postgres.errors import DRIVER_ERRORS, describe
from gasket.postgres.urls import Liveness, address_of, hosts_of, read_liveness, without_liveness

_TRY_THE_NEXT_HOST = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)
_CLOSE_TIMEOUT = 2.0
_PREFER_STANDBY = "target_session_attrs=prefer-standby"


async def open_connection(
    url: str, *, application_name: str, answer_timeout: float | None = None
) -> asyncpg.Connection:
    """One try to connect, with as many seconds for each host as the URL's `connect_timeout` says.

    Statements are not cached: under DDL a cached plan goes stale, and a pooler in transaction mode may hand out another
    server connection for each transaction. `answer_timeout` is in seconds, for each statement.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError: as in `errors`.
        ValueError: a parameter of the URL is not what it has to be.
    """
    liveness = read_liveness(url)
    options: dict[str, Any] = {
        "dsn": without_liveness(url),
        "command_timeout": answer_timeout,
        "statement_cache_size": 0,
        "server_settings": {"application_name": application_name},
        "connection_class": _Connection,
        "timeout": liveness.connect_timeout or None,
    }
    hosts = hosts_of(url)
    connection = await (_open_first(hosts, url, options) if len(hosts) > 1 else asyncpg.connect(**options))
    assert isinstance(connection, _Connection)
    try:
        _set_liveness(connection.socket, liveness)
    except OSError:  # it was lost already
        connection.terminate()
        raise
    return connection


def connected_address(connection: asyncpg.Connection, url: str) -> str:
    """`role@host:port/database` as `address_of` has it; of several hosts, the one that the connection leads to."""
    host = connection.host if isinstance(connection, _Connection) else None
    return address_of(url, hosts=[host] if host else None)


async def close_connection(connection: asyncpg.Connection) -> None:
    """Take leave of the server within 2 s, else without a word; raises nothing that the driver raises."""
    with suppress(*DRIVER_ERRORS):
        await connection.close(timeout=_CLOSE_TIMEOUT)


class _Connection(asyncpg.Connection):
    """The driver's, which keeps its socket at hand, and of several hosts the one that it leads to."""

    __slots__ = ("host", "socket")

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        self.socket = transport.get_extra_info("socket")
        self.host: tuple[str, int | None] | None = None


async def _open_first(hosts: list[tuple[str, int | None]], url: str, options: dict[str, Any]) -> asyncpg.Connection:
    """The first host that answers; the driver would spend the whole time on one that is silent."""
    last_error: Exception | None = None
    failures: list[str] = []
    wanted = (SessionAttribute.standby, SessionAttribute.any) if _PREFER_STANDBY in url else (None,)
    for attributes in wanted:
        for host, port in hosts:
            try:
                connection = await asyncpg.connect(**options, host=host, port=port, target_session_attrs=attributes)
            except _TRY_THE_NEXT_HOST as error:
                last_error = error
                failures.append(f"{host}: {describe(error)}")
            else:
                assert isinstance(connection, _Connection)
                connection.host = host, port
                return connection
    assert last_error is not None
    for failure in dict.fromkeys(failures):
        last_error.add_note(failure)
    raise last_error


def _set_liveness(connected: socket.socket, liveness: Liveness) -> None:
    """On TCP; each option where the system knows it (macOS has no TCP_USER_TIMEOUT)."""
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    values = {
        "TCP_KEEPIDLE": liveness.idle,
        "TCP_KEEPALIVE": liveness.idle,  # the same on macOS
        "TCP_KEEPINTVL": liveness.interval,
        "TCP_KEEPCNT": liveness.count,
        "TCP_USER_TIMEOUT": liveness.user_timeout,
    }
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, liveness.keepalives)
    for name, value in values.items():
        option = getattr(socket, name, None)
        if option is not None and value:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
