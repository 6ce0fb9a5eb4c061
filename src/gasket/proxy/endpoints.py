"""The endpoints: those that store nothing, and those that work on the upstream's account. Pure."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple
from urllib.parse import unquote

from gasket.server.errors import BadRequestError

PREFIX = b"/v1"
MODELS_ROUTE = "/v1/models"
OTHER_ROUTE = "other"

_FAMILIES = re.compile(rb"/(?:images|audio)/[a-z_-]+")
# Requests to these generate nothing: they store, or change and show what was stored. A batch is not metered, and a
# stored answer, which a change of it shows again, was metered when it was made.
_NOT_METERED = re.compile(
    r"/(?:assistants|batches|containers|evals|files|fine_tuning|models|organization|uploads|vector_stores)(?:/.*)?"
    r"|/messages/batches(?:/.*)?|/chat/completions/[^/]+|/threads/[^/]+/runs/[^/]+|.*/cancel"
)
# Every byte of a path segment (RFC 3986, 3.3), except what could be read as another path: segments of dots; `;`, behind
# which some servers cut a segment off; and encoded, what needs no encoding (RFC 3986, 6.2.2.2: another way to write the
# same path), a slash, a backslash, `?`, `#`, `;`, or a control character.
_PLAIN = re.compile(
    rb"(?:/(?!\.{1,2}(?:/|$))"
    rb"(?:[A-Za-z0-9._~!$&'()*+,=:@-]"
    rb"|%(?!2[DEFdef3]|3[0-9BFbf]|4[1-9A-Fa-f]|5[0-9AaCcFf]|6[1-9A-Fa-f]|7[0-9AaEeFf]|[01])[0-9A-Fa-f]{2})+)+"
)


class Kind(Enum):
    """The kind of an endpoint."""

    MODELS = "models"
    """The models, which the gateway answers for itself; so a model's name may have a slash, encoded or not."""
    STATELESS = "stateless"
    """One answer for one request; nothing of it is needed upstream afterwards."""
    STATEFUL = "stateful"
    """Everything else in the API: it works on what the upstream's account stores."""


class Endpoint(NamedTuple):
    """Where a request goes. `path` is what follows `/v1`, as it came; of MODELS, decoded."""

    kind: Kind
    path: str
    asks_for_usage: bool = False
    """Whether a stream tells its usage when `stream_options` asks for it."""
    estimates_tokens: bool = False
    """Whether tokens are estimated where the answer does not tell them: of text, and not of pictures or sound."""
    metered: bool = True
    """Whether what the answer says of its usage counts."""
    generates: bool = True
    """Whether there are tokens of the answer, not of the request alone."""
    tells_parts: bool = False
    """Whether several events of a stream each tell a part of its usage (Anthropic API reference, "Streaming")."""
    takes_body: bool = True


_STATELESS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("/chat/completions", {"asks_for_usage": True, "estimates_tokens": True}),
    ("/completions", {"asks_for_usage": True, "estimates_tokens": True}),
    ("/messages", {"estimates_tokens": True, "tells_parts": True}),
    ("/messages/count_tokens", {"metered": False}),
    ("/embeddings", {"estimates_tokens": True, "generates": False}),
    ("/responses", {"estimates_tokens": True}),
    ("/responses/compact", {"estimates_tokens": True}),
    ("/responses/input_tokens", {"metered": False}),
    ("/moderations", {"generates": False}),
    ("/images/generations", {}),
    ("/images/edits", {}),
    ("/images/variations", {}),
    ("/audio/speech", {}),
    ("/audio/transcriptions", {}),
    ("/audio/translations", {}),
    ("/rerank", {"generates": False}),
    ("/score", {"generates": False}),
    ("/classify", {"generates": False}),
    ("/pooling", {"generates": False}),
    ("/tokenize", {"metered": False}),
    ("/detokenize", {"metered": False}),
)
_LISTS = ("/audio/models", "/audio/voices")
_KNOWN = {("POST", path.encode()): Endpoint(Kind.STATELESS, path, **more) for path, more in _STATELESS} | {
    ("GET", path.encode()): Endpoint(Kind.STATELESS, path, metered=False, takes_body=False) for path in _LISTS
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
            "The path must not end in a slash, and must not have an empty segment, `.` or `..`, a `;`, or an encoded "
            "character that needs no encoding.",
            code="invalid_path",
        )
    name = path.decode("ascii")
    if method == "POST" and _FAMILIES.fullmatch(path):
        return Endpoint(Kind.STATELESS, name)
    return Endpoint(Kind.STATEFUL, name, metered=method == "POST" and _NOT_METERED.fullmatch(name) is None)


def speaks_anthropic(path: str) -> bool:
    """Whether the path, behind `/v1`, is of Anthropic's API."""
    return path == "/messages" or path.startswith("/messages/")
