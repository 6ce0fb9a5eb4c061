"""The record of one request, and how its texts are made storable for PostgreSQL."""

from __future__ import annotations

from datetime import datetime
from operator import attrgetter

import msgspec
from msgspec import structs

LONGEST_TEXT = 200
"""Characters that are kept of a model's name, a path or an end user: all are the client's to choose."""

MOST_TOKENS = 10**9
"""More than this no request has; an upstream that says so must not make the totals run over."""

_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "audio_tokens")


class UsageEntry(msgspec.Struct, frozen=True, gc=False):
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
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    end_user: str | None = None


def storable(entry: UsageEntry) -> UsageEntry:
    """The entry with what a client or an upstream makes up cut to size; mostly there is nothing to cut."""
    texts = f"{entry.path}{entry.model}{entry.end_user}"  # one look at all is quicker than one at each
    if len(texts) <= LONGEST_TEXT and texts.isascii() and "\0" not in texts:
        counts = _counts(entry)
        if min(counts) >= 0 and max(counts) <= MOST_TOKENS:
            return entry
    tokens = {name: min(max(number, 0), MOST_TOKENS) for name in _TOKENS if _cannot_be(number := getattr(entry, name))}
    model = None if entry.model is None else _text(entry.model)
    path = _text(entry.path)
    end_user = None if entry.end_user is None else _text(entry.end_user)
    return structs.replace(entry, model=model, path=path, end_user=end_user, **tokens)


_counts = attrgetter(*_TOKENS)


def _text(text: str) -> str:
    """PostgreSQL takes neither U+0000 nor lone surrogates."""
    text = text[:LONGEST_TEXT]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _cannot_be(tokens: int) -> bool:
    return not 0 <= tokens <= MOST_TOKENS
