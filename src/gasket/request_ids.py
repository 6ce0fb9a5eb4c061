"""The ids of requests."""

from __future__ import annotations

import os
import time

_LONGEST = 128


def new_request_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): milliseconds since 1970, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    high = f"{milliseconds:012x}7{random >> 64 & 0xFFF:03x}"
    low = f"{0b10 << 62 | random & (1 << 62) - 1:016x}"
    return f"{high[:8]}-{high[8:12]}-{high[12:]}-{low[:4]}-{low[4:]}"


def checked_request_id(value: bytes) -> str | None:
    """A client's id is shown and passed on, so it must be short and printable; any other is ignored."""
    if 0 < len(value) <= _LONGEST and value.isascii() and value.decode("ascii").isprintable():
        return value.decode("ascii")
    return None
