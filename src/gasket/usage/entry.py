"""What is recorded of one request, and the form in which PostgreSQL takes it for certain."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import structs

LONGEST_TEXT = 200
"""Characters that are kept of a model's name or a path: both are the client's to choose."""

MOST_TOKENS = 10**9
"""More than this no request has; an upstream that says so must not make the totals run over."""


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request below `/v1`, its fields as the columns of `usage_records`. `request_id` is ours, of version 7."""

    request_id: str
    started_at: datetime
    key_id: int
    user_email: str
    profile_id: int
    backend_id: int | None
    model: str | None
    path: str
    status: int
    outcome: str
    first_byte_ms: float | None
    duration_ms: float
    bytes_in: int
    bytes_out: int
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    retries: int


def storable(entry: UsageEntry) -> UsageEntry:
    """The entry with what a client or an upstream makes up cut to size; mostly there is nothing to cut."""
    made_up = (entry.model, entry.path, entry.prompt_tokens, entry.completion_tokens)
    model = None if entry.model is None else _text(entry.model)
    fitting = (model, _text(entry.path), _tokens(entry.prompt_tokens), _tokens(entry.completion_tokens))
    if fitting == made_up:
        return entry
    model, path, prompt_tokens, completion_tokens = fitting
    return structs.replace(
        entry, model=model, path=path, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
    )


def _text(text: str) -> str:
    """PostgreSQL takes neither U+0000 nor lone surrogates."""
    text = text[:LONGEST_TEXT]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _tokens(number: int) -> int:
    return min(max(number, 0), MOST_TOKENS)
