"""One connection to a backend, which carries one request at a time (RFC 9112)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from gasket.deadlines import Deadlines
from gasket.upstream.failures import AnswerTimeoutError, BrokenAnswerError, UpstreamError

Fields = list[tuple[bytes, bytes]]

_PAUSE_ABOVE = 256 * 1024
_LARGEST_HEAD = 64 * 1024
_SWITCHING_PROTOCOLS = 101


class Connection(asyncio.Protocol):
    """A socket with its parser and the bytes that were received and not read yet.

    `on_idle` is called when a request is over and the connection can serve another one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deadlines: Deadlines, on_idle: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._on_idle = on_idle
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self.on_body = self._pieces.append
        """httptools calls it with each piece of the body, which may be one event of a stream: a method would cost a
        call of Python's for each.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._paused = False
        self._failure: UpstreamError | None = None
        self._patient = False
        self._busy = False
        self._without_body = False
        self._reusable = False
        self._reset()

    def _reset(self) -> None:
        self._pieces.clear()
        self._waiting_bytes = 0
        self._silent = 0.0
        self.status = 0
        self.fields: Fields = []
        self.complete = False
        self.delimited = True
        """Whether the answer itself says where it ends; otherwise it ends with the connection."""
        self.encoded = False
        """Whether the body has a content coding."""
        self._head_size = 0
        self._received = 0
        self._head_complete = False

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing() and not self._busy

    def send(self, head: bytes, body: bytes, *, without_body: bool) -> None:
        """Send a request. `without_body`: its answer has no body, whatever its fields say, as an answer to HEAD."""
        assert self._transport is not None
        self._reset()
        self._busy, self._reusable, self._failure = True, False, None
        self._without_body = without_body
        self._transport.write(head + body)

    async def head(self, within: float) -> None:
        """Wait until `status` and `fields` are there; informational answers (1xx) are skipped.

        Raises:
            AnswerTimeoutError: nothing arrives for `within` seconds.
            BrokenAnswerError: the connection ended first, or the answer is not HTTP/1.1, its status included.
        """
        while not self._head_complete:
            await self._wait(within)

    async def piece(self, within: float) -> bytes:
        """The bytes of the body that have arrived, at least one; empty at its end.

        Raises:
            AnswerTimeoutError: nothing arrives for `within` seconds.
            BrokenAnswerError: the connection ended first. Bytes that arrived before are returned before.
        """
        while not self._pieces:
            if self.complete:
                return b""
            await self._wait(within - self._silent)
        return self.take()

    async def piece_or_silence(self, within: float, patience: float) -> bytes | None:
        """As `piece`; None when nothing has arrived for `patience` seconds. Such waits, one after another, take at most
        `within`.
        """
        while not self._pieces:
            if self.complete:
                return b""
            left = within - self._silent
            if patience >= left:
                await self._wait(left)
                continue
            self._patient = True
            try:
                await self._wait(patience)
            finally:
                self._patient = False
            if not self._pieces and not self.complete and self._failure is None:
                self._silent += patience
                return None
        return self.take()

    def put_back(self, piece: bytes) -> None:
        """Put back what was read last: it is read next."""
        self._pieces.appendleft(piece)
        self._waiting_bytes += len(piece)

    @property
    def at_end(self) -> bool:
        """Whether `piece` would be empty, without waiting."""
        return self.complete and not self._pieces

    @property
    def has_arrived(self) -> bool:
        """Whether `piece` would return without waiting."""
        return bool(self._pieces) or self.complete

    def finish(self) -> None:
        """The request is over: keep the connection if its answer is complete, otherwise close it."""
        if self._reusable and not self._paused and self._transport is not None and not self._transport.is_closing():
            self._busy = False
            self._on_idle(self)
        else:
            self.close()

    def close(self) -> None:
        """Close the connection now."""
        self._deadlines.clear(self)
        if self._transport is not None:
            self._transport.abort()

    def take(self) -> bytes:
        """The bytes of the body that have arrived; empty if there are none."""
        if not self._pieces:
            return b""
        self._silent = 0.0
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def _wait(self, within: float) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        self._deadlines.set(self, within)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._deadlines.clear(self)

    def time_is_up(self) -> None:
        """See `Limited`: nothing has arrived in time."""
        if self._patient:
            self._wake()
            return
        problem = "fell silent in the middle of its answer" if self._head_complete else "did not answer in time"
        self._fail(AnswerTimeoutError(problem))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: UpstreamError) -> None:
        if self._failure is None and not self.complete:
            self._failure = failure
        self._wake()
        self.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio calls this when connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """asyncio calls this with received bytes."""
        if not self._busy or self.complete:  # no request has asked for them
            self._reusable = False
            self.close()
            return
        try:
            self._parser.feed_data(data)
            if not self._head_complete:
                self._limit_head(len(data))
            elif self._pieces or self.complete:  # else these bytes frame a chunk, and are no sign of life
                self._arrived(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(BrokenAnswerError("does not answer in HTTP/1.1"))
        if self._without_body:
            self._pieces.clear()

    def _arrived(self, received: int) -> None:
        """Once for each read, which may hold a hundred chunks."""
        self._waiting_bytes += received
        if self._waiting_bytes > _PAUSE_ABOVE and not (self._paused or self.complete) and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _limit_head(self, received: int) -> None:
        """Bound the bytes before the head is complete: an endless header field, or endless informational answers."""
        self._received += received
        if self._received > _LARGEST_HEAD:
            raise httptools.HttpParserError("the head is too large")

    def eof_received(self) -> None:
        """asyncio calls this at the end of what the backend sends. The transport then closes by itself."""
        self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio calls this when the connection is gone."""
        self._ended(exc)
        self._transport = None
        self._deadlines.clear(self)

    def _ended(self, exc: Exception | None = None) -> None:
        if not self._busy or self.complete:
            return
        if self._head_complete and not self.delimited and exc is None:
            self.complete = True
            self._wake()
        elif self._head_complete:
            self._fail(BrokenAnswerError("broke off in the middle of its answer"))
        else:
            self._fail(BrokenAnswerError("closed the connection without an answer"))

    # Called by httptools, in this order

    def on_message_begin(self) -> None:
        """An answer begins. A second one, without a request, is an error."""
        if self.complete:
            raise httptools.HttpParserError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field; fields of a trailer are dropped."""
        if self._head_complete:
            return
        self._head_size += len(name) + len(value)
        if self._head_size > _LARGEST_HEAD:
            raise httptools.HttpParserError("the head is too large")
        self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete; it may be that of an informational answer (RFC 9110, 15.2)."""
        status: int = self._parser.get_status_code()
        if status == _SWITCHING_PROTOCOLS:
            raise httptools.HttpParserError("the request did not ask for another protocol")
        if 100 <= status < 200:
            self._head_size, self.fields = 0, []
            return
        self.status = status
        if not 200 <= status <= 599:  # RFC 9110, 15
            self._fail(BrokenAnswerError(f"answers with the status {status}, which HTTP does not have"))
            return
        self._head_complete = True
        names = {name for name, _ in self.fields}
        self.encoded = b"content-encoding" in names and not self._without_body
        self.delimited = b"content-length" in names or b"transfer-encoding" in names or status in (204, 304)
        self.complete = self._without_body
        self._wake()

    def on_message_complete(self) -> None:
        """The answer is complete, unless it is an informational one."""
        if not self._head_complete or self.complete:
            return
        self.complete = True
        # A backend may answer before it has read the whole request. Then the connection cannot be used again.
        sent = self._transport is not None and not self._transport.get_write_buffer_size()
        self._reusable = sent and self._parser.should_keep_alive()
