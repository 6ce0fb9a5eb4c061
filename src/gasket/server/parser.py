"""Parses bytes into requests (RFC 9112), with httptools. It knows nothing of answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)

from gasket.server.connections import LARGEST_HEAD
from gasket.server.errors import (
    BadRequestError,
    EncodedRequestError,
    GatewayError,
    HeadTooLargeError,
    TargetTooLongError,
)
from gasket.server.framing import Framing
from gasket.server.request import Fields

log = logging.getLogger("gasket.server")

_GATEWAY = re.compile(rb"(?i:https?://[^/?#]*)?/v1/")
"""A target below `/v1`, in origin-form or absolute-form (RFC 9112, 3.2)."""
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!\"$-~]+ HTTP/\d\.\d\r\n")
"""RFC 9112, 3: llhttp also takes several blanks, and the protocols of other servers (`SOURCE /x ICE/1.0`)."""
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\d*)?")
"""Host, and the authority of an absolute-form (RFC 9110, 7.2 and 4.2.4; RFC 3986, 3.2.2): without a user's name."""
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)")
_SLICE = 8 * 1024
"""Bytes of a head or of chunks that are parsed at once: chunks of two bytes take a tenth of a millisecond."""
_MOST_PIECES = 256
"""Pieces of a body after which the event loop gets a turn."""
_LONGEST_TARGET = 8 * 1024
"""Bytes; whoever looks at a path looks at each byte of it. RFC 9112, 3, recommends to support 8,000."""
_MOST_FIELDS = 256
"""Fields of a head, or of a trailer: each costs a call, and 64 KiB have room for 16,000."""
_LINE_ENDS = (b"\r", b"\n")
_BLANKS = (b" ", b"\t")
_FIELD_WORDS = re.compile("header|Content-Length|Transfer-Encoding")
"""Words in httptools' messages about header fields. Nothing else tells them from messages about the first line."""


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
    """Gets what a parser finds."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way, so that no other one may begin."""

    def on_head(self, head: Head) -> None:
        """A request begins."""

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""

    def on_end(self, *, keep_alive: bool) -> None:
        """The request is complete. `keep_alive` is false if its trailer says that no other one follows."""


class SentAheadError(Exception):
    """A request begins before the one before it has its answer; ends the parsing."""


class RequestParser:
    """Parses the bytes of one client. `url` is that of the last request, as far as it has arrived.

    httptools calls the methods that begin with `on_`.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._parser: Any = HttpRequestParser(self)
        self._in_head = False
        self._fields: Fields = []
        self._expects_continue = False
        self._hosts: list[bytes] = []
        self._codings: list[bytes] = []
        self._line = b""
        self._line_complete = False
        self._good_line = b""
        self._good_hosts: list[bytes] = []
        """Those of the last request, which a connection's next request often repeats: they are good."""
        self._parsed_url = b"", b"", b""
        """The last request's URL, its path and its query."""
        self._trailers = 0
        self._framing = Framing()
        self.url = b""
        self.pending = 0
        """Bytes of the head or trailer that is not complete yet."""

    def feed(self, data: bytes) -> bytes:
        """Parse these bytes, as far as one turn of the event loop goes; feed the rest, which is returned, in the next.

        Raises:
            GatewayError: they are not a request, or too much beside its payload. Do not feed more after that.
        """
        if len(data) <= _SLICE:
            self._feed_slice(data)
            return b""
        framing = self._framing
        pieces = framing.pieces
        start, size = 0, len(data)
        while start < size and framing.pieces - pieces <= _MOST_PIECES:
            plain_body = self._line_complete and not (self._in_head or framing.chunked)
            end = size if plain_body else start + _SLICE
            self._feed_slice(data[start:end])
            start = end
        return data[start:]

    def _feed_slice(self, data: bytes) -> None:
        if not self._line_complete:
            self._take_line(data)
        in_chunks = self._framing.chunked
        self.pending += len(data)
        self._feed(data)
        if self.pending > LARGEST_HEAD:
            raise HeadTooLargeError
        if self._in_head and len(self._fields) > _MOST_FIELDS:
            raise _too_many_fields()
        if in_chunks and self._framing.chunked:
            self._framing.check(len(data))

    def _take_line(self, data: bytes) -> None:
        """Keep the bytes of the first line: llhttp does not tell how it was written."""
        if self._line or data[:1] in _LINE_ENDS:
            data = (self._line + data).lstrip(b"\r\n")
        end = data.find(b"\n") + 1
        self._line, self._line_complete = data[:end] or data, end > 0

    @property
    def for_gateway(self) -> bool:
        """Whether the request is below `/v1`."""
        return _GATEWAY.match(self.url) is not None

    def forget(self) -> None:
        """The connection is gone: break the reference cycles, so that no garbage collection is waited for."""
        self._parser = None
        del self._receiver

    def on_message_begin(self) -> None:
        if self._receiver.busy:
            raise SentAheadError
        self._in_head = True
        self.pending = self.pending or 1  # it may begin in the same bytes in which the request before ended
        self.url = b""
        self._fields = []
        self._expects_continue = False
        self._hosts = []
        self._codings = []
        self._trailers = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._trailers += 1
            if self._trailers > _MOST_FIELDS:
                raise HeadTooLargeError(f"The body has more than {_MOST_FIELDS} trailer fields.")
            return
        name = name.lower()
        if value[-1:] in _BLANKS:  # llhttp leaves out those before it
            value = value.rstrip(b" \t")
        if name == b"expect":
            self._expects_continue = value.lower() == b"100-continue"
        elif name == b"host":
            self._hosts.append(value)
        elif name == b"transfer-encoding":
            self._codings.append(value.lower())
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if self._line != self._good_line:
            if not _REQUEST_LINE.fullmatch(self._line):
                words = "The first line is not a method, a target and HTTP/1.1, with one blank between them."
                raise BadRequestError(words, code="invalid_http")
            self._good_line = self._line
        if len(self._fields) > _MOST_FIELDS:
            raise _too_many_fields()
        if len(self.url) > _LONGEST_TARGET:
            raise TargetTooLongError
        if parser.should_upgrade():
            return  # `_feed` parses the head again without it
        if self.pending > LARGEST_HEAD and self._head_size() > LARGEST_HEAD:
            raise HeadTooLargeError
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise BadRequestError(f"HTTP/{version} is not supported; use HTTP/1.1.", code="invalid_http")
        new = version == "1.1"
        if len(self._hosts) > 1 or (new and not self._hosts):  # RFC 9112, 3.2
            raise BadRequestError("The request must have one Host field.", code="invalid_headers")
        if self._hosts != self._good_hosts:
            _check_authorities(self._hosts)
            self._good_hosts = self._hosts
        if self.url[:1] != b"/" and (absolute := _ABSOLUTE.match(self.url)):
            _check_authorities(absolute.groups())
        if self._codings and self._codings != [b"chunked"]:
            raise self._not_decoded()
        if self.url != self._parsed_url[0]:
            url = parse_url(self.url)
            self._parsed_url = self.url, url.path or b"/", url.query or b""
        _, path, query = self._parsed_url
        self._in_head = False
        if self._codings:
            self._framing.begin()
        self.pending = 0
        self._receiver.on_head(
            Head(
                parser.get_method().decode("ascii"),
                path,
                query,
                version,
                self._fields,
                keep_alive=new and parser.should_keep_alive(),
                expects_continue=new and self._expects_continue,
            )
        )

    def on_body(self, body: bytes) -> None:
        self.pending = 0
        framing = self._framing
        if framing.chunked:
            framing.payload += len(body)
            framing.pieces += 1
        self._receiver.on_body(body)

    def on_message_complete(self) -> None:
        if not self._in_head:  # a head with Upgrade ends the message, too
            self.pending = 0
            self._line, self._line_complete = b"", False
            self._framing.chunked = False
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
        """Parse the head again without `Upgrade`. `Connection` stays: it also names fields that must not pass on."""
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT":
            raise BadRequestError("CONNECT is not supported.", code="invalid_http")
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % field for field in self._fields if field[0] != b"upgrade"]
        self._parser = HttpRequestParser(self)
        self._feed(b"\r\n".join([*lines, b"", rest]))

    def _not_decoded(self) -> GatewayError:
        """httptools decodes `chunked` and no other coding. Without it the body has no end (RFC 9112, 6.3)."""
        if b",".join(self._codings).rpartition(b",")[2].strip() != b"chunked":
            return BadRequestError("Transfer-Encoding must end in chunked.", code="invalid_headers")
        return EncodedRequestError("Transfer-Encoding must be chunked alone.")

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self._fields)


def _check_authorities(authorities: Iterable[bytes]) -> None:
    if not all(_AUTHORITY.fullmatch(authority) for authority in authorities):
        raise BadRequestError("Host must be a host's name or address, and a port.", code="invalid_headers")


def _too_many_fields() -> HeadTooLargeError:
    return HeadTooLargeError(f"The request has more than {_MOST_FIELDS} header fields.")


def _reason(error: HttpParserError) -> GatewayError:
    """The client's error for bytes that are not a request. An unexpected exception of a callback is a fault of ours."""
    what, cause = str(error), error.__context__
    if isinstance(cause, GatewayError):
        return cause
    if isinstance(cause, HttpParserInvalidURLError):
        what = "the request target is not a URL"
    elif isinstance(error, HttpParserCallbackError) and not isinstance(cause, SentAheadError):
        log.error("reading a request failed", exc_info=cause)
        return GatewayError("Reading the request failed.")
    code = "invalid_headers" if _FIELD_WORDS.search(what) else "invalid_http"
    return BadRequestError(f"This is not HTTP: {what}.", code=code)
