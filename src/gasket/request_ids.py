"""The ids of requests."""

from __future__ import annotations

import random
import time

_LONGEST = 128
_LOW_BITS = (1 << 62) - 1


def new_request_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): milliseconds since 1970, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    bits = random.getrandbits(74)  # an id is no secret: two must not be the same, and that is all
    text = f"{milliseconds:012x}{7 << 12 | bits >> 62:04x}{0b10 << 62 | bits & _LOW_BITS:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def checked_request_id(value: bytes) -> str | None:
    """A client's id is shown and passed on, so it must be short and printable; any other is ignored."""
    if 0 < len(value) <= _LONGEST and value.isascii() and value.decode("ascii").isprintable():
        return value.decode("ascii")
    return None
