"""What a connection makes of the bytes of an answer, cut at any place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.deadlines import Deadlines
from gasket.upstream.connection import Connection, Fields
from gasket.upstream.failures import AnswerTimeoutError, BrokenAnswerError


class Transport(asyncio.Transport):
    """A socket that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closed = False
        self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Wire:
    """A connection and its other end."""

    def __init__(self) -> None:
        self.idle = 0
        self.transport = Transport()
        self.connection = Connection(asyncio.get_running_loop(), Deadlines(), self._became_idle)
        self.connection.connection_made(self.transport)

    def _became_idle(self, _connection: Connection) -> None:
        self.idle += 1

    async def exchange(
        self, pieces: Sequence[bytes], *, method: str = "GET", ends: bool = False
    ) -> tuple[int, Fields, bytes]:
        """Send a request; its answer comes in these pieces, after which the connection ends, or not."""
        self.connection.send(b"", b"", without_body=method == "HEAD")
        for piece in pieces:
            if not self.transport.closed:
                self.connection.data_received(piece)
        if ends:
            self.connection.eof_received()
            self.connection.connection_lost(None)
        await self.connection.head(1)
        status, fields, body = self.connection.status, self.connection.fields, b""
        while piece := await self.connection.piece(1):
            body += piece
        self.connection.finish()
        return status, fields, body


async def broken(pieces: Sequence[bytes], *, ends: bool = True) -> tuple[str, bytes]:
    """What is wrong, and what of the body came before."""
    wire = Wire()
    wire.connection.send(b"", b"", without_body=False)
    for piece in pieces:
        if not wire.transport.closed:
            wire.connection.data_received(piece)
    if ends:
        wire.connection.connection_lost(None)
    body = b""
    try:
        await wire.connection.head(1)
        while piece := await wire.connection.piece(1):
            body += piece
    except BrokenAnswerError as failure:
        said = str(failure)
    wire.connection.finish()
    assert not wire.connection.usable
    return said, body


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n" + trailer + b"\r\n"


CUTS = st.lists(st.integers(1, 30), max_size=40)


def cut(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [piece for piece in [*pieces, stream] if piece]


@given(
    st.lists(st.binary(max_size=50), max_size=5),
    st.sampled_from(["length", "chunked", "trailer", "until close"]),
    st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 3]),
    CUTS,
)
def test_the_same_answer_wherever_it_is_cut(chunks: list[bytes], framing: str, before: bytes, sizes: list[int]) -> None:
    body = b"".join(chunks)
    head, content = {
        "length": (b"Content-Length: %d\r\n" % len(body), body),
        "chunked": (b"Transfer-Encoding: chunked\r\n", chunked(*chunks)),
        "trailer": (b"Transfer-Encoding: chunked\r\n", chunked(*chunks, trailer=b"X-A: trailer\r\nX-B: 2\r\n")),
        "until close": (b"", body),
    }[framing]
    answer = before + b"HTTP/1.1 201 Created\r\nX-A: 1\r\nx-a: 2\r\n" + head + b"\r\n" + content

    async def check() -> None:
        wire = Wire()
        for _ in range(1 if framing == "until close" else 2):  # the second is read as the first
            status, fields, got = await wire.exchange(cut(answer, sizes), ends=framing == "until close")
            assert (status, got) == (201, body)
            assert fields[:2] == [(b"x-a", b"1"), (b"x-a", b"2")]
            assert len(fields) == 2 + bool(head)
            assert wire.connection.delimited == (framing != "until close")
        assert wire.idle == (0 if framing == "until close" else 2)

    asyncio.run(check())


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.booleans(), st.data(), CUTS)
def test_what_breaks_off_never_looks_whole(
    chunks: list[bytes], by_chunks: bool, data: st.DataObject, sizes: list[int]
) -> None:
    body = b"".join(chunks)
    head = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % (
        b"Transfer-Encoding: chunked" if by_chunks else b"Content-Length: %d" % len(body)
    )
    answer = head + (chunked(*chunks) if by_chunks else body)
    end = data.draw(st.integers(0, len(answer) - 1))
    said, got = asyncio.run(broken(cut(answer[:end], sizes)))
    if end < len(head):
        assert said == "closed the connection without an answer"
    else:
        assert said == "broke off in the middle of its answer"
        assert body.startswith(got)
        assert by_chunks or got == answer[len(head) : end]


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize(
    "field", [b"", b"Content-Length: 0\r\n", b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n"]
)
async def test_no_content_is_complete_at_once(status: int, field: bytes) -> None:
    """A 304 has the length that the content would have (RFC 9110, 8.6)."""
    wire = Wire()
    got = await wire.exchange([b"HTTP/1.1 %d X\r\n%b\r\n" % (status, field)])
    assert got[0] == status
    assert got[2] == b""
    assert wire.connection.delimited
    assert wire.idle == 1 or field
    assert wire.idle == 1 or wire.transport.closed


@pytest.mark.parametrize(
    "field", [b"", b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 0\r\n"]
)
async def test_an_answer_to_head_is_complete_at_once(field: bytes) -> None:
    wire = Wire()
    assert (await wire.exchange([b"HTTP/1.1 200 OK\r\n%b\r\n" % field], method="HEAD"))[::2] == (200, b"")
    assert wire.idle or wire.transport.closed


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nconnection: foo, CLOSE", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive", True),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0", True),
    ],
)
async def test_which_connections_are_used_again(head: bytes, kept: bool) -> None:
    wire = Wire()
    await wire.exchange([head + b"\r\n\r\n"])
    assert (wire.idle, wire.transport.closed) == ((1, False) if kept else (0, True))
    assert wire.connection.usable == kept


async def test_one_that_was_answered_before_the_request_was_sent_is_not() -> None:
    wire = Wire()
    wire.transport.unsent = 1
    await wire.exchange([b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n"])
    assert (wire.idle, wire.transport.closed) == (0, True)


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED])
@pytest.mark.parametrize("more", [b"x", b"\r\nHTTP", ANSWER, b"HTTP/1.1 500 No\r\n\r\nno", b"\0"])
@pytest.mark.parametrize("together", [True, False])
async def test_what_comes_after_the_end_is_nobodys(answer: bytes, more: bytes, together: bool) -> None:
    wire = Wire()
    got = await wire.exchange([answer + more] if together else [answer, more])
    assert got[::2] == (200, b"ok")
    assert (wire.idle, wire.transport.closed) == (0, True)
    assert not wire.connection.usable


async def test_what_comes_while_nobody_has_asked_closes_it() -> None:
    wire = Wire()
    await wire.exchange([ANSWER])
    wire.connection.data_received(ANSWER)
    assert not wire.connection.usable


@pytest.mark.parametrize(
    "bad",
    [
        b"SSH-2.0\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n" % (b"a" * 70_000),
        b"HTTP/1.1 200 OK\r\n%b\r\n" % (b"X-Field: 1\r\n" * 10_000),
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
        b"HTTP/1.1 200 " + b"a" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"a" * 200_000,
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 5000,
    ],
    ids=lambda bad: str(bad[:50]),
)
async def test_what_is_no_answer(bad: bytes) -> None:
    """At once: a server may go on for ever, in a field that does not end for example."""
    for sizes in ([1000] * 200, []):
        said, body = await broken(cut(bad, sizes), ends=False)
        assert (said, body) == ("does not answer in HTTP/1.1", b"")


@pytest.mark.parametrize("status", ["099", "600", "999"])
async def test_a_status_that_is_none_is_no_answer(status: str) -> None:
    said, body = await broken([f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n".encode(), b"{}"], ends=False)
    assert (said, body) == (f"answers with the status {int(status)}, which HTTP does not have", b"")


@pytest.mark.parametrize("bad", [b"zz\r\n", b"2\r\nokay\r\n", b"-1\r\n", b"2 \x00\r\nok\r\n", b"f" * 20])
async def test_chunks_that_are_none(bad: bytes) -> None:
    """What came before is handed out before."""
    said, body = await broken([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n" + bad], ends=False)
    assert said == "does not answer in HTTP/1.1"
    assert body.startswith(b"hi")


async def test_it_reads_no_further_than_somebody_takes() -> None:
    wire = Wire()
    wire.connection.send(b"", b"", without_body=False)
    wire.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    paused = []
    for _ in range(8):
        wire.connection.data_received(b"x" * 50_000)
        paused.append(wire.transport.paused)
    assert paused == [False] * 5 + [True] * 3
    assert len(await wire.connection.piece(1)) == 400_000
    paused.append(wire.transport.paused)
    assert not paused[-1]
    wire.connection.close()


async def test_bytes_that_are_no_content_are_no_sign_of_life() -> None:
    """A backend that sends a chunk's size and extensions for ever is as silent as one that sends nothing."""
    wire = Wire()
    wire.connection.send(b"", b"", without_body=False)
    wire.connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    reading = asyncio.ensure_future(wire.connection.piece(0.3))
    for _ in range(600):
        if reading.done():
            break
        wire.connection.data_received(b"x")
        await asyncio.sleep(0.05)
    assert reading.done()
    with pytest.raises(AnswerTimeoutError):
        await reading


async def test_what_is_put_back_is_read_next() -> None:
    wire = Wire()
    wire.connection.send(b"", b"", without_body=False)
    wire.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    assert wire.connection.take() == b"ab"
    assert wire.connection.take() == b""
    wire.connection.put_back(b"ab")
    wire.connection.data_received(b"cd")
    assert wire.connection.complete
    assert not wire.connection.at_end
    assert await wire.connection.piece(1) == b"abcd"
    assert wire.connection.at_end


async def test_a_body_behind_the_answer_to_head_is_dropped() -> None:
    wire = Wire()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
    assert (await wire.exchange([answer], method="HEAD"))[::2] == (200, b"")
    assert wire.transport.closed


async def test_a_request_is_written_as_it_is() -> None:
    wire = Wire()
    wire.connection.send(b"GET / HTTP/1.1\r\n\r\n", b"body", without_body=False)
    assert wire.transport.written == b"GET / HTTP/1.1\r\n\r\nbody"
