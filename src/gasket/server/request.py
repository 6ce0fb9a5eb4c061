"""One request and its answer: the application's side is ASGI's (HTTP & WebSocket Message Format, 2.3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

log = logging.getLogger("gasket.server")

Application = Callable[[Any, Any, Any], Awaitable[None]]
Fields = list[tuple[bytes, bytes]]

_MOST_UNREAD = 64 * 1024
_BODILESS = (204, 304)
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_TOKEN = bytes(c for c in range(33, 127) if c not in b'"(),/:;<=>?@[\\]{}')
_VALUE = bytes(c for c in range(256) if c == 9 or (c >= 32 and c != 127))
"""Which bytes are allowed in a field's name and value (RFC 9110, 5.6.2 and 5.5)."""


def status_line(status: int) -> bytes:
    """The first line of an answer. A backend may have statuses of its own, which have no name."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


class Wire(Protocol):
    """What a request needs of its connection."""

    def write(self, data: bytes) -> None:
        """Send it, after what went before."""

    async def drained(self) -> None:
        """Wait until the client has read enough for more to be written."""

    def pause_reading(self) -> None:
        """Take no more from the client for now."""

    def resume_reading(self) -> None:
        """Take more."""

    def own_fields(self) -> Fields:
        """The fields that each answer of the server has."""

    def answered(self) -> None:
        """The answer is complete."""

    def broken_off(self, *, looks_whole: bool) -> None:
        """The answer stays as it is; `looks_whole`: nothing but an error on the connection tells the client so."""


class Request:
    """`run` has the application answer it. `keep_alive`: whether another one may follow on the connection."""

    __slots__ = (
        "_body",
        "_chunked",
        "_expects_continue",
        "_left",
        "_news",
        "_told",
        "_unread",
        "_wire",
        "answered",
        "bodiless",
        "disconnected",
        "keep_alive",
        "scope",
        "started",
        "whole",
    )

    def __init__(self, wire: Wire, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool) -> None:
        self._wire = wire
        self.scope = scope
        self.keep_alive = keep_alive
        self.whole = False
        self.started = False
        self.answered = False
        self.disconnected = False
        self.bodiless = False
        self._expects_continue = expects_continue
        self._body: list[bytes] = []
        self._unread = 0
        self._told = False
        self._news = asyncio.Event()
        self._chunked = False
        self._left: int | None = None
        """Bytes of the answer that are to come; None if it has no Content-Length."""

    async def run(self, application: Application) -> None:
        """Have it answered. An application that returns before its answer is complete has broken it off."""
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
                log.error("%s %s got no answer from the application", self.scope["method"], self.scope["path"])
                await self._fail()
            self._break_off()

    def take(self, body: bytes) -> None:
        """One more piece of the body."""
        self._body.append(body)
        self._unread += len(body)
        if self._unread > _MOST_UNREAD:
            self._wire.pause_reading()
        self._news.set()

    def end(self) -> None:
        """The body is complete."""
        self.whole = True
        self._news.set()

    def disconnect(self) -> None:
        """The client has gone."""
        self.disconnected = True
        self._news.set()

    async def receive(self) -> dict[str, Any]:
        """ASGI's: the next piece of the body; after the last one, wait for the end of the answer or of the client."""
        if self._expects_continue and not (self.started or self.disconnected):
            self._expects_continue = False
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._body or (self.whole and not self._told) or self.disconnected or self.answered):
            self._wire.resume_reading()
            self._news.clear()
            await self._news.wait()
        if self.disconnected or self.answered:
            return {"type": "http.disconnect"}
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._unread = 0
        self._told = self.whole
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    async def send(self, message: Mapping[str, Any]) -> None:
        """ASGI's.

        Raises:
            RuntimeError: it is out of turn, or would not be HTTP.
        """
        await self._wire.drained()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.started and kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif self.started and not self.answered and kind == "http.response.body":
            self._continue(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} is out of turn")

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
            else:  # which knows no chunks (RFC 9112, 6.1): the end of the connection is that of the answer
                keep_alive = False
        if self._expects_continue:  # nobody knows whether the body comes
            keep_alive = False
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self.started, self.keep_alive, self._left = True, keep_alive, left
        self._wire.write(b"".join(lines))

    def _continue(self, body: bytes, *, more: bool) -> None:
        if self.bodiless:
            pass
        elif self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._wire.write(chunk if more else chunk + b"0\r\n\r\n")
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the answer is not as long as its Content-Length")
            self._wire.write(body)
        if not more:
            self.answered = True
            self._news.set()
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
            self._wire.broken_off(looks_whole=self.started and not self._chunked and self._left is None)
