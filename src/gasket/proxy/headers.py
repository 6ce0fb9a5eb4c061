"""Which header fields go through (RFC 9110, 7.6.1), and what Gasket itself reads of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gasket.proxy.errors import BadRequestError, EncodedRequestError
from gasket.upstream.connection import Fields

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-authenticate",
        b"proxy-authorization",
    }
)
"""Fields that are about one connection and never travel further."""

_OTHER_REQUEST = {
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    b"x-original-url",
    b"x-rewrite-url",
    b"content_encoding",
    b"content_length",
    b"content_type",
    b"transfer_encoding",
}
"""What makes another request of it for some servers: another method, path, or, with `_` as in CGI, another body."""
_NOT_UPSTREAM = (
    HOP_BY_HOP
    | _OTHER_REQUEST
    | {
        b"host",
        b"authorization",
        b"content-length",
        b"accept-encoding",
        b"cookie",
        b"expect",
        b"forwarded",
        b"x-real-ip",
        b"x-request-id",
    }
)
# The server puts its own Date and Server in front of every answer; a backend that is a Gasket has an id of its own.
_NOT_DOWNSTREAM = HOP_BY_HOP | {b"set-cookie", b"date", b"server", b"x-gasket-request-id"}
_REQUEST_ID_LENGTH = 128
_LENGTH_DIGITS = 18


class Incoming:
    """A request's header fields: what goes on to the backend, and what the gateway looks at itself."""

    __slots__ = ("authorization", "content_type", "length", "request_id", "upstream")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Read ASGI's fields, whose names are in lower case.

        Raises:
            BadRequestError: Content-Length together with Transfer-Encoding (RFC 9112, 6.1), or no number, or repeated;
                or Content-Type or Authorization repeated, of which the backend might believe another one.
            EncodedRequestError: the body is compressed.
        """
        self.authorization: bytes | None = None
        self.content_type = b""
        self.length: int | None = None
        self.request_id: str | None = None
        self.upstream: Fields = []
        chunked, named = False, b""
        for name, value in fields:
            if name not in _NOT_UPSTREAM:
                if name.startswith(b"x-forwarded-"):
                    continue
                if name == b"content-type":
                    if self.content_type:
                        raise BadRequestError("There is more than one Content-Type.", code="invalid_headers")
                    self.content_type = value
                elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                    raise EncodedRequestError
                self.upstream.append((name, value))
            elif name == b"authorization":
                if self.authorization is not None:  # the next server might take the other one
                    raise BadRequestError("Authorization is given more than once.", code="invalid_headers")
                self.authorization = value
            elif name == b"content-length":
                self.length = _length(value, self.length)
            elif name == b"transfer-encoding":
                chunked = True
            elif name == b"connection":
                named += b"," + value
            elif name == b"x-request-id":
                self.request_id = _checked_request_id(value)
        if chunked and self.length is not None:
            raise BadRequestError("Content-Length and Transfer-Encoding exclude each other.", code="invalid_headers")
        if tokens := _tokens(named):
            self.upstream = [(name, value) for name, value in self.upstream if name not in tokens]
            if b"x-request-id" in tokens:
                self.request_id = None
        if self.request_id is not None:
            self.upstream.append((b"x-request-id", self.request_id.encode("ascii")))
        self.upstream.append((b"accept-encoding", b"identity"))


def downstream(fields: Iterable[tuple[bytes, bytes]], *, request_id: str, client_request_id: str | None) -> Fields:
    """A backend's fields, names in lower case, as the client gets them, with our id; what repeats stays."""
    kept: Fields = []
    named = b""
    has_request_id = False
    for name, value in fields:
        if name not in _NOT_DOWNSTREAM:
            kept.append((name, value))
            has_request_id = has_request_id or name == b"x-request-id"
        elif name == b"connection":
            named += b"," + value
    if tokens := _tokens(named):
        kept = [(name, value) for name, value in kept if name not in tokens]
        has_request_id = has_request_id and b"x-request-id" not in tokens
    return kept + own_fields(request_id, None if has_request_id else client_request_id)


def own_fields(request_id: str, client_request_id: str | None) -> Fields:
    """What every answer of the gateway bears: our id, and the client's."""
    fields = [(b"x-gasket-request-id", request_id.encode())]
    if client_request_id is not None:
        fields.append((b"x-request-id", client_request_id.encode()))
    return fields


def bearer(authorization: bytes | None) -> bytes:
    """The token of `Authorization: Bearer <token>` (RFC 6750, 2.1); empty if there is none."""
    scheme, _, token = (authorization or b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _tokens(named: bytes) -> set[bytes]:
    """The fields that Connection names."""
    if named in (b"", b",keep-alive", b",close"):
        return set()
    return {token.strip().lower() for token in named.split(b",")}


def _length(value: bytes, before: int | None) -> int:
    if before is not None or not value.isdigit() or len(value) > _LENGTH_DIGITS:
        raise BadRequestError("Content-Length is not one number.", code="invalid_headers")
    return int(value)


def _checked_request_id(value: bytes) -> str | None:
    """A client's id is shown and passed on, so it must be short and printable; any other is ignored."""
    if 0 < len(value) <= _REQUEST_ID_LENGTH and value.isascii() and value.decode("ascii").isprintable():
        return value.decode("ascii")
    return None
