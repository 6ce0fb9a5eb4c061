"""Bytes to requests (RFC 9112), with httptools. Reading with care is here; what to do with a request is not."""

from __future__ import annotations

import logging
import re
from typing import Any, NamedTuple, Protocol

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)

from gasket.proxy.errors import BadRequestError, EncodedRequestError, GatewayError, HeadTooLargeError
from gasket.server.connections import LARGEST_HEAD
from gasket.server.request import Fields

log = logging.getLogger("gasket.server")

_GATEWAY = re.compile(rb"(?i:https?://[^/?#]*)?/v1/")
"""A target below `/v1`, in origin-form or absolute-form (RFC 9112, 3.2)."""
_FIELD_WORDS = re.compile("header|Content-Length|Transfer-Encoding")
"""What httptools' message has if it is about a field: nothing else tells it from one about the first line."""


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

    def on_end(self, *, keep_alive: bool) -> None:
        """It is complete. A trailer may have said that no other one follows."""


class SentAheadError(Exception):
    """A request begins before the one before it is done with: nothing more is looked at."""


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
        self._hosts = 0
        self._codings: list[bytes] = []
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

    @property
    def for_gateway(self) -> bool:
        """Whether it is one below `/v1`."""
        return _GATEWAY.match(self.url) is not None

    def forget(self) -> None:
        """The connection is gone; parser and receiver hold on to each other."""
        self._parser = None

    def on_message_begin(self) -> None:
        if self._receiver.busy:
            raise SentAheadError  # ends the parsing
        self._in_head = True
        self.pending = self.pending or 1  # what it begins with may be the rest of what ended the one before
        self.url = b""
        self._fields = []
        self._expects_continue = False
        self._hosts = 0
        self._codings = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer's
            name = name.lower()
            if name == b"expect":
                self._expects_continue = value.lower() == b"100-continue"
            elif name == b"host":
                self._hosts += 1
            elif name == b"transfer-encoding":
                self._codings.append(value.strip().lower())
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
        new = version == "1.1"
        if self._hosts > 1 or (new and not self._hosts):  # RFC 9112, 3.2
            raise BadRequestError("There must be one Host field.", code="invalid_headers")
        if self._codings and self._codings != [b"chunked"]:
            raise self._not_decoded()
        url = parse_url(self.url)
        self._in_head = False
        self.pending = 0
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
            self._receiver.on_end(keep_alive=self._parser.should_keep_alive())

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            return
        except HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except HttpParserError as error:
            raise _reason(error) from None
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

    def _not_decoded(self) -> GatewayError:
        """httptools takes the chunks apart and nothing else. Without them the body has no end (RFC 9112, 6.3)."""
        if b",".join(self._codings).rpartition(b",")[2].strip() != b"chunked":
            return BadRequestError("Transfer-Encoding does not end in chunked.", code="invalid_headers")
        return EncodedRequestError("Transfer-Encoding can only be chunked.")

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self._fields)


def _reason(error: HttpParserError) -> GatewayError:
    """What to tell the client of bytes that are no request; what a callback was not meant to raise is our fault."""
    what, cause = str(error), error.__context__
    if isinstance(cause, GatewayError):
        return cause
    if isinstance(cause, HttpParserInvalidURLError):
        what = "the target is no URL"
    elif isinstance(error, HttpParserCallbackError) and not isinstance(cause, SentAheadError):
        log.error("reading a request failed", exc_info=cause)
        return GatewayError("Reading the request failed.")
    code = "invalid_headers" if _FIELD_WORDS.search(what) else "invalid_http"
    return BadRequestError(f"This is not HTTP: {what}.", code=code)
