"""The code of the link that `gasket run` prints for an embedded installation: it signs in once, as `root`."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable

from gasket.access.service import digest

VALID_FOR = 600.0
"""Seconds."""


class OneTimeCode:
    """At most one code at a time, known to this process alone; of it only the digest is kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._digest: str | None = None
        self._until = 0.0

    def make(self) -> str:
        """A new code: 256 random bits. The one before is void."""
        code = secrets.token_urlsafe(32)
        self._digest, self._until = digest(code), self._clock() + VALID_FOR
        return code

    def use(self, code: str) -> bool:
        """Whether this is the code, for the first time and in time. From then on it is void."""
        if self._digest is None or self._clock() > self._until:
            return False
        if not hmac.compare_digest(digest(code), self._digest):
            return False
        self._digest = None
        return True
