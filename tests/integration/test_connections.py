"""Connections over a network that may be silent: which limits they have, and which host is taken."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gasket.postgres.connections import close_connection, open_connection
from gasket.postgres.urls import LIVENESS
from tests.acceptance.wire import Server, Tap, tapped
from tests.migrator.project import is_true


@pytest.fixture
async def tap(database_url: str) -> AsyncIterator[Tap]:
    """A TCP port that leads to the test's database."""
    async with tapped(database_url) as tap:
        yield tap


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A port that accepts connections and says nothing."""
    held: list[asyncio.StreamWriter] = []
    listener = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1")
    yield listener.sockets[0].getsockname()[1]
    for writer in held:
        writer.close()
    listener.close()


async def options_of(url: str, *names: str) -> list[int]:
    """The values of TCP options of a new connection's socket."""
    connection: Any = await open_connection(url, application_name="test")
    try:
        return [connection.socket.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
    finally:
        await close_connection(connection)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other options")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", [15, 5, 3, 30_000]),
        ("&tcp_user_timeout=7000&keepalives_idle=40", [40, 5, 3, 7000]),
        ("&keepalives_interval=8&keepalives_count=9", [15, 8, 9, 30_000]),
    ],
)
async def test_a_silent_network_is_noticed_as_soon_as_the_url_says(
    tap: Tap, parameters: str, expected: list[int]
) -> None:
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    assert await options_of(tap.url + parameters, *names) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
async def test_a_connection_whose_options_cannot_be_set_is_closed(
    tap: Tap, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIVENESS, "keepalives_idle", 100_000)  # as on a system that takes less than Linux
    with pytest.raises(OSError, match="Invalid argument"):
        await open_connection(f"{tap.url}&keepalives_idle=100000", application_name="refused option")
    connection = await open_connection(database_url, application_name="test")
    try:
        async with asyncio.timeout(60):
            await is_true(
                connection,
                "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'refused option' "
                "AND datname = current_database())",
            )
    finally:
        await close_connection(connection)


async def test_keepalives_may_be_turned_off(tap: Tap) -> None:
    for parameters, kept in (("", 1), ("&keepalives=0", 0)):
        connection: Any = await open_connection(tap.url + parameters, application_name="test")
        assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == kept
        await close_connection(connection)


async def test_a_unix_socket_needs_none_of_it(database_url: str) -> None:
    if not Server.of(database_url).is_socket:
        pytest.skip("the server has no Unix socket")
    connection = await open_connection(f"{database_url}&tcp_user_timeout=5000", application_name="test")
    assert await connection.fetchval("SELECT 1") == 1
    await close_connection(connection)


async def test_a_silent_host_is_given_up_after_its_connect_timeout(silent_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await open_connection(f"postgresql://u@127.0.0.1:{silent_port}/db?connect_timeout=1", application_name="test")
    assert time.monotonic() - began < 8


async def test_the_next_host_is_asked_when_the_first_is_silent(tap: Tap, silent_port: int) -> None:
    url = tap.url.replace("@127.0.0.1:", f"@127.0.0.1:{silent_port},127.0.0.1:") + "&connect_timeout=1"
    connection = await open_connection(url, application_name="test")
    assert await connection.fetchval("SELECT 1") == 1
    await close_connection(connection)


async def test_a_standby_that_is_not_there_is_only_preferred(tap: Tap) -> None:
    url = tap.url.replace("@127.0.0.1:", "@127.0.0.1:1,127.0.0.1:") + "&target_session_attrs=prefer-standby"
    connection = await open_connection(url, application_name="test")
    assert await connection.fetchval("SELECT 1") == 1
    await close_connection(connection)
