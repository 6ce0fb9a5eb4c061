"""The upstream: `python -m bench.gateway.upstream PORT`. It is to cost as little as Python can.

It reads just as much HTTP as its clients here speak: a request with a Content-Length or without a body.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from typing import cast

import uvloop

from bench.gateway.wire import BURST, DONE_EVENT, EVENTS, MODELS, PACE, PACED, PLAIN_ANSWER, USAGE_EVENT

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_STREAMED = re.compile(rb'"stream": ?true')
_PACED = re.compile(rb'"model": ?"%b"' % PACED.encode())
_WITH_USAGE = b'"include_usage"'


def _plain(body: bytes) -> bytes:
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_0123456789abcdef\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


_ANSWER = _plain(PLAIN_ANSWER)
_MODELS = _plain(MODELS)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"x-request-id: req_0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)
_STREAM_START = _STREAM_HEAD + _chunk(EVENTS[0])
_STREAM_END = _chunk(DONE_EVENT) + b"0\r\n\r\n"


def _packets(end: bytes, events: int) -> tuple[bytes, ...]:
    """What follows the start of a stream, so many events in each packet."""
    rest = [_chunk(event) for event in EVENTS[1:]]
    bursts = [b"".join(rest[first : first + events]) for first in range(0, len(rest), events)]
    return (*bursts, end)


_ENDS = (_STREAM_END, _chunk(USAGE_EVENT) + _STREAM_END)
_PACED_REST, _PACED_REST_WITH_USAGE = (_packets(end, 1) for end in _ENDS)
_FAST_REST, _FAST_REST_WITH_USAGE = (_packets(end, BURST) for end in _ENDS)


class Connection(asyncio.Protocol):
    """One connection, kept for as long as the client wants it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._next: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        received = self._received + data
        end = received.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(received, 0, end) if end >= 4 else None
        if end < 4 or (length and len(received) < end + int(length[1])):
            self._received = received
            return
        self._received = b""
        self._answer(received)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next:
            self._next.cancel()

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET /v1/models "):
            self._transport.write(_MODELS)
        elif not request.startswith(b"POST /v1/chat/completions "):
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif not _STREAMED.search(request):
            self._transport.write(_ANSWER)
        else:
            self._transport.write(_STREAM_START)
            with_usage = _WITH_USAGE in request
            if _PACED.search(request):
                rest = _PACED_REST_WITH_USAGE if with_usage else _PACED_REST
                self._pace(iter(rest), self._loop.time() + PACE)
            else:
                rest = _FAST_REST_WITH_USAGE if with_usage else _FAST_REST
                self._next = self._loop.call_soon(self._hurry, iter(rest))

    def _hurry(self, rest: Iterator[bytes]) -> None:
        """One packet, and the next as soon as the loop comes round."""
        if (packet := next(rest, None)) is not None:
            self._transport.write(packet)
            self._next = self._loop.call_soon(self._hurry, rest)

    def _pace(self, rest: Iterator[bytes], due: float) -> None:
        """One event when it is due; the times are fixed from the start, so that no lateness adds up."""
        self._next = self._loop.call_at(due, self._write_due, rest, due)

    def _write_due(self, rest: Iterator[bytes], due: float) -> None:
        if (event := next(rest, None)) is not None:
            self._transport.write(event)
            self._pace(rest, due + PACE)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
