"""Requests whose URL is nearly right: the client's base URL lacks `/v1`, has it twice, or ends in a slash."""

from __future__ import annotations

import logging
import re
from typing import Any

from gasket.proxy.errors import WrongUrlError
from gasket.proxy.headers import Incoming, own_fields
from gasket.request_ids import new_request_id
from gasket.server.errors import GatewayError

log = logging.getLogger("gasket.gateway")

_OF_THE_API = re.compile(
    r"/(?:assistants|audio|batches|chat|classify|completions|conversations|detokenize|embeddings|files|fine_tuning|images"
    r"|messages|models|moderations|pooling|realtime|rerank|responses|score|threads|tokenize|uploads|vector_stores)(?:/|$)"
)
_SLASHES = re.compile("/{2,}")
_TWICE = re.compile("(?:/v1)+(?=/v1(?:/|$))")
_RULE = "The client's base URL has to end in /v1, once, with no slash behind it."


def find_mistake(path: str) -> str | None:
    """What to tell a client whose request came to this path, decoded; None if the path is not one of these kinds:

    `/v1//chat/completions`, `/v1/v1/chat/completions`, `//v1/chat/completions`, `/chat/completions`,
    `/openai/v1/chat/completions` and `/v1`.
    """
    plain = _SLASHES.sub("/", path)
    _, version, rest = _TWICE.sub("", plain).partition("/v1")
    below = bool(version) and rest[:1] in ("", "/")
    right = f"/v1{rest}" if below else f"/v1{plain}"
    if right == path and rest not in ("", "/"):
        return None
    if not below and not _OF_THE_API.match(plain):
        return None
    known = _OF_THE_API.match(right.removeprefix("/v1")) and right.isprintable() and len(right) <= 100
    return f"There is nothing at this path{f'; use {right}' if known else ''}. {_RULE}"


async def answer_misplaced(words: str, scope: Any, send: Any) -> None:
    """Answer a request that is not below `/v1` and was meant to be."""
    request_id, client_request_id = new_request_id(), None
    error: GatewayError = WrongUrlError(words)
    try:
        client_request_id = Incoming(scope["headers"]).request_id
    except GatewayError as wrong:
        error = wrong
    client = scope.get("client")
    log.info("%s of %s has the wrong URL (request id %s)", scope["method"], client and client[0], request_id)
    fields = error.headers() + own_fields(request_id, client_request_id)
    await send({"type": "http.response.start", "status": error.status, "headers": fields})
    await send({"type": "http.response.body", "body": error.body()})
