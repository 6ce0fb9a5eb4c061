"""The client to the backends over real sockets, in both kinds of event loop."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any, TypeVar

import pytest
import uvloop

from gasket.upstream.address import Address, address_of
from gasket.upstream.client import Response, Timeouts, UpstreamClient
from gasket.upstream.failures import AnswerTimeoutError, BrokenAnswerError, NotConnectedError, UpstreamError

T = TypeVar("T", bound=type)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
PATIENT = Timeouts(10, 10, 10)


def in_each_loop(tests: T) -> T:
    """Run each test of the class in a loop of asyncio's and in one of uvloop's, which serves."""
    for name, test in list(vars(tests).items()):
        if name.startswith("test_"):
            setattr(tests, name, _in_each_loop(test))
    return tests


def _in_each_loop(test: Callable[..., Any]) -> Callable[..., None]:
    @wraps(test)
    def run(*given: Any, new_loop: Callable[[], asyncio.AbstractEventLoop], **named: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(*given, **named))

    parameters = inspect.signature(test).parameters.values()
    loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*parameters, loop])  # type: ignore[attr-defined]  # what pytest reads
    loops = pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    each: Callable[..., None] = loops(run)
    return each


class Peer:
    """The server's side of one connection; `number` counts them from 0."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """The head of the next request."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> tuple[bytes, bytes]:
        """The next request: its first line and its body."""
        line, *fields = (await self.head()).split(b"\r\n")
        lengths = [int(field.partition(b":")[2]) for field in fields if field.startswith(b"content-length:")]
        return line, await self.reader.readexactly(lengths[0]) if lengths else b""

    async def send(self, answer: bytes) -> None:
        self.writer.write(answer)
        await self.writer.drain()


Handler = Callable[[Peer], Awaitable[None]]


class Server:
    """What a server of this process has seen."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._serving: set[asyncio.Task[None]] = set()
        self.address: Address
        self.opened = 0
        """Connections so far."""
        self.open = 0

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._handler(Peer(self.opened - 1, reader, writer))
        finally:
            self.open -= 1
            writer.close()

    async def stop(self) -> None:
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[Server, UpstreamClient]]:
    """A server, and a client to talk to it."""
    server, client = Server(handler), UpstreamClient()
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    server.address = address_of(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    try:
        yield server, client
    finally:
        await client.close()
        await server.stop()
        listener.close()


async def start(
    server: Server, client: UpstreamClient, *, method: str = "GET", body: bytes = b"", timeouts: Timeouts = PATIENT
) -> Response:
    """The head of an answer."""
    return await client.send(method, server.address, b"/v1/x", fields=[], body=body, timeouts=timeouts)


async def ask(server: Server, client: UpstreamClient, *, method: str = "GET", body: bytes = b"") -> bytes:
    """The body of a whole answer."""
    response = await start(server, client, method=method, body=body)
    try:
        return await response.read(100_000_000)
    finally:
        response.close()


async def until(happened: Callable[[], bool], within: float = 60) -> None:
    """Wait until it has happened."""
    async with asyncio.timeout(within):
        while not happened():  # noqa: ASYNC110  # what happens is the kernel's and the loop's
            await asyncio.sleep(0.005)


async def the_kernel() -> None:
    """Let the loop look several times for what has come: once may be the moment at which a stopped process goes on,
    and then a timer is first.
    """
    for _ in range(10):
        await asyncio.sleep(0.005)


def answering(*answers: bytes) -> Handler:
    """To each request on a connection the next answer; then it waits for the client to close."""

    async def handler(peer: Peer) -> None:
        for answer in answers:
            await peer.request()
            await peer.send(answer)
        await peer.reader.read()

    return handler


async def numbered(peer: Peer) -> None:
    """Each answer tells the number of its connection, and echoes the body."""
    while True:
        _, body = await peer.request()
        answer = b"%d %b" % (peer.number, body)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


@in_each_loop
class TestReuse:
    async def test_one_after_the_other_they_share_a_connection(self) -> None:
        async with serving(numbered) as (server, client):
            assert [await ask(server, client, method="POST", body=b"%d" % n) for n in range(20)] == [
                b"0 %d" % n for n in range(20)
            ]
            assert server.opened == 1

    async def test_at_once_none_is_shared(self) -> None:
        together = asyncio.Barrier(20)

        async def handler(peer: Peer) -> None:
            while True:
                _, body = await peer.request()
                async with asyncio.timeout(60):
                    await together.wait()
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        async with serving(handler) as (server, client):
            for _ in range(3):
                bodies = [b"body %d" % n for n in range(20)]
                assert await asyncio.gather(*(ask(server, client, method="POST", body=b) for b in bodies)) == bodies
            assert server.opened == 20
            assert server.open == 20

    async def test_the_one_that_was_used_last_is_used_first(self) -> None:
        async with serving(numbered) as (server, client):
            first, second = await start(server, client), await start(server, client)
            for response in (second, first):
                await response.read(100)
                response.close()
            assert await ask(server, client) == b"0 "

    async def test_idle_ones_are_closed_after_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.upstream.client._IDLE_TIMEOUT", 0.2)
        monkeypatch.setattr("gasket.upstream.client._SWEEP_INTERVAL", 0.05)
        async with serving(numbered) as (server, client):
            busy = await start(server, client)
            await ask(server, client)
            assert server.open == 2
            await until(lambda: server.open == 1)
            assert await busy.read(100) == b"0 "
            busy.close()
            assert await ask(server, client) == b"0 "
            await until(lambda: server.open == 0)

    async def test_after_close_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.upstream.client._IDLE_TIMEOUT", 0.2)
        monkeypatch.setattr("gasket.upstream.client._SWEEP_INTERVAL", 0.05)
        async with serving(numbered) as (server, client):
            await ask(server, client)
            await client.close()
            await until(lambda: server.open == 0)
            await ask(server, client)
            assert server.open == 1
            await until(lambda: server.open == 0)

    async def test_one_that_the_server_has_closed_is_not_used(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)

        async with serving(handler) as (server, client):
            for number in range(1, 4):
                assert await ask(server, client, method="POST", body=b"x") == b"ok"
                await until(lambda: server.open == 0)
                await the_kernel()  # its FIN arrives
                assert server.opened == number

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
    async def test_one_that_is_closed_while_it_is_used_again_is_replaced(self, method: str) -> None:
        """What may be repeated is sent once more, over a new one."""
        async with serving(self._answers_once_then_hangs_up) as (server, client):
            assert await ask(server, client, method=method) == (b"" if method == "HEAD" else b"ok")
            assert await ask(server, client, method=method) == (b"" if method == "HEAD" else b"ok")
            assert server.opened == 2

    @pytest.mark.parametrize("method", ["POST", "PATCH"])
    async def test_what_may_not_be_repeated_is_sent_once(self, method: str) -> None:
        async with serving(self._answers_once_then_hangs_up) as (server, client):
            assert await ask(server, client, method=method) == b"ok"
            with pytest.raises(BrokenAnswerError, match="closed the connection without an answer"):
                await ask(server, client, method=method)
            assert server.opened == 1

    async def test_nor_is_what_was_answered_in_part(self) -> None:
        async with serving(answering(OK, b"HTTP/1.1 200 OK\r\nContent-")) as (server, client):
            assert await ask(server, client) == b"ok"
            asked = asyncio.create_task(ask(server, client))
            await until(lambda: server.opened == 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asked
            assert server.opened == 1

    async def test_a_new_one_that_breaks_is_not_replaced(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()

        async with serving(handler) as (server, client):
            with pytest.raises(BrokenAnswerError):
                await ask(server, client)
            assert server.opened == 1

    @staticmethod
    async def _answers_once_then_hangs_up(peer: Peer) -> None:
        line, _ = await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n" if line.startswith(b"HEAD") else OK)
        await peer.request()

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            OK + b"junk",
            OK + OK,
        ],
    )
    async def test_some_are_used_once(self, answer: bytes) -> None:
        async with serving(answering(answer)) as (server, client):
            for number in range(1, 4):
                assert await ask(server, client) == b"ok"
                assert server.opened == number
            await until(lambda: server.open == 0)

    async def test_junk_that_comes_late_is_nobodys_answer(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK)
            junk.set()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            await peer.reader.read()

        junk = asyncio.Event()
        async with serving(handler) as (server, client):
            for number in range(1, 4):
                assert await ask(server, client, method="POST") == b"ok"
                await junk.wait()
                junk.clear()
                await until(lambda: server.open == 0)
                assert server.opened == number

    async def test_an_answer_that_was_not_read_is_not_the_next_ones(self) -> None:
        first = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"
        async with serving(answering(first, OK)) as (server, client):
            response = await start(server, client)
            await the_kernel()  # all of it arrives
            response.close()
            assert await ask(server, client) == b"ok"
            assert server.opened == 1


@in_each_loop
class TestAnswers:
    async def test_one_that_ends_with_the_connection(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
            await peer.send(b" and half")

        async with serving(handler) as (server, client):
            response = await start(server, client)
            assert not response.delimited
            assert await response.read(100) == b"half and half"
            assert response.at_end
            response.close()

    async def test_an_empty_one_that_ends_with_the_connection(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")

        async with serving(handler) as (server, client):
            assert await ask(server, client) == b""

    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_what_came_before_the_break_is_handed_out_before(self, method: str) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(HEAD + b"half")

        async with serving(handler) as (server, client):
            response = await start(server, client, method=method)
            await until(lambda: server.open == 0)
            await the_kernel()  # its FIN arrives
            assert await response.piece() == b"half"
            for _ in range(2):
                with pytest.raises(BrokenAnswerError, match="broke off in the middle of its answer"):
                    await response.piece()
            response.close()
            assert server.opened == 1

    async def test_a_reset_in_the_middle_is_no_end(self) -> None:
        """Not even of an answer that ends with the connection."""

        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
            await read.wait()
            linger = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close sends RST
            peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        read = asyncio.Event()
        async with serving(handler) as (server, client):
            response = await start(server, client)
            assert await response.piece() == b"half"
            read.set()
            with pytest.raises(BrokenAnswerError, match="broke off"):
                await response.piece()
            response.close()

    async def test_an_answer_that_comes_before_all_is_sent(self) -> None:
        """The server reads no more than the head: what is left of the request would be the next one's beginning."""

        async def handler(peer: Peer) -> None:
            await peer.head()
            await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            await over.wait()
            await peer.reader.read()

        over = asyncio.Event()
        async with serving(handler) as (server, client):
            for number in range(1, 3):
                response = await start(server, client, method="POST", body=b"x" * 30_000_000)
                assert (response.status, await response.read(100)) == (413, b"no")
                response.close()
                assert server.opened == number
            over.set()
            await until(lambda: server.open == 0)

    async def test_one_that_is_followed_by_the_end(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.head()
            await peer.send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
            peer.writer.write_eof()
            await peer.reader.read()

        async with serving(handler) as (server, client):
            assert await ask(server, client, method="POST", body=b"x" * 30_000_000) == b"no"

    @pytest.mark.parametrize(
        ("method", "body", "length"),
        [
            ("GET", b"", []),
            ("DELETE", b"", []),
            ("POST", b"", [b"content-length: 0"]),
            ("PUT", b"", [b"content-length: 0"]),
            ("DELETE", b"body", [b"content-length: 4"]),
        ],
    )
    async def test_a_request_tells_its_length(self, method: str, body: bytes, length: list[bytes]) -> None:
        heads = []

        async def handler(peer: Peer) -> None:
            heads.append(await peer.head())
            await peer.send(OK)

        async with serving(handler) as (server, client):
            assert await ask(server, client, method=method, body=body) == b"ok"
        [line, host, *rest] = heads[0].removesuffix(b"\r\n\r\n").split(b"\r\n")
        assert line == b"%b /v1/x HTTP/1.1" % method.encode()
        assert host == b"host: " + server.address.authority
        assert rest == length

    async def test_a_large_request_is_sent_whole(self) -> None:
        body = bytes(range(256)) * 100_000

        async def handler(peer: Peer) -> None:
            _, heard = await peer.request()
            await peer.send(OK if heard == body else b"HTTP/1.1 500 No\r\n\r\n")

        async with serving(handler) as (server, client):
            assert await ask(server, client, method="POST", body=body) == b"ok"

    async def test_it_waits_for_its_reader(self) -> None:
        """A server that sends 50 MB: what nobody takes stays with it."""
        size, sent = 50_000_000, 0

        async def handler(peer: Peer) -> None:
            nonlocal sent
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while sent < size:
                await peer.send(b"x" * 100_000)
                sent += 100_000

        async with serving(handler) as (server, client):
            response = await start(server, client)
            before = -1
            while before != sent:  # until nothing goes on any more
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 20_000_000, "what the kernel's buffers and the limit of 256 KiB can hold"
            largest = total = 0
            while piece := await response.piece():
                total += len(piece)
                largest = max(largest, len(piece))
            response.close()
        assert total == size
        assert largest < 1_000_000

    async def test_a_server_that_leaves_while_nobody_reads(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 1_000_000)

        async with serving(handler) as (server, client):
            response = await start(server, client)
            await until(lambda: server.open == 0)
            await the_kernel()
            read = 0
            with pytest.raises(BrokenAnswerError, match="broke off"):  # noqa: PT012  # which piece it is, is the kernel's affair
                while piece := await response.piece():
                    read += len(piece)
            assert read == 1_000_000
            response.close()


@in_each_loop
class TestTime:
    async def test_to_connect(self) -> None:
        """A server that does not finish the handshake of TLS."""

        async def silent(peer: Peer) -> None:
            await peer.reader.read()

        async with serving(silent) as (server, client):
            server.address = server.address._replace(tls=True)
            with pytest.raises(NotConnectedError, match="connect_timeout"):
                await start(server, client, timeouts=Timeouts(0.1, 10, 10))
            await until(lambda: server.open == 0)
            await the_kernel()  # uvloop closes the client's transport a moment after its socket

    @pytest.mark.parametrize(
        "answer", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"]
    )
    async def test_to_the_head(self, answer: bytes) -> None:
        async with serving(answering(answer)) as (server, client):
            with pytest.raises(AnswerTimeoutError, match="did not answer in time"):
                await start(server, client, timeouts=Timeouts(10, 0.1, 10))
            await until(lambda: server.open == 0)

    async def test_between_two_pieces(self) -> None:
        async def handler(peer: Peer) -> None:
            await peer.request()
            await peer.send(HEAD)
            for _ in range(8):
                await asyncio.sleep(0.25)
                await peer.send(b"x")
            await peer.reader.read()

        async with serving(handler) as (server, client):
            response = await start(server, client, timeouts=Timeouts(10, 10, 1.5))
            read = b""
            with pytest.raises(AnswerTimeoutError, match="fell silent in the middle of its answer"):  # noqa: PT012
                while piece := await response.piece():
                    read += piece
            assert read == b"x" * 8, "the limit holds for each piece, not for all"
            response.close()
            await until(lambda: server.open == 0)

    async def test_a_reader_that_takes_its_time_is_not_late(self) -> None:
        async with serving(answering(HEAD + b"0123456789")) as (server, client):
            response = await start(server, client, timeouts=Timeouts(10, 10, 0.1))
            await asyncio.sleep(0.4)
            assert await response.read(10) == b"0123456789"
            response.close()


async def silent(peer: Peer) -> None:
    await peer.reader.read()


async def slow_to_read(peer: Peer) -> None:
    await peer.head()
    await asyncio.Event().wait()


async def half_an_answer(peer: Peer) -> None:
    await peer.request()
    await peer.send(HEAD + b"half")
    await peer.reader.read()


@in_each_loop
class TestLeaving:
    @pytest.mark.parametrize("handler", [silent, half_an_answer])
    @pytest.mark.parametrize("after", [0.0, 0.02, 0.1])
    async def test_whoever_is_cancelled_leaves_no_connection(self, handler: Handler, after: float) -> None:
        async with serving(handler) as (server, client):
            asked = asyncio.create_task(ask(server, client, method="POST", body=b"x" * 100_000))
            await asyncio.sleep(after)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await the_kernel()
            await until(lambda: server.open == 0)
            assert server.opened <= 1

    async def test_at_any_step(self) -> None:
        """A task that is cancelled after each number of turns of the loop, from before it connects to after its end."""
        async with serving(numbered) as (server, client):
            for turns in range(60):
                asked = asyncio.create_task(ask(server, client, method="POST", body=b"%d" % turns))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asked.cancel()
                with suppress(asyncio.CancelledError):
                    assert (await asked).endswith(b" %d" % turns)
                assert (await ask(server, client, method="POST", body=b"after")).endswith(b" after")
            await client.close()
            await until(lambda: server.open == 0)

    async def test_in_the_handshake_of_tls(self) -> None:
        async with serving(silent) as (server, client):
            server.address = server.address._replace(tls=True)
            asked = asyncio.create_task(ask(server, client))
            await until(lambda: server.open == 1)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await until(lambda: server.open == 0)

    async def test_an_answer_that_is_closed_too_soon_costs_its_connection(self) -> None:
        async with serving(half_an_answer) as (server, client):
            response = await start(server, client)
            assert await response.piece() == b"half"
            response.close()
            await until(lambda: server.open == 0)

    async def test_a_request_that_is_still_being_sent_goes_no_further(self) -> None:
        size, heard = 30_000_000, 0

        async def handler(peer: Peer) -> None:
            nonlocal heard
            await peer.head()
            asked.cancel()
            await left.wait()
            while data := await peer.reader.read(1_000_000):
                heard += len(data)

        left = asyncio.Event()
        async with serving(handler) as (server, client):
            asked = asyncio.create_task(ask(server, client, method="POST", body=b"x" * size))
            with pytest.raises(asyncio.CancelledError):
                await asked
            left.set()
            await until(lambda: server.open == 0)
        assert heard < size

    async def test_a_server_that_is_gone(self) -> None:
        async with serving(silent) as (server, client):
            address = server.address
        async with serving(silent) as (server, client):
            server.address = address
            with pytest.raises(UpstreamError):
                await ask(server, client)
