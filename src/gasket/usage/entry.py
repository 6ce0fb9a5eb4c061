"""What is recorded of one request, and the form in which PostgreSQL takes it for certain."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

LONGEST_TEXT = 200
"""Characters that are kept of a model's name or a path: both are the client's to choose."""

MOST_TOKENS = 10**9
"""More than this no request has; an upstream that says so must not make the totals run over."""

_MOST_BYTES = 2**62
_LONGEST_MS = 1e9
_MOST = 2**31 - 1


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


def storable(entry: UsageEntry) -> tuple[Any, ...]:
    """The entry's values in the order of its fields; what a client or an upstream can make too large is cut to size."""
    return (
        entry.request_id,
        entry.started_at,
        entry.key_id,
        _text(entry.user_email),
        entry.profile_id,
        entry.backend_id,
        None if entry.model is None else _text(entry.model),
        _text(entry.path),
        _number(entry.status, _MOST),
        _text(entry.outcome),
        None if entry.first_byte_ms is None else _number(entry.first_byte_ms, _LONGEST_MS),
        _number(entry.duration_ms, _LONGEST_MS),
        _number(entry.bytes_in, _MOST_BYTES),
        _number(entry.bytes_out, _MOST_BYTES),
        _number(entry.prompt_tokens, MOST_TOKENS),
        _number(entry.completion_tokens, MOST_TOKENS),
        entry.estimated,
        _number(entry.retries, _MOST),
    )


def _text(text: str) -> str:
    """PostgreSQL takes neither U+0000 nor lone surrogates."""
    text = text[:LONGEST_TEXT]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _number(number: float, most: float) -> float:
    return min(max(number, 0), most)
