"""The ids of requests."""

from __future__ import annotations

import random
import time

_LONGEST = 128


def new_request_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): milliseconds since 1970, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    bits = random.getrandbits(74)  # an id is no secret: two must not be the same, and that is all
    first = f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{bits >> 62:03x}"
    return f"{first}-{0x8000 | bits >> 48 & 0x3FFF:04x}-{bits & 0xFFFF_FFFF_FFFF:012x}"


def checked_request_id(value: bytes) -> str | None:
    """A client's id is shown and passed on, so it must be short and printable; any other is ignored."""
    if 0 < len(value) <= _LONGEST and value.isascii() and value.decode("ascii").isprintable():
        return value.decode("ascii")
    return None
