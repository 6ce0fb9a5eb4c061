"""One request and its answer, as the log tells of it: what is known is filled in on the way."""

from __future__ import annotations

import os
import time
from enum import StrEnum

import msgspec

from gasket.limits.limiter import Grant
from gasket.proxy.access import Access, Backend


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    LIMITED = "limited"
    SHUTDOWN = "shutdown"


CLIENT_GONE_STATUS = 499
"""What the log says of a request whose client did not wait for the answer; nginx's number."""


class Exchange(msgspec.Struct, kw_only=True):
    """Times are in seconds by the monotonic clock, sizes in bytes."""

    request_id: str
    method: str
    path: str
    started: float
    access: Access | None = None
    backend: Backend | None = None
    client_request_id: str | None = None
    model: str | None = None
    streamed: bool = False
    status: int = 0
    outcome: Outcome = Outcome.OK
    error: str | None = None
    retries: int = 0
    failures: tuple[tuple[Backend, str], ...] = ()
    """The tries that failed: which backend, and what kind of failure it was."""
    first_byte: float | None = None
    ended: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    """Whether the tokens are Gasket's own guess."""
    grant: Grant | None = None
    """Where the key or its profile is limited."""

    def note_failure(self, backend: Backend, kind: str) -> None:
        """A try failed; another backend may still make it good."""
        self.failures += ((backend, kind),)


def new_request_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): milliseconds since 1970, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    high = f"{milliseconds:012x}7{random >> 64 & 0xFFF:03x}"
    low = f"{0b10 << 62 | random & (1 << 62) - 1:016x}"
    return f"{high[:8]}-{high[8:12]}-{high[12:]}-{low[:4]}-{low[4:]}"
