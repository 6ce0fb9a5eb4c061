"""Bytes to requests (RFC 9112), with httptools. Reading with care is here; what to do with a request is not."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Protocol

from httptools import (
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)

from gasket.proxy.errors import BadRequestError, GatewayError, HeadTooLargeError
from gasket.server.connections import LARGEST_HEAD
from gasket.server.request import Fields

log = logging.getLogger("gasket.server")


class Head(NamedTuple):
    """A request's first line and fields."""

    method: str
    raw_path: bytes
    query: bytes
    version: str
    """1.0 or 1.1"""
    fields: Fields
    """Names in lower case."""
    keep_alive: bool
    expects_continue: bool


class Receiver(Protocol):
    """Whom a parser tells."""

    @property
    def busy(self) -> bool:
        """Whether there is a request already, so that another one is not to be begun."""

    def on_head(self, head: Head) -> None:
        """A request begins."""

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""

    def on_end(self) -> None:
        """It is complete."""


class RequestParser:
    """What one client sends. `url` is that of the last request, as far as it has come.

    The methods that begin with `on_` are called by httptools.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._parser: Any = HttpRequestParser(self)
        self._in_head = False
        self._fields: Fields = []
        self._expects_continue = False
        self.url = b""
        self.pending = 0
        """Bytes that have come since there was something to tell: of a head, or of a trailer."""

    def feed(self, data: bytes) -> None:
        """What has come.

        Raises:
            GatewayError: it is no request, or has a head that is too large. Nothing may follow.
        """
        self.pending += len(data)
        self._feed(data)
        if self.pending > LARGEST_HEAD:
            raise HeadTooLargeError

    def forget(self) -> None:
        """The connection is gone; parser and receiver hold on to each other."""
        self._parser = None

    def on_message_begin(self) -> None:
        if self._receiver.busy:
            raise ValueError("sent ahead")  # ends the parsing
        self._in_head = True
        self.url = b""
        self._fields = []
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer's
            name = name.lower()
            if name == b"expect":
                self._expects_continue = value.lower() == b"100-continue"
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return  # `_feed` begins again
        if self.pending > LARGEST_HEAD and self._head_size() > LARGEST_HEAD:
            raise HeadTooLargeError
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise BadRequestError(f"HTTP/{version} is not spoken here, HTTP/1.1 is.", code="invalid_http")
        url = parse_url(self.url)
        self._in_head = False
        self.pending = 0
        new = version == "1.1"
        self._receiver.on_head(
            Head(
                parser.get_method().decode("ascii"),
                url.path or b"/",
                url.query or b"",
                version,
                self._fields,
                keep_alive=new and parser.should_keep_alive(),
                expects_continue=new and self._expects_continue,
            )
        )

    def on_body(self, body: bytes) -> None:
        self.pending = 0
        self._receiver.on_body(body)

    def on_message_complete(self) -> None:
        if not self._in_head:  # else the head asks for an upgrade
            self.pending = 0
            self._receiver.on_end()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            return
        except HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except HttpParserError as error:
            raise _reason(error, in_head=bool(self.url)) from None
        self._feed_without_upgrade(rest)

    def _feed_without_upgrade(self, rest: bytes) -> None:
        """The head once more, as if the client had not asked. `Connection` still names what goes no further."""
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT":
            raise BadRequestError("This server opens no tunnels.", code="invalid_http")
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % field for field in self._fields if field[0] != b"upgrade"]
        self._parser = HttpRequestParser(self)
        self._feed(b"\r\n".join([*lines, b"", rest]))

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self._fields)


def _reason(error: HttpParserError, *, in_head: bool) -> GatewayError:
    """What to tell the client of bytes that are no request."""
    cause = error.__context__
    if isinstance(cause, GatewayError):
        return cause
    if cause is not None and not isinstance(cause, HttpParserInvalidURLError | ValueError):
        log.error("reading a request failed", exc_info=cause)
    code = "invalid_headers" if in_head and cause is None else "invalid_http"
    return BadRequestError(f"This is not HTTP: {error}.", code=code)
