"""One request and its answer, as the log tells of it: what is known is filled in on the way."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from gasket.limits.limiter import Grant
from gasket.proxy.access import Access, Backend
from gasket.proxy.shares import Share


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
"""The status in the log when the client did not wait for the answer; nginx uses the same number."""


class Exchange(msgspec.Struct, kw_only=True):
    """Times are in seconds by the monotonic clock, sizes in bytes."""

    request_id: str
    method: str
    path: str
    started: float
    access: Access | None = None
    backend: Backend | None = None
    client_request_id: str | None = None
    client: str | None = None
    """The client's address; None over a Unix socket."""
    model: str | None = None
    end_user: str | None = None
    """As the profile's `user_header` names them; for usage records only."""
    asks_for_stream: bool = False
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
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    """Of these the first are part of the prompt's, the second of the completion's, the third of either."""
    estimated: bool = False
    """Whether the tokens are Gasket's own guess."""
    grant: Grant | None = None
    """Where the key or its profile is limited."""
    share: Share | None = None
    """Once the request has been let in."""

    def note_failure(self, backend: Backend, kind: str) -> None:
        """A try failed; another backend may still make it good."""
        self.failures += ((backend, kind),)
