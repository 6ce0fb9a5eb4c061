"""Which header fields go through (RFC 9110, 7.6.1), and what Gasket itself reads of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from gasket.access.bearers import JWT_PREFIX
from gasket.request_ids import checked_request_id
from gasket.server.errors import BadRequestError, EncodedRequestError
from gasket.upstream.connection import Fields
from gasket.usage.entry import LONGEST_TEXT

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
    b"content_type",
}
"""Fields that make it another request for some servers: another method, path, or, with `_` as in CGI, body."""
_KEY_FIELDS = (b"authorization", b"x-api-key", b"api-key")
"""Where clients put their key: OpenAI's, Anthropic's and Azure's."""
_ABOUT_A_PERSON = {
    b"client-ip",
    b"cookie",
    b"fastly-client-ip",
    b"fly-client-ip",
    b"forwarded",
    b"from",
    b"helicone-user-id",
    b"proxy-client-ip",
    b"true-client-ip",
    b"wl-proxy-client-ip",
    b"x-auth-email",
    b"x-auth-user",
    b"x-auth-username",
    b"x-authenticated-user",
    b"x-azure-clientip",
    b"x-azure-socketip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-email",
    b"x-end-user",
    b"x-end-user-id",
    b"x-envoy-external-address",
    b"x-forwarded",
    b"x-jwt-assertion",
    b"x-litellm-customer-id",
    b"x-litellm-end-user-id",
    b"x-nf-client-connection-ip",
    b"x-original-forwarded-for",
    b"x-originating-ip",
    b"x-proxyuser-ip",
    b"x-real-ip",
}
_ABOUT_A_PERSON_PREFIXES = (
    b"cf-",
    b"remote-",
    b"ssl-client-",
    b"tailscale-user-",
    b"x-amzn-oidc-",
    b"x-appengine-",
    b"x-auth-request-",
    b"x-authentik-",
    b"x-client-cert",
    b"x-consumer-",
    b"x-forwarded-",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-librechat-",
    b"x-ms-client-principal",
    b"x-openwebui-",
    b"x-pomerium-",
    b"x-remote-",
    b"x-ssl-client-",
    b"x-user",
    b"x-vercel-forwarded-",
    b"x-vercel-ip-",
    b"x-vouch-",
    b"x-webauth-",
)
"""Fields in which chat interfaces and proxies in front of Gasket name a person."""
_NOT_UPSTREAM = (
    HOP_BY_HOP
    | _OTHER_REQUEST
    | _ABOUT_A_PERSON
    | {
        *_KEY_FIELDS,
        b"accept-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"via",
        b"x-goog-api-key",
        b"x-request-id",
    }
)
_DOWNSTREAM = {
    b"accept-ranges",
    b"age",
    b"cache-control",
    b"content-disposition",
    b"content-encoding",
    b"content-language",
    b"content-length",
    b"content-range",
    b"content-type",
    b"etag",
    b"expires",
    b"last-modified",
    b"request-id",
    b"vary",
    b"x-request-id",
    b"x-should-retry",
}
_DOWNSTREAM_PREFIXES = (b"retry-after", b"x-ratelimit-", b"openai-", b"anthropic-")
"""Fields that pass from a backend to a client. Others could command the proxy in front of Gasket, as
`X-Accel-Redirect` does, or the browser."""
_WEIGHT_OF_ZERO = re.compile(rb"q\s*=\s*0(?:\.0*)?")
KEY_SHAPE = re.compile(rb"gsk_[0-9a-f]{48}")
_LENGTH_DIGITS = 18
_LONGEST_REMEMBERED = 64


class Incoming:
    """A request's header fields: those that go on to the backend, and those that the gateway reads itself."""

    __slots__ = ("accepted_codings", "content_type", "key", "length", "request_id", "upstream", "via")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Read ASGI's fields, whose names are in lower case. `key` is empty where there is none.

        Raises:
            BadRequestError: Content-Length together with Transfer-Encoding (RFC 9112, 6.1), or no number, or repeated;
                or Content-Type or the key repeated, of which the backend might believe another one.
            EncodedRequestError: the body is compressed.
        """
        self.accepted_codings = b""
        self.content_type = b""
        self.length: int | None = None
        self.request_id: str | None = None
        self.upstream: Fields = []
        self.via: list[bytes] = []
        chunked, named = False, b""
        credentials: dict[bytes, bytes] = {}
        for name, value in fields:
            if name not in _NOT_UPSTREAM:
                withheld = _is_withheld(name) if len(name) <= _LONGEST_REMEMBERED else _names_a_person(name)
                if withheld or (b"gsk_" in value and KEY_SHAPE.search(value)):
                    continue
                if name == b"content-type":
                    if self.content_type:
                        raise BadRequestError("There is more than one Content-Type.", code="invalid_headers")
                    self.content_type = value
                elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                    raise EncodedRequestError
                self.upstream.append((name, value))
            elif name in _KEY_FIELDS:
                if name in credentials:  # the next server might take the other one
                    raise BadRequestError(f"{name.decode().title()} is given more than once.", code="invalid_headers")
                credentials[name] = value
            elif name == b"content-length":
                self.length = _length(value, self.length)
            elif name == b"transfer-encoding":
                chunked = True
            elif name == b"connection":
                named += b"," + value
            elif name == b"x-request-id":
                self.request_id = checked_request_id(value)
            elif name == b"via":
                self.via.append(value)
            elif name == b"accept-encoding":
                self.accepted_codings += b"," + value
        self.key = _find_key(credentials)
        if chunked and self.length is not None:
            raise BadRequestError("Content-Length and Transfer-Encoding exclude each other.", code="invalid_headers")
        if named and (tokens := _tokens(named)):
            self.upstream = [(name, value) for name, value in self.upstream if name not in tokens]
            if b"x-request-id" in tokens:
                self.request_id = None
        if self.request_id is not None:
            self.upstream.append((b"x-request-id", self.request_id.encode("ascii")))
        self.upstream += [(b"via", value) for value in self.via]
        self.upstream.append((b"accept-encoding", b"identity"))

    def take_end_user(self, fields: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
        """The value of this field, if it is no key, of all `fields` of the request; it does not pass to the backend."""
        self.upstream = [field for field in self.upstream if field[0] != name]
        value = next((value for other, value in fields if other == name), b"").strip()
        if not value or KEY_SHAPE.search(value):
            return None
        return value.decode("utf-8", "replace")[:LONGEST_TEXT]  # records wait in memory

    def passed_through(self, pseudonym: bytes) -> bool:
        """Whether the request has been at the gateway of that name before (RFC 9110, 7.6.3)."""
        return bool(self.via and pseudonym) and any(pseudonym in value for value in self.via)


def downstream(
    fields: Iterable[tuple[bytes, bytes]],
    *,
    request_id: str,
    client_request_id: str | None,
    more: Sequence[bytes] = (),
) -> Fields:
    """A backend's fields, names in lower case, as the client gets them, with our id; what repeats stays.

    `more` are names that pass beside the usual ones.
    """
    kept: Fields = []
    named = b""
    has_request_id = False
    for name, value in fields:
        if name in _DOWNSTREAM or name.startswith(_DOWNSTREAM_PREFIXES) or name in more:
            kept.append((name, value))
            has_request_id = has_request_id or name == b"x-request-id"
        elif name == b"connection":
            named += b"," + value
    if named and (tokens := _tokens(named)):
        kept = [(name, value) for name, value in kept if name not in tokens]
        has_request_id = has_request_id and b"x-request-id" not in tokens
    kept.append((b"x-gasket-request-id", request_id.encode()))
    if client_request_id is not None and not has_request_id:
        kept.append((b"x-request-id", client_request_id.encode()))
    return kept


def accepts(accepted_codings: bytes, coding: bytes) -> bool:
    """Whether a client that sent this Accept-Encoding can read the content coding (RFC 9110, 12.5.3).

    The RFC lets a client that sent none get any coding. In fact such a client decodes nothing, so it can read none.
    """
    weights = {}
    for entry in accepted_codings.lower().split(b","):
        name, _, weight = entry.partition(b";")
        weights[name.strip()] = not _WEIGHT_OF_ZERO.fullmatch(weight.strip())
    return weights.get(coding, weights.get(b"*", False))


def asks_for_websocket(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a GET is the handshake of a WebSocket (RFC 6455, 4.1). The server has dropped Upgrade itself."""
    return any(name == b"sec-websocket-key" for name, _ in fields)


def own_fields(request_id: str, client_request_id: str | None) -> Fields:
    """The fields of every answer of the gateway's own: our id, and as `x-request-id` the client's, else ours too."""
    return [
        (b"x-gasket-request-id", request_id.encode()),
        (b"x-request-id", (client_request_id or request_id).encode()),
    ]


def bearer(authorization: bytes | None) -> bytes:
    """The token of `Authorization: Bearer <token>` (RFC 6750, 2.1); empty if there is none."""
    scheme, _, token = (authorization or b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _names_a_person(name: bytes) -> bool:
    """Whether a field that is not in `_NOT_UPSTREAM` names a person, or becomes one of those fields in a server that
    takes `_` for `-` (as CGI does: RFC 3875, 4.1.18).
    """
    if b"_" in name:
        name = name.replace(b"_", b"-")
        if name in _NOT_UPSTREAM:
            return True
    return name.startswith(_ABOUT_A_PERSON_PREFIXES)


_is_withheld = lru_cache(maxsize=1000)(_names_a_person)
"""The same for short names. Clients send the same ones each time, and to compare one with forty prefixes takes 1 us."""


def _find_key(credentials: Mapping[bytes, bytes]) -> bytes:
    """The key among what the client sent: clients of several APIs fill in more than one field, and not all with ours.

    Raises:
        BadRequestError: there are two different keys of ours.
    """
    if len(credentials) == 1 and (authorization := credentials.get(b"authorization")) is not None:
        return bearer(authorization)  # of nearly every request
    given = [
        bearer(value) if name == b"authorization" else value.strip() for name, value in sorted(credentials.items())
    ]
    keys = {key for key in given if KEY_SHAPE.fullmatch(key)}
    if len(keys) > 1:
        raise BadRequestError("Two different API keys are given.", code="invalid_headers")
    if keys:
        return keys.pop()
    signed = next((token for token in given if token.startswith(JWT_PREFIX)), None)
    return signed or next(filter(None, given), b"")


def _tokens(named: bytes) -> set[bytes]:
    """The fields that Connection names."""
    if named in (b"", b",keep-alive", b",close"):
        return set()
    return {token.strip().lower() for token in named.split(b",")}


def _length(value: bytes, before: int | None) -> int:
    if before is not None or not value.isdigit() or len(value) > _LENGTH_DIGITS:
        raise BadRequestError("Content-Length is not one number.", code="invalid_headers")
    return int(value)
