"""What may be asked for: the endpoints that leave nothing behind, and those that share the upstream's account. Pure."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple
from urllib.parse import unquote

from gasket.proxy.errors import BadRequestError

PREFIX = b"/v1"
MODELS_ROUTE = "/v1/models"
OTHER_ROUTE = "other"

_STATELESS = frozenset(
    {
        b"/chat/completions",
        b"/completions",
        b"/embeddings",
        b"/responses",
        b"/moderations",
        b"/images/generations",
        b"/images/edits",
        b"/images/variations",
        b"/audio/speech",
        b"/audio/transcriptions",
        b"/audio/translations",
        b"/rerank",
    }
)
_FAMILIES = re.compile(rb"/(?:images|audio)/[a-z_-]+")
_STREAMS_CAN_TELL_USAGE = frozenset({b"/chat/completions", b"/completions"})
_ESTIMATED = _STREAMS_CAN_TELL_USAGE | {b"/embeddings", b"/responses"}
# Every byte of a path segment (RFC 3986, 3.3), except what could be read as another path: segments of dots; `;`, behind
# which some servers cut a segment off; and encoded, what needs no encoding (RFC 3986, 6.2.2.2: another way to write the
# same path), a slash, a backslash, `?`, `#`, `;`, or a control character.
_PLAIN = re.compile(
    rb"(?:/(?!\.{1,2}(?:/|$))"
    rb"(?:[A-Za-z0-9._~!$&'()*+,=:@-]"
    rb"|%(?!2[DEFdef3]|3[0-9BFbf]|4[1-9A-Fa-f]|5[0-9AaCcFf]|6[1-9A-Fa-f]|7[0-9AaEeFf]|[01])[0-9A-Fa-f]{2})+)+"
)


class Kind(Enum):
    """What an endpoint is about."""

    MODELS = "models"
    """The models, which the gateway answers for itself; so a model's name may have a slash, encoded or not."""
    STATELESS = "stateless"
    """One answer for one request; nothing of it is needed upstream afterwards."""
    STATEFUL = "stateful"
    """Whatever else the API has: it lives in the upstream's account."""


class Endpoint(NamedTuple):
    """Where a request goes. `path` is what follows `/v1`, as it came; of MODELS, decoded."""

    kind: Kind
    path: str
    asks_for_usage: bool = False
    """Whether a stream tells its usage when `stream_options` asks for it."""
    estimates_tokens: bool = False
    """Whether tokens are estimated where the answer does not tell them: of text, and not of pictures or sound."""


_KNOWN = {
    ("POST", path): Endpoint(
        Kind.STATELESS, path.decode(), path in _STREAMS_CAN_TELL_USAGE, estimates_tokens=path in _ESTIMATED
    )
    for path in _STATELESS
}

_ROUTES = {(method, path.decode()): f"/v1{path.decode()}" for method, path in _KNOWN}


def find_route(method: str, path: str) -> str:
    """Where a request goes, as a metric says it: one of a few, whatever was asked for. `path` is what follows `/v1`."""
    known = _ROUTES.get((method, path))
    if known is not None:
        return known
    models = method == "GET" and (path == "/models" or path.startswith("/models/"))
    return MODELS_ROUTE if models else OTHER_ROUTE


def find_endpoint(method: str, raw_path: bytes) -> Endpoint:
    """The endpoint of a request, by its path as it stands in the request line.

    Raises:
        BadRequestError: the path could mean two things.
    """
    path = raw_path[len(PREFIX) :]
    if (known := _KNOWN.get((method, path))) is not None:
        return known
    if method == "GET" and (path == b"/models" or path.startswith(b"/models/")):
        return Endpoint(Kind.MODELS, unquote(path.decode("latin-1")))
    if not _PLAIN.fullmatch(path):
        raise BadRequestError(
            "The path has no segment, an empty or dotted one, a `;`, or something encoded that should not be.",
            code="invalid_path",
        )
    stateless = method == "POST" and _FAMILIES.fullmatch(path)
    return Endpoint(Kind.STATELESS if stateless else Kind.STATEFUL, path.decode("ascii"))
