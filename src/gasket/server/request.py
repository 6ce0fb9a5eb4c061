"""One request and its answer. Towards the application it speaks ASGI (HTTP & WebSocket Message Format, 2.3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

log = logging.getLogger("gasket.server")

Application = Callable[[Any, Any, Any], Awaitable[None]]
Fields = list[tuple[bytes, bytes]]

_MAX_UNREAD = 64 * 1024
_BODILESS = (204, 304)
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_TOKEN = bytes(c for c in range(33, 127) if c not in b'"(),/:;<=>?@[\\]{}')
_VALUE = bytes(c for c in range(256) if c == 9 or (c >= 32 and c != 127))
"""The bytes that are allowed in a field's name and value (RFC 9110, 5.6.2 and 5.5)."""


def status_line(status: int) -> bytes:
    """The first line of an answer. A backend may use a status that has no reason phrase."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


class Wire(Protocol):
    """The connection, as a request sees it."""

    def write(self, data: bytes) -> None:
        """Send this after all that was written before."""

    @property
    def congested(self) -> bool:
        """Whether the client has still to read much of what was written."""

    async def drained(self) -> None:
        """Wait until it has."""

    def pause_reading(self) -> None:
        """Stop reading from the client."""

    def resume_reading(self) -> None:
        """Read from the client again."""

    def own_fields(self) -> Fields:
        """The header fields that the server adds to each answer."""

    def answered(self) -> None:
        """The answer is complete."""

    def broken_off(self, *, looks_complete: bool) -> None:
        """The answer will not be completed. `looks_complete`: only a reset of the connection can tell the client."""


class Request:
    """One request, answered by `run`. `keep_alive`: whether another request may follow on the connection."""

    __slots__ = (
        "_body",
        "_bytes_left",
        "_changed",
        "_chunked",
        "_end_delivered",
        "_expects_continue",
        "_held_head",
        "_unread",
        "_wire",
        "answered",
        "bodiless",
        "body_complete",
        "disconnected",
        "keep_alive",
        "scope",
        "started",
    )

    def __init__(self, wire: Wire, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool) -> None:
        self._wire = wire
        self.scope = scope
        self.keep_alive = keep_alive
        self.body_complete = False
        self.started = False
        self.answered = False
        self.disconnected = False
        self.bodiless = False
        self._expects_continue = expects_continue
        self._body: list[bytes] = []
        self._unread = 0
        self._end_delivered = False
        self._changed: asyncio.Event | None = None
        """Made for the first wait: a small request's body is there before the application asks for it."""
        self._chunked = False
        self._held_head = b""
        """The head of the answer, until the first message of its body: one write for both saves a tenth of the CPU."""
        self._bytes_left: int | None = None
        """Bytes of the answer that are still to be sent; None if it has no Content-Length."""

    async def run(self, application: Application) -> None:
        """Let the application answer. If it returns before its answer is complete, the answer is broken off."""
        try:
            await application(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._break_off()
            raise
        except Exception:
            log.exception("%s %s failed", self.scope["method"], self.scope["path"])
            await self._fail()
        else:
            if not self.started and not self.disconnected:
                log.error("%s %s: the application sent no answer", self.scope["method"], self.scope["path"])
                await self._fail()
            self._break_off()

    def take(self, body: bytes) -> None:
        """Add a piece of the body."""
        self._body.append(body)
        self._unread += len(body)
        if self._unread > _MAX_UNREAD:
            self._wire.pause_reading()
        self._tell_change()

    def end(self) -> None:
        """The body is complete."""
        self.body_complete = True
        self._tell_change()

    def disconnect(self) -> None:
        """The client has left."""
        self.disconnected = True
        self._tell_change()

    def _tell_change(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def receive(self) -> dict[str, Any]:
        """ASGI's `receive`: the next piece of the body; after the last one, waits until the answer ends or the client
        leaves.
        """
        if self._expects_continue and not (self.started or self.disconnected):
            self._expects_continue = False
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (
            self._body or (self.body_complete and not self._end_delivered) or self.disconnected or self.answered
        ):
            self._wire.resume_reading()
            changed = self._changed = self._changed or asyncio.Event()
            changed.clear()
            await changed.wait()
        if self.disconnected or self.answered:
            return {"type": "http.disconnect"}
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._unread = 0
        self._end_delivered = self.body_complete
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    async def send(self, message: Mapping[str, Any]) -> None:
        """ASGI's `send`. The start of an answer leaves with the first message of its body, which may be empty.

        Raises:
            RuntimeError: the message is not allowed now, or is not valid HTTP.
        """
        if self._wire.congested:
            await self._wire.drained()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.started and kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif self.started and not self.answered and kind == "http.response.body":
            self._continue(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} is not allowed at this point of the answer")

    def _start(self, status: int, fields: Iterable[tuple[bytes, bytes]]) -> None:
        lines = [status_line(status)]
        names, values, keep_alive, left = [], [], self.keep_alive, None
        for name, value in (*self._wire.own_fields(), *fields):
            if name == b"content-length":
                if status == 204 or left is not None:  # RFC 9110, 8.6
                    continue
                left = int(value)
            elif name == b"connection":
                keep_alive = keep_alive and b"close" not in value.lower()
                if value == b"upgrade":  # belongs to the field of that name (RFC 9110, 7.8)
                    lines.append(b"connection: upgrade\r\n")
                continue
            elif name == b"transfer-encoding":
                continue
            names.append(name)
            values.append(value)
            lines += (name, b": ", value, b"\r\n")
        if b"".join(names).translate(None, _TOKEN) or b"".join(values).translate(None, _VALUE):
            raise RuntimeError("a header field has bytes that HTTP does not allow")
        self.bodiless = status in _BODILESS or self.scope["method"] == "HEAD"
        if left is None and not self.bodiless:
            if self.scope["http_version"] == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:  # HTTP/1.0 has no chunks (RFC 9112, 6.1): the answer ends when the connection closes
                keep_alive = False
        if not self.body_complete:  # the rest is not parsed
            keep_alive = False
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self.started, self.keep_alive, self._bytes_left = True, keep_alive, left
        self._held_head = b"".join(lines)

    def _continue(self, body: bytes, *, more: bool) -> None:
        if self._bytes_left is not None and not self.bodiless:
            self._bytes_left -= len(body)
            if self._bytes_left < 0 or (self._bytes_left and not more):
                raise RuntimeError("the answer and its Content-Length differ in length")
        head, self._held_head = self._held_head, b""
        if self.bodiless:
            self._wire.write(head)
        elif self._chunked:
            chunk = b"%b%x\r\n%b\r\n" % (head, len(body), body) if body else head
            self._wire.write(chunk if more else chunk + b"0\r\n\r\n")
        else:
            self._wire.write(head + body if head else body)
        if not more:
            self.answered = True
            self._tell_change()
            self._wire.answered()

    async def _fail(self) -> None:
        if not self.started:
            body = b"Internal Server Error"
            fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
            start = {"type": "http.response.start", "status": 500, "headers": [*fields, (b"connection", b"close")]}
            await self.send(start)
            await self.send({"type": "http.response.body", "body": body})
        self._break_off()

    def _break_off(self) -> None:
        if not self.answered and not self.disconnected:
            self.disconnected = True
            if self._held_head:
                self._wire.write(self._held_head)
            self._wire.broken_off(looks_complete=self.started and not self._chunked and self._bytes_left is None)
