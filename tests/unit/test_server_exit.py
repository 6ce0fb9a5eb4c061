"""When Gasket's own HTTP protocol can go: each attack, against it and against those that uvicorn brings.

`docs/decisions.md` has the rule. On the day on which a protocol of uvicorn's withstands one attack more, a test fails.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gasket.server.connections import Connections
from tests.unit.test_server import CHUNKED, INNER, Application, Listening, answer, ask, until

PATIENCE = 30.0
"""Seconds that a server has for what it is known to do. Gasket's own limits are far shorter here."""
NEVER = 1.0
"""Seconds after which a server that is known never to do it counts as one that still does not."""


class Target(Listening):
    """A server, and what its application has seen."""

    def __init__(self, port: int, application: Application, patience: float) -> None:
        super().__init__(port)
        self.application = application
        self.patience = patience

    async def status(self, data: bytes) -> int | None:
        """Of the answer to these bytes; None: the connection ended, or nothing came."""
        async with self.connect() as client:
            await client.send(data)
            line = await client.line(PATIENCE)
            return int(line.split(b" ")[1]) if line else None


async def an_upgrade_smuggles_no_request(target: Target) -> bool:
    """The body of a request with `Upgrade`, in a packet of its own, is not the next request."""

    def asked() -> set[str]:
        return {scope["path"] for scope in target.application.scopes}

    async with target.connect() as client:
        fields = [("Connection", "Upgrade"), ("Upgrade", "foo"), ("Content-Length", str(len(INNER)))]
        await client.send(ask("POST /outer HTTP/1.1", fields))
        await until(lambda: "/outer" in asked())
        await client.send(INNER, ask("GET /last HTTP/1.1", [("Connection", "close")]))
        assert await client.gone(PATIENCE)
    return "/v1/embeddings" not in asked()


async def a_head_has_a_limit_of_time(target: Target) -> bool:
    async with target.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nX: ")
        return await client.gone(target.patience)


async def a_new_connection_has_a_limit_of_time(target: Target) -> bool:
    async with target.connect() as client:
        return await client.gone(target.patience)


async def a_head_has_a_limit_of_size(target: Target) -> bool:
    return await target.status(ask("GET / HTTP/1.1", [("X", "x" * 1_000_000)])) != 200


async def fields_have_a_limit_of_number(target: Target) -> bool:
    return await target.status(ask("GET / HTTP/1.1", [("X", "")] * 10_000)) != 200


async def after_a_refusal_nothing_more_is_read(target: Target) -> bool:
    async with target.connect() as client:
        await client.send(ask("POST /refused HTTP/1.1", [("Transfer-Encoding", "chunked")]))
        await client.line(PATIENCE)
        return await client.gone(target.patience, sending=b"2\r\nxx\r\n" * 10)


async def the_framing_of_a_body_has_a_limit(target: Target) -> bool:
    async with target.connect() as client:
        await client.send(CHUNKED, b"1;%b\r\nx\r\n" % (b"e" * 100) * 10_000 + b"0\r\n\r\n")
        line = await client.line(PATIENCE)
        return bool(line) and b" 200 " not in line


async def the_first_line_is_http(target: Target) -> bool:
    lines = ("SOURCE /x ICE/1.0", "GET  /x HTTP/1.1", "GET /x  HTTP/1.1")
    return all([await target.status(ask(line)) == 400 for line in lines])


async def a_host_is_a_host(target: Target) -> bool:
    return await target.status(ask("GET /x HTTP/1.1", [("Host", "a@b")])) == 400


async def one_request_has_one_host(target: Target) -> bool:
    return await target.status(ask("GET /x HTTP/1.1", [("Host", "a"), ("Host", "b")])) == 400


async def a_client_that_has_sent_ahead_is_seen_to_leave(target: Target) -> bool:
    async with target.connect() as client:
        await client.send(ask("GET /wait HTTP/1.1") + ask("GET /x HTTP/1.1") * 5000)
    try:
        await asyncio.wait_for(target.application.left.wait(), target.patience)
    except TimeoutError:
        return False
    return True


ATTACKS: list[Callable[[Target], Awaitable[bool]]] = [
    an_upgrade_smuggles_no_request,
    a_head_has_a_limit_of_time,
    a_new_connection_has_a_limit_of_time,
    a_head_has_a_limit_of_size,
    fields_have_a_limit_of_number,
    after_a_refusal_nothing_more_is_read,
    the_framing_of_a_body_has_a_limit,
    the_first_line_is_http,
    a_host_is_a_host,
    one_request_has_one_host,
    a_client_that_has_sent_ahead_is_seen_to_leave,
]

OURS = "gasket.server.protocol:Connection"
HTTPTOOLS = "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol"
H11 = "uvicorn.protocols.http.h11_impl:H11Protocol"
ZTTP = "uvicorn.protocols.http.zttp_impl:ZttpProtocol"
NOTHING: frozenset[str] = frozenset()
WITHSTOOD = {
    OURS: frozenset(attack.__name__ for attack in ATTACKS),
    HTTPTOOLS: NOTHING,
    H11: frozenset(
        {
            "an_upgrade_smuggles_no_request",
            "a_head_has_a_limit_of_size",
            "the_first_line_is_http",
            "one_request_has_one_host",
        }
    ),
    ZTTP: frozenset(
        {
            "an_upgrade_smuggles_no_request",
            "a_head_has_a_limit_of_size",
            "fields_have_a_limit_of_number",
            "the_first_line_is_http",
            "one_request_has_one_host",
            "a_client_that_has_sent_ahead_is_seen_to_leave",
        }
    ),
}
"""What each protocol withstands today."""


async def application_for(application: Application, scope: Any, receive: Any, send: Any) -> None:
    """Answers `/refused` before the body, `/wait` never, and all others when it has their body."""
    if scope["path"] == "/wait":
        await application.wait_for_the_end(receive)
        return
    if scope["path"] != "/refused":
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        if message["type"] == "http.disconnect":
            return
    await answer(send, b"", status=401 if scope["path"] == "/refused" else 200)


@asynccontextmanager
async def served(protocol: str, patience: float) -> AsyncIterator[Target]:
    """A server that speaks HTTP with this protocol of uvicorn's, or with Gasket's."""
    module, _, name = protocol.partition(":")
    kind = getattr(importlib.import_module(module), name)
    application = Application(application_for)
    config = Config(application, log_config=None, ws="none", lifespan="off")
    config.load()
    limits = Connections(idle_timeout=60, head_timeout=0.3, linger_timeout=0.3)
    state, lifespan_state = ServerState(), dict[str, Any]()
    limits.put_into(lifespan_state)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: kind(config, state, lifespan_state, loop), "127.0.0.1", 0)
    try:
        yield Target(server.sockets[0].getsockname()[1], application, patience)
    finally:
        server.close()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        limits.cut_off()


async def withstands(protocol: str, attack: Callable[[Target], Awaitable[bool]]) -> bool:
    patience = PATIENCE if attack.__name__ in WITHSTOOD[protocol] else NEVER
    async with served(protocol, patience) as target:
        return await attack(target)


@pytest.mark.parametrize("protocol", [OURS, HTTPTOOLS, H11, ZTTP])
async def test_what_a_protocol_withstands(protocol: str) -> None:
    if protocol == ZTTP:
        pytest.importorskip("zttp")
    results = await asyncio.gather(*(withstands(protocol, attack) for attack in ATTACKS))
    held = {attack.__name__ for attack, result in zip(ATTACKS, results, strict=True) if result}
    more, less = held - WITHSTOOD[protocol], WITHSTOOD[protocol] - held
    assert not less, f"{protocol} no longer withstands {less}"
    assert not more, (
        f"{protocol} now withstands {more}: write that down here, and if it withstands all, read in docs/decisions.md "
        "when Gasket's own can go"
    )
