"""JSON in base64url without padding: as signed tokens have it (RFC 7515, 2), and the cookie of a sign-in."""

from __future__ import annotations

import base64
from typing import TypeVar

import msgspec

T = TypeVar("T")


def encode(data: bytes) -> str:
    """The text for these bytes."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_json(text: str, to: type[T]) -> T:
    """The JSON in a text that anybody may have written.

    Raises:
        ValueError: it is not base64url, or no JSON of this type, or nested too deeply.
    """
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=to)
    except RecursionError:
        raise ValueError("nested too deeply") from None
