"""Connections as uvicorn makes them, over real sockets, with limits of time that a test can wait for."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import ref

import pytest
from uvicorn.config import Config
from uvicorn.importer import import_from_string
from uvicorn.server import ServerState

from gasket.app import create_app
from gasket.server.connections import LARGEST_HEAD, Connections
from gasket.server.errors import BadRequestError, GatewayError
from gasket.server.parser import Head, RequestParser
from gasket.server.protocol import Connection
from gasket.settings import read_settings
from gasket.startup import HTTP_PROTOCOL
from tests.acceptance.http11 import Headers, Message, compose, read_body, read_head


def ask(start: str, fields: Headers = (), body: bytes = b"") -> bytes:
    """A request, with the Host that each has to have."""
    fields = list(fields)
    return compose(start, fields if "Host" in dict(fields) else [("Host", "x"), *fields], body)


HELLO = b'{"model": "model-a"}'
INNER = ask("POST /v1/embeddings HTTP/1.1", [("Host", "x"), ("Content-Length", "0")])
"""A request in the place of a body."""
UPGRADE = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQ")]


ENVIRONMENT = {
    "DATABASE_URL": "postgresql://127.0.0.1:1/none",
    "GASKET_ADMIN_TOKEN": "a-token-of-the-unit-tests",
    "GASKET_SECRET_KEY": "A" * 43 + "=",
}


class Application:
    """Answers each request with what it has read of it, and keeps that, in order. `script` may do something else."""

    def __init__(self, script: Callable[[Application, Any, Any, Any], Any] | None = None) -> None:
        self.script = script
        self.seen: list[tuple[str, bytes]] = []
        self.scopes: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        """A client has gone before its answer was complete."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if self.script is not None:
            await self.script(self, scope, receive, send)
            return
        body = await read_all(receive)
        self.seen.append((f"{scope['method']} {scope['path']}", body))
        await answer(send, body)

    async def wait_for_the_end(self, receive: Any) -> None:
        """Until the server says that the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


async def read_all(receive: Any) -> bytes:
    pieces, more = [], True
    while more:
        message = await receive()
        assert message["type"] == "http.request", "the client left"
        pieces.append(message["body"])
        more = message["more_body"]
    return b"".join(pieces)


async def answer(send: Any, body: bytes, *, length: bool = True, status: int = 200) -> None:
    fields = [(b"content-length", b"%d" % len(body))] if length else []
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class Listening:
    """A server on a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


class Served(Listening):
    """What `serving` yields."""

    def __init__(self, port: int, connections: Connections, state: ServerState) -> None:
        super().__init__(port)
        self.connections = connections
        self.state = state


WITHIN = 30.0
"""Seconds for what has to happen. Far more than it takes: the machine may have other things to do."""


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Each piece by itself, when the server has had time to read the one before."""
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(0.02)
            self.writer.write(piece)
            await self.writer.drain()

    async def answer(self) -> Message:
        async with asyncio.timeout(WITHIN):
            return await read_body(self.reader, await read_head(self.reader), until_end=True)

    async def line(self, within: float = WITHIN) -> bytes:
        """The first line that comes; empty if the connection ends before."""
        try:
            return await asyncio.wait_for(self.reader.readline(), within)
        except (ConnectionError, TimeoutError):
            return b""

    async def gone(self, within: float, *, sending: bytes = b"") -> bool:
        """Whether the server ends the connection in time, whatever is sent meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                with suppress(ConnectionError):
                    while sending:
                        await self.send(sending)
                        await asyncio.sleep(0.01)
                    while await self.reader.read(65_536):
                        pass
                return True
        return False

    async def ended(self, within: float = WITHIN) -> bytes:
        """What still comes before the end of the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(), within)
        except ConnectionError:
            return b""


@asynccontextmanager
async def serving(application: Any, **limits: float) -> AsyncIterator[Served]:
    """A server with these limits of `Connections`; none of the others ends anything while a test waits."""
    config = Config(application, log_config=None)
    config.load()
    lasting = dict.fromkeys(("idle_timeout", "head_timeout", "stall_timeout", "linger_timeout"), 2 * WITHIN)
    state, connections, lifespan_state = ServerState(), Connections(**lasting | limits), dict[str, Any]()
    connections.put_into(lifespan_state)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, lifespan_state), "127.0.0.1", 0)
    try:
        yield Served(server.sockets[0].getsockname()[1], connections, state)
    finally:
        server.close()
        connections.cut_off()
        await asyncio.gather(*state.tasks, return_exceptions=True)


def framed(body: bytes, *, chunked: bool) -> tuple[list[tuple[str, str]], bytes]:
    """The fields that announce the body, and the body as it is sent."""
    if chunked:
        return [("Transfer-Encoding", "chunked")], b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return [("Content-Length", str(len(body)))], body


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0.005)


def test_it_is_what_the_command_line_names() -> None:
    assert import_from_string(HTTP_PROTOCOL) is Connection


@pytest.mark.parametrize("upgrade", [UPGRADE, [("Upgrade", "foo"), ("Connection", "upgrade")]], ids=["h2c", "unknown"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/health"])
@pytest.mark.parametrize("body", [HELLO, INNER], ids=["json", "a request"])
async def test_a_wish_to_upgrade_is_ignored_and_a_body_stays_a_body(
    upgrade: list[tuple[str, str]], chunked: bool, path: str, body: bytes
) -> None:
    fields, data = framed(body, chunked=chunked)
    head = ask(f"POST {path} HTTP/1.1", [("Host", "x"), *upgrade, ("X-Mine", "1"), *fields])
    every = head + data
    application = Application()
    async with serving(application) as served:
        for pieces in ([every], [head, data], [head[:-1], head[-1:] + data], [bytes([byte]) for byte in every]):
            application.seen.clear()
            async with served.connect() as client:
                if len(pieces) < len(every):
                    await client.send(*pieces)
                else:
                    for piece in pieces:
                        client.writer.write(piece)
                        await asyncio.sleep(0)
                assert (await client.answer()).body == body
                await client.send(ask("GET /next HTTP/1.1", [("Host", "x")]))
                assert (await client.answer()).body == b""
            assert application.seen == [(f"POST {path}", body), ("GET /next", b"")]
    names = [name for name, _ in application.scopes[0]["headers"]]
    assert b"upgrade" not in names
    assert names.count(b"connection") == names.count(b"x-mine") == names.count(b"host") == 1


async def test_a_connection_that_is_gone_does_not_wait_for_the_garbage_collector() -> None:
    """A replica's collector runs after thousands of connections, and each keeps some 10 kB until then."""
    async with serving(Application()) as served:
        gc.disable()
        try:
            async with served.connect() as client:
                await client.send(ask("POST /v1/x HTTP/1.1", [("Content-Length", "2")], b"{}"))
                await client.answer()
                [connection] = map(ref, served.connections.open)
            await until(lambda: connection() is None)
        finally:
            gc.enable()


async def test_a_tunnel_is_not_opened() -> None:
    application = Application()
    async with serving(application) as served, served.connect() as client:
        await client.send(ask("CONNECT 127.0.0.1:9 HTTP/1.1", [("Host", "x")]) + INNER)
        assert (await client.answer()).status == 400
        assert await client.ended() == b""
    assert application.scopes == []


@pytest.mark.parametrize("pieces", [1, 5])
async def test_a_target_has_a_longest_size(pieces: int) -> None:
    application = Application()
    async with serving(application) as served:
        for size, status in ((8192, 200), (8193, 414)):
            async with served.connect() as client:
                data = ask(f"GET /v1/models?{'x' * (size - len('/v1/models?'))} HTTP/1.1")
                step = len(data) // pieces + 1
                await client.send(*(data[start : start + step] for start in range(0, len(data), step)))
                got = await client.answer()
                assert got.status == status
                assert status == 200 or got.error == (414, "uri_too_long")
    assert len(application.scopes) == 1


async def test_a_head_of_the_largest_size_is_taken_and_a_larger_one_is_431() -> None:
    application = Application()
    start, field = "GET /v1/models HTTP/1.1", "X-Large"
    room = LARGEST_HEAD - len("/v1/models") - len("Host: x\r\n") - len(field) - 4
    async with serving(application) as served:
        async with served.connect() as client:
            await client.send(ask(start, [(field, "x" * room)]))
            assert (await client.answer()).status == 200
        async with served.connect() as client:
            await client.send(ask(start, [(field, "x" * (room + 1))]))
            got = await client.answer()
            assert got.error == (431, "headers_too_large")
            assert got.one("connection") == "close"
            assert await client.ended() == b""
    assert len(application.scopes) == 1


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
@pytest.mark.parametrize("one", [b"X-One: 1\r\n", b"x"], ids=["fields", "one field"])
async def test_a_head_that_never_ends_is_431_before_it_takes_memory(path: str, one: bytes) -> None:
    async with serving(Application(), head_timeout=0.3) as served, served.connect() as client:
        pouring = asyncio.create_task(pour(client, f"GET {path} HTTP/1.1\r\nX: ".encode(), one * 1000))
        got = await client.answer()
        assert got.status == 431
        assert path == "/health" or got.error == (431, "headers_too_large")
        await asyncio.wait_for(pouring, WITHIN)
        assert served.connections.open == set()


async def pour(client: Client, first: bytes, then: bytes, *, pause: float = 0) -> None:
    """Send without end, until the connection is broken."""
    try:
        await client.send(first)
        while True:
            await client.send(then)
            await asyncio.sleep(pause)
    except ConnectionError:
        pass


async def test_a_trailer_that_never_ends_is_broken_off() -> None:
    async def script(application: Application, _scope: Any, receive: Any, _send: Any) -> None:
        await application.wait_for_the_end(receive)

    application = Application(script)
    async with serving(application, head_timeout=0.3) as served, served.connect() as client:
        head = ask("POST / HTTP/1.1", [("Transfer-Encoding", "chunked")])
        pouring = asyncio.create_task(pour(client, head + b"1\r\nx\r\n0\r\nX: ", b"x" * 1000))
        assert (await client.answer()).status == 431
        await asyncio.wait_for(application.left.wait(), WITHIN)
        await asyncio.wait_for(pouring, WITHIN)


CHUNKED = ask("POST /v1/x HTTP/1.1", [("Transfer-Encoding", "chunked")])


async def test_small_chunks_are_a_body_as_any_other() -> None:
    """As a JSON encoder writes them that sends each token by itself."""
    application = Application()
    async with serving(application) as served, served.connect() as client:
        await client.send(CHUNKED, b"4;a=b\r\nxxxx\r\n" * 50_000, b"0\r\n\r\n")
        assert (await client.answer()).body == b"x" * 200_000


TOO_MUCH_FRAMING = [
    (b"2\r\nxx\r\n", 400, "invalid_http"),
    (b"1\r\nx\r\n", 400, "invalid_http"),
    (b"00000001\r\nx\r\n", 400, "invalid_http"),
    (b"4;%b\r\nxxxx\r\n" % (b"e" * 30), 431, "headers_too_large"),
    (b"4;%b\r\nxxxx\r\n" % (b"e" * 20_000), 431, "headers_too_large"),
    (b"4000;%b\r\n%b\r\n" % (b"e" * 9_000, b"x" * 0x4000), 431, "headers_too_large"),
    (b"4;" + b"e" * 60_000, 431, "headers_too_large"),
]


@pytest.mark.parametrize(("repeated", "status", "code"), TOO_MUCH_FRAMING)
async def test_a_body_that_is_mostly_framing_is_refused(repeated: bytes, status: int, code: str) -> None:
    async def script(application: Application, _scope: Any, receive: Any, _send: Any) -> None:
        await application.wait_for_the_end(receive)

    application = Application(script)
    async with serving(application, linger_timeout=0.3) as served, served.connect() as client:
        pouring = asyncio.create_task(pour(client, CHUNKED, repeated * (1 + 100_000 // len(repeated))))
        assert (await client.answer()).error == (status, code)
        await asyncio.wait_for(application.left.wait(), WITHIN)
        await asyncio.wait_for(pouring, WITHIN)


@pytest.mark.parametrize("before", [b"GET /v1/x HTTP/1.1\r\n", CHUNKED + b"1\r\nx\r\n0\r\n"], ids=["head", "trailer"])
async def test_fields_are_counted(before: bytes) -> None:
    """Each costs time; a head of 64 KiB has room for 16,000 of them."""
    async with serving(Application()) as served, served.connect() as client:
        await client.send(before + b"X:\r\n" * 300)
        assert (await client.answer()).error == (431, "headers_too_large")
        assert await client.ended() == b""


class Turns(RequestParser):
    """A parser that notes how much it is fed, and how many pieces of bodies it finds in a turn of the event loop."""

    most = 0
    fed = 0

    def feed(self, data: bytes) -> bytes:
        Turns.fed += len(data)
        before = self._framing.pieces
        try:
            return super().feed(data)
        finally:
            Turns.most = max(Turns.most, self._framing.pieces - before)


async def test_one_connection_does_not_take_a_whole_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three bytes are few enough bytes of framing to be taken, and a read of the socket may have 30,000."""
    monkeypatch.setattr("gasket.server.protocol.RequestParser", Turns)
    monkeypatch.setattr(Turns, "most", 0)
    application = Application()
    async with serving(application) as served, served.connect() as client:
        await client.send(CHUNKED, b"3\r\nxxx\r\n" * 100_000 + b"0\r\n\r\n")
        assert (await client.answer()).body == b"x" * 300_000
    assert 0 < Turns.most < 2000


@pytest.mark.parametrize("length", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
async def test_after_a_refusal_nothing_more_is_parsed(length: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gasket.server.protocol.RequestParser", Turns)
    monkeypatch.setattr(Turns, "fed", 0)

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"", status=401)

    async with serving(Application(script), linger_timeout=60) as served, served.connect() as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % length)
        got = await client.answer()
        assert (got.status, got.one("connection")) == (401, "close")
        assert await client.ended() == b"", "half-closed, while the client may still send"
        head = Turns.fed
        await asyncio.wait_for(pour(client, b"", b"2\r\nxx\r\n" * 10_000), WITHIN)
        assert not served.connections.open
    assert Turns.fed == head > 0


@pytest.mark.parametrize("length", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
async def test_what_is_sent_after_an_answer_has_a_bound(length: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gasket.server.protocol._MOST_DISCARDED", 10_000_000)

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"", status=401)

    async with serving(Application(script), linger_timeout=60) as served, served.connect() as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % length)
        await asyncio.wait_for(pour(client, b"", b"x" * 100_000), WITHIN)
        await until(lambda: not served.connections.open)


async def test_what_is_sent_ahead_has_a_bound() -> None:
    async def script(application: Application, _scope: Any, receive: Any, _send: Any) -> None:
        await application.wait_for_the_end(receive)

    application = Application(script)
    async with serving(application) as served, served.connect() as client:
        await asyncio.wait_for(pour(client, INNER, b"x" * 100_000), WITHIN)
        await asyncio.wait_for(application.left.wait(), WITHIN)
        assert not served.connections.open


async def test_empty_lines_without_end_are_a_head() -> None:
    async with serving(Application(), linger_timeout=0.3) as served, served.connect() as client:
        pouring = asyncio.create_task(pour(client, b"", b"\r\n" * 50_000))
        assert (await client.answer()).status == 431
        await asyncio.wait_for(pouring, WITHIN)


async def test_trailer_fields_are_dropped() -> None:
    application = Application()
    async with serving(application) as served, served.connect() as client:
        head = ask("POST / HTTP/1.1", [("Transfer-Encoding", "chunked")])
        await client.send(head + b"1\r\nx\r\n0\r\nX-Late: 1\r\n\r\n")
        assert (await client.answer()).body == b"x"
    assert application.scopes[0]["headers"] == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]


async def test_a_connection_can_be_ended_in_a_trailer() -> None:
    async with serving(Application(), idle_timeout=60) as served, served.connect() as client:
        await client.send(CHUNKED + b"1\r\nx\r\n0\r\n", b"Connection: close\r\n\r\n")
        assert (await client.answer()).one("connection") == "close"
        assert await client.ended() == b""


@pytest.mark.parametrize(
    ("first", "then"),
    [(b"GET /v1/models HTTP/1.1\r\nX", b"x"), (b"G", b"")],
    ids=["half a head", "a byte"],
)
async def test_a_head_has_little_time_however_it_drips(first: bytes, then: bytes) -> None:
    async with serving(Application(), idle_timeout=60, head_timeout=0.3) as served, served.connect() as client:
        dripping = asyncio.create_task(pour(client, first, then, pause=0.02))
        got = await client.answer()
        assert got.status == 408
        assert not first.startswith(b"GET") or got.error == (408, "request_timeout")
        dripping.cancel()
        assert await client.ended() == b""


@pytest.mark.parametrize("before", [b"", INNER], ids=["new", "after an answer"])
@pytest.mark.parametrize("lines", [b"", b"\r\n"], ids=["nothing", "empty lines"])
async def test_a_connection_on_which_nothing_comes_is_closed(before: bytes, lines: bytes) -> None:
    """Empty lines are nothing (RFC 9112, 2.2): whoever has not asked gets no answer."""
    async with serving(Application(), idle_timeout=0.3, head_timeout=0.3) as served, served.connect() as client:
        if before:
            await client.send(before)
            assert (await client.answer()).status == 200
        dripping = asyncio.create_task(pour(client, lines, lines, pause=0.02))
        assert await client.ended() == b""
        dripping.cancel()


async def test_between_requests_it_is_kept_for_longer_than_a_head_may_take() -> None:
    async with serving(Application(), idle_timeout=60, head_timeout=0.3) as served, served.connect() as client:
        await client.send(INNER)
        assert (await client.answer()).all("connection") == []
        await asyncio.sleep(0.6)
        served.connections.idle_timeout = 0.9
        asked = time.monotonic()
        await client.send(INNER)
        assert (await client.answer()).all("connection") == []
        assert await client.ended() == b""
        assert time.monotonic() - asked >= 0.9


async def test_the_rest_of_a_body_that_nobody_wants_has_little_time() -> None:
    """And what comes behind it is no request: a client that is refused within its body does not get another answer."""

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"", status=413)

    application = Application(script)
    async with serving(application, idle_timeout=60, linger_timeout=0.3) as served:
        async with served.connect() as client:
            await client.send(ask("POST / HTTP/1.1", [("Content-Length", "1000000")]), b"x")
            assert (await client.answer()).status == 413
            await asyncio.wait_for(pour(client, b"x", b"x", pause=0.02), WITHIN)
            await until(lambda: not served.connections.open)
        async with served.connect() as client:
            await client.send(ask("POST / HTTP/1.1", [("Content-Length", "100000")]), b"x" * 50_000)
            assert (await client.answer()).one("connection") == "close"
            await client.send(b"x" * 50_000 + INNER)
            assert await client.ended() == b""
    assert len(application.scopes) == 2


async def test_a_body_that_nobody_has_asked_for_is_not_waited_for() -> None:
    """A client that waits for 100 may leave the body out when it gets another answer (RFC 9110, 10.1.1)."""

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"", status=413)

    async with serving(Application(script)) as served, served.connect() as client:
        await client.send(ask("POST / HTTP/1.1", [("Content-Length", "9"), ("Expect", "100-Continue")]))
        got = await client.answer()
        assert (got.status, got.one("connection")) == (413, "close")
        assert await client.ended() == b""


async def test_once_an_answer_has_begun_nobody_is_asked_to_go_on() -> None:
    """The client would take the line for a part of the answer."""
    told = []

    async def script(_application: Application, _scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        reading = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"answer"})
        told.extend([await reading, await receive()])

    async with serving(Application(script)) as served, served.connect() as client:
        await client.send(ask("POST / HTTP/1.1", [("Content-Length", "9"), ("Expect", "100-continue")]))
        got = await client.answer()
        assert (got.status, got.body, got.one("connection")) == (200, b"answer", "close")
        assert await client.ended() == b""
    assert told == [{"type": "http.disconnect"}] * 2


@pytest.mark.parametrize("pieces", [[INNER * 3], [INNER, INNER], [INNER, b"nonsense"]], ids=["one", "two", "nonsense"])
async def test_what_is_sent_ahead_is_not_looked_at_and_ends_the_connection(pieces: list[bytes]) -> None:
    go_on = asyncio.Event()

    async def script(_application: Application, _scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        await go_on.wait()
        await answer(send, b"first")

    application = Application(script)
    async with serving(application) as served, served.connect() as client:
        await client.send(*pieces)
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        got = await client.answer()
        assert (got.body, got.one("connection")) == (b"first", "close")
        assert await client.ended() == b""
    assert len(application.scopes) == 1


async def test_an_empty_line_after_a_body_is_forgiven() -> None:
    """Some old clients send one (RFC 9112, 2.2)."""
    go_on = asyncio.Event()

    async def script(_application: Application, _scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        await go_on.wait()
        await answer(send, b"")

    async with serving(Application(script)) as served, served.connect() as client:
        await client.send(INNER, b"\r\n", b"")
        go_on.set()
        assert (await client.answer()).all("connection") == []
        await client.send(INNER + b"\r\n")
        assert (await client.answer()).all("connection") == []


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (ask("POST / HTTP/1.1", [("Content-Length", "5000000"), ("Connection", "close")]), 413),
        (b"POST / HTTP/1.1\r\nX: ", 431),
    ],
    ids=["answered early", "refused"],
)
async def test_a_client_that_sends_all_before_it_reads_gets_its_answer(head: bytes, status: int) -> None:
    """Data that comes for a closed socket is answered with a reset, which throws away what the client has not read."""

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"", status=413)

    def ask(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=WITHIN) as client:
            client.sendall(head)
            for _ in range(50):
                client.sendall(b"x" * 100_000)
            return client.recv(1000)

    async with serving(Application(script)) as served:
        got = await asyncio.to_thread(ask, served.port)
        assert got.startswith(b"HTTP/1.1 %d " % status)


async def test_a_server_that_stops_does_not_wait_for_whom_it_has_refused() -> None:
    async def script(application: Application, _scope: Any, receive: Any, _send: Any) -> None:
        await application.wait_for_the_end(receive)

    async with serving(Application(script), head_timeout=60) as served, served.connect() as client:
        await client.send(ask("POST / HTTP/1.1", [("Transfer-Encoding", "chunked")]), b"nonsense\r\n")
        assert (await client.answer()).status == 400
        for connection in list(served.state.connections):
            connection.shutdown()
        await until(lambda: not served.connections.open)


async def test_a_client_that_sends_ahead_and_leaves_is_noticed() -> None:
    async def script(application: Application, _scope: Any, receive: Any, _send: Any) -> None:
        await application.wait_for_the_end(receive)

    application = Application(script)
    async with serving(application) as served:
        async with served.connect() as client:
            await client.send(INNER * 2, INNER)
            await until(lambda: bool(application.scopes))
            assert not application.left.is_set()
        await asyncio.wait_for(application.left.wait(), WITHIN)


async def test_a_client_that_reads_nothing_has_left() -> None:
    async def script(application: Application, _scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        gone = asyncio.create_task(application.wait_for_the_end(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})

    application = Application(script)
    async with serving(application, head_timeout=60, stall_timeout=0.3) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(INNER)
            await asyncio.wait_for(application.left.wait(), WITHIN)
            await until(lambda: not served.connections.open)


async def test_an_answer_that_is_complete_has_as_much_time_to_be_read_as_any() -> None:
    size = 20_000_000

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"x" * size)

    async with serving(Application(script), idle_timeout=0.3, stall_timeout=60) as served, served.connect() as client:
        await client.send(INNER)
        await until(lambda: bool(served.connections.open))
        await asyncio.sleep(1)
        assert len((await client.answer()).body) == size
        assert await client.ended() == b"", "it is idle now"


@pytest.mark.parametrize("keeps", [True, False], ids=["answered", "broken off"])
async def test_an_end_does_not_wait_for_a_client_that_reads_nothing(
    keeps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left to be written has its time when the connection is closed, and then it is cut off."""
    size = 20_000_000

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        fields = [(b"content-length", b"%d" % (size if keeps else size + 1)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": not keeps})

    async with serving(Application(script), head_timeout=0.3, stall_timeout=60) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(INNER)
            await until(lambda: bool(served.connections.open))
            await until(lambda: not served.connections.open and not served.state.connections)
    assert caplog.records == []


async def test_at_the_end_of_the_server_all_are_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def script(_application: Application, _scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.Event().wait()

    async with serving(Application(script)) as served, served.connect() as client:
        await client.send(INNER)
        await until(lambda: bool(served.state.tasks))
        served.connections.end()
        assert await client.ended() == b""
        await until(lambda: not served.state.tasks)
    assert "cut off 1 connections and 1 requests" in caplog.text


async def test_at_the_end_of_the_server_what_runs_for_clients_that_have_left_ends_too() -> None:
    """uvicorn waits without limit for it: as for a database's lock, where nobody listens for the client's leaving."""

    async def script(_application: Application, _scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.Event().wait()

    async with serving(Application(script)) as served:
        async with served.connect() as client:
            await client.send(INNER)
            await until(lambda: bool(served.state.tasks))
        await until(lambda: not served.connections.open)
        assert served.state.tasks
        served.connections.end()
        await until(lambda: not served.state.tasks)
    assert not served.connections.tasks


async def test_once_the_replica_leaves_no_connection_is_kept() -> None:
    async with serving(Application(), idle_timeout=60, head_timeout=60) as served, served.connect() as before:
        await before.send(INNER)
        assert (await before.answer()).all("connection") == []
        served.connections.shutting_down = True
        async with served.connect() as silent:
            await before.send(INNER)
            assert (await before.answer()).one("connection") == "close"
            assert await before.ended() == b""
            assert await silent.ended() == b""


@pytest.mark.parametrize("breaks_off", [b"1\r\n{\r\nnonsense\r\n", b"1\r\n{\r\n"], ids=["bad chunk", "leaves"])
async def test_a_client_that_leaves_in_its_body_is_no_fault_of_the_administration(
    breaks_off: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gasket.http")
    async with serving(create_app(read_settings(ENVIRONMENT))) as served:
        async with served.connect() as client:
            fields = [
                ("Authorization", f"Bearer {ENVIRONMENT['GASKET_ADMIN_TOKEN']}"),
                ("Transfer-Encoding", "chunked"),
            ]
            await client.send(ask("POST /api/keys HTTP/1.1", fields, breaks_off))
            await until(lambda: bool(served.connections.open))
        await until(lambda: bool(caplog.messages) and not served.state.tasks)
    [said] = [record.getMessage() for record in caplog.records if record.name == "gasket.http"]
    assert said.startswith("POST /api/keys 499 from 127.0.0.1 (request id ")


@pytest.mark.parametrize(("trusted", "client"), [("", "127.0.0.1"), ("127.0.0.0/8", "198.51.100.1")])
async def test_whose_address_is_in_the_log(
    trusted: str, client: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whom to believe is said by the setting alone: uvicorn itself would believe all that comes from this machine."""
    caplog.set_level("INFO", "gasket.http")
    application = create_app(read_settings({**ENVIRONMENT, "GASKET_TRUSTED_PROXIES": trusted}))
    async with serving(application) as served, served.connect() as connection:
        for path in ("/api/keys", "/v1/models"):
            forwarded = [("X-Forwarded-For", "1.1.1.1, 198.51.100.1"), ("X-Forwarded-Proto", "https")]
            await connection.send(ask(f"GET {path} HTTP/1.1", forwarded))
            assert (await connection.answer()).status == 401
        logged = ""
        async with asyncio.timeout(WITHIN):
            while "/v1/models" not in logged:
                await asyncio.sleep(0.02)
                logged += capsys.readouterr().err
    [line] = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    assert line["client"] == client
    assert caplog.messages[0].startswith(f"GET /api/keys 401 from {client} (request id ")


async def test_an_http_1_0_client_gets_no_chunks_and_an_answer_that_breaks_off_does_not_look_whole() -> None:
    broken = False

    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if not broken:
            await send({"type": "http.response.body", "body": b"whole"})

    async with serving(Application(script)) as served:
        async with served.connect() as client:
            await client.send(ask("GET / HTTP/1.0", [("Connection", "keep-alive")]))
            got = await client.answer()
            assert (got.body, got.all("transfer-encoding"), got.one("connection")) == (b"halfwhole", [], "close")
        broken = True
        async with served.connect() as client:
            await client.send(ask("GET / HTTP/1.0"))
            with pytest.raises(ConnectionResetError):
                await client.reader.read()


BAD = [
    ("POST /v1/x HTTP/1.1", [("Content-Length", "5"), ("Transfer-Encoding", "chunked")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Content-Length", "5"), ("Content-Length", "5")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Content-Length", "9" * 25)], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Transfer-Encoding", "chunked, identity")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Transfer-Encoding", "gzip")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "gzip")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "Chunked")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Host", "x"), ("Host", "x")], "invalid_headers"),
    ("POST /v1/x HTTP/1.0", [("Host", "x"), ("Host", "x")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1", [("Content-Length ", "5")], "invalid_headers"),
    ("POST /v1/x HTTP/1.1\nX: 1", [], "invalid_http"),
    ("POST /v1/x HTTP/1.1\r\nX: 1\nX: 1", [], "invalid_headers"),
    ("POST /v1/x HTTP/2.0", [], "invalid_http"),
    ("POST /v1/x HTTP/2.7", [], "invalid_http"),
    ("POST http://x/v1/x HTTP/2.0", [], "invalid_http"),
    ("POST /v1/x y HTTP/1.1", [], "invalid_http"),
    ("POST  /v1/x HTTP/1.1", [], "invalid_http"),
    ("POST /v1/x  HTTP/1.1", [], "invalid_http"),
    ("POST\t/v1/x HTTP/1.1", [], None),
    ("POST /v1/x HTTP/1.1 ", [], "invalid_http"),
    ("SOURCE /v1/x ICE/1.0", [], "invalid_http"),
    ("DESCRIBE /v1/x RTSP/1.0", [], "invalid_http"),
    ("DESCRIBE /v1/x HTTP/1.11", [], "invalid_http"),
    ("GET /v1/x", [], "invalid_http"),
    ("GET /v1/x#y HTTP/1.1", [], "invalid_http"),
    ("GET /v1/x HTTP/1.1", [("Host", "a@b")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "a/b")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "a b")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "a, b")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "a:b")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "a:80:80")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "[::1")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "::1")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "a%2")], "invalid_headers"),
    ("GET /v1/x HTTP/1.1", [("Host", "b\u00e4")], "invalid_headers"),
    ("GET http://a@b/v1/x HTTP/1.1", [], "invalid_headers"),
    ("POST http:///v1/x HTTP/1.1", [], "invalid_http"),
    ("POST /x?/v1/x HTTP/2.0", [], None),
    ("GET x HTTP/1.1", [], None),
    ("\x16\x03\x01\x02", [], None),
]


@pytest.mark.parametrize(("start", "fields", "code"), BAD, ids=[str(number) for number in range(len(BAD))])
async def test_what_is_not_http_is_400(start: str, fields: list[tuple[str, str]], code: str | None) -> None:
    application = Application()
    async with serving(application) as served, served.connect() as client:
        await client.send(ask(start, fields, b"hello"))
        got = await client.answer()
        assert got.status == 400
        assert got.one("content-type") == ("application/json" if code else "text/plain; charset=utf-8")
        assert got.one("x-request-id") == got.one("x-gasket-request-id")
        assert code is None or got.error == (400, code)
        assert await client.ended() == b""
    assert application.scopes == []


@pytest.mark.parametrize("host", ["", "a", "a.b.c.", "A-b_c:8000", "127.0.0.1:80", "[::1]", "[::1]:80", "x%41:", "a:"])
async def test_a_host_may_be_written_as_uris_have_it(host: str) -> None:
    async with serving(Application()) as served, served.connect() as client:
        await client.send(compose("GET /v1/models HTTP/1.1", [("Host", host)]))
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("pieces", [1, 1000])
async def test_blanks_and_tabs_around_a_value_are_no_part_of_it(pieces: int) -> None:
    """RFC 9112, 5.1; Content-Length and Host among the others, and an empty line before (2.2)."""
    head = b"\r\nPOST /v1/x HTTP/1.1\r\nContent-Length:\t5 \t\r\nHost:\t x\t\r\nX-A: \ta\tb \t \r\n\r\n"
    application = Application()
    async with serving(application) as served, served.connect() as client:
        size = 1 + len(head) // pieces
        for start in range(0, len(head), size):
            client.writer.write(head[start : start + size])
            await asyncio.sleep(0)
        await client.send(b"hello")
        assert (await client.answer()).body == b"hello"
    assert application.scopes[0]["headers"] == [(b"content-length", b"5"), (b"host", b"x"), (b"x-a", b"a\tb")]


async def test_a_request_names_its_host() -> None:
    """Once (RFC 9112, 3.2); HTTP/1.0 did not know the field."""
    async with serving(Application()) as served:
        async with served.connect() as client:
            await client.send(compose("GET /v1/models HTTP/1.1"))
            assert (await client.answer()).error == (400, "invalid_headers")
        async with served.connect() as client:
            await client.send(compose("GET /v1/models HTTP/1.0"))
            assert (await client.answer()).status == 200


@pytest.mark.parametrize("values", [["gzip, chunked"], ["gzip", "chunked"]])
async def test_what_is_coded_as_more_than_chunks_is_not_taken(values: list[str]) -> None:
    """httptools takes only the chunks apart: what is left would be taken for the body."""
    application = Application()
    async with serving(application) as served, served.connect() as client:
        fields = [("Transfer-Encoding", value) for value in values]
        await client.send(ask("POST /v1/x HTTP/1.1", fields, b"1\r\nx\r\n0\r\n\r\n"))
        assert (await client.answer()).error == (415, "unsupported_encoding")
    assert application.scopes == []


class Faulty:
    """A receiver that raises what httptools could raise, too."""

    busy = False

    def on_head(self, head: Head) -> None:
        raise ValueError(head.method)

    def on_body(self, _body: bytes) -> None:
        pass

    def on_end(self, *, keep_alive: bool) -> None:
        pass


def test_a_message_says_what_is_wrong_and_a_fault_of_ours_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadRequestError, match="the request target is not a URL"):
        RequestParser(Faulty()).feed(ask("GET http:///v1/x HTTP/1.1"))
    assert caplog.records == []
    with pytest.raises(GatewayError) as caught:
        RequestParser(Faulty()).feed(ask("GET /v1/x HTTP/1.1"))
    assert (caught.value.status, caught.value.code) == (500, "internal")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_an_error_after_a_request_is_not_about_that_request() -> None:
    async with serving(Application()) as served, served.connect() as client:
        await client.send(ask("GET /v1/models HTTP/1.1"))
        assert (await client.answer()).status == 200
        await client.send(b"\x16\x03\x01\r\n")
        got = await client.answer()
        assert (got.status, got.one("content-type")) == (400, "text/plain; charset=utf-8")


async def test_a_body_that_is_no_chunks_ends_the_request() -> None:
    async def script(application: Application, _scope: Any, receive: Any, _send: Any) -> None:
        await application.wait_for_the_end(receive)

    application = Application(script)
    async with serving(application) as served, served.connect() as client:
        await client.send(ask("POST /v1/x HTTP/1.1", [("Transfer-Encoding", "chunked")]), b"nonsense\r\n")
        assert (await client.answer()).error == (400, "invalid_http")
        await asyncio.wait_for(application.left.wait(), WITHIN)


async def test_a_refused_client_that_leaves_is_noticed_also_if_its_body_was_more_than_was_read() -> None:
    async def script(application: Application, _scope: Any, receive: Any, _send: Any) -> None:
        await application.wait_for_the_end(receive)

    async with serving(Application(script), head_timeout=60) as served, served.connect() as client:
        head = ask("POST / HTTP/1.1", [("Transfer-Encoding", "chunked")])
        await client.send(head + b"11000\r\n" + b"x" * 0x11000 + b"\r\nnonsense\r\n")
        assert (await client.answer()).status == 400
        client.writer.close()
        await until(lambda: not served.connections.open)


@pytest.mark.parametrize(
    ("method", "status", "head", "body"),
    [
        ("HEAD", 200, {"content-length": "4"}, b""),
        ("GET", 204, {}, b""),
        ("GET", 304, {"content-length": "4"}, b""),
        ("GET", 299, {"content-length": "4"}, b"body"),
        ("GET", 999, {"content-length": "4"}, b"body"),
    ],
)
async def test_answers_without_a_body(method: str, status: int, head: dict[str, str], body: bytes) -> None:
    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"body", status=status)

    async with serving(Application(script)) as served, served.connect() as client:
        for _ in range(2):
            await client.send(ask(f"{method} / HTTP/1.1", [("Host", "x")]))
            got = await read_head(client.reader)
            assert (got.status, dict(got.headers)) == (status, head)
            assert await client.reader.readexactly(len(body)) == body


async def wrong_length(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"1234"})


async def split_head(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nset-cookie: b")]})


async def out_of_turn(send: Any) -> None:
    await send({"type": "http.response.body", "body": b"1234"})


async def nothing(_send: Any) -> None:
    pass


@pytest.mark.parametrize("fault", [wrong_length, split_head, out_of_turn, nothing])
async def test_a_fault_of_the_application_is_logged_and_never_looks_like_an_answer(
    fault: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def script(_application: Application, _scope: Any, _receive: Any, send: Any) -> None:
        await fault(send)

    async with serving(Application(script)) as served, served.connect() as client:
        await client.send(INNER)
        got = await client.answer()
        assert (got.status, got.whole) == ((200, False) if fault is wrong_length else (500, True))
        assert await client.ended() == b""
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_the_scope_is_asgis() -> None:
    application = Application()
    async with serving(application) as served, served.connect() as client:
        await client.send(ask("POST http://x/v1/a%20b?c=%20d HTTP/1.1", [("Content-Length", "0"), ("X-A", "\xe4")]))
        await client.answer()
        address = client.writer.get_extra_info("sockname")
    [scope] = application.scopes
    connections = scope.pop("state")
    assert list(connections.values()) == [served.connections]
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", served.port),
        "client": address,
        "scheme": "http",
        "root_path": "",
        "method": "POST",
        "path": "/v1/a b",
        "raw_path": b"/v1/a%20b",
        "query_string": b"c=%20d",
        "headers": [(b"host", b"x"), (b"content-length", b"0"), (b"x-a", b"\xe4")],
    }


async def test_a_large_body_is_taken_as_fast_as_it_is_read() -> None:
    """What nobody reads is not taken from the client: its sockets' buffers fill, and it has to wait."""
    read = asyncio.Event()

    async def script(application: Application, _scope: Any, receive: Any, send: Any) -> None:
        await read.wait()
        await answer(send, json.dumps(len(await read_all(receive))).encode())

    size = 20_000_000
    async with serving(Application(script)) as served, served.connect() as client:
        await client.send(ask("POST / HTTP/1.1", [("Content-Length", str(size))]))
        client.writer.write(b"x" * size)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.3)
        read.set()
        assert (await client.answer()).json == size
