"""Which backends are not to be asked for the usage of their streams, because they refuse requests that do."""

from __future__ import annotations

import time

from gasket.proxy.access import Backend

_REMEMBERED_FOR = 600.0


class UsageRefusals:
    """A backend is in it for ten minutes, or until it is changed: then it may have learnt it."""

    def __init__(self) -> None:
        self._until: dict[int, tuple[Backend, float]] = {}

    def add(self, backend: Backend) -> None:
        """It refused."""
        now = time.monotonic()
        self._until = {number: known for number, known in self._until.items() if now < known[1]}
        self._until[backend.id] = (backend, now + _REMEMBERED_FOR)

    def __contains__(self, backend: Backend) -> bool:
        same, until = self._until.get(backend.id, (None, 0.0))
        return same is backend and time.monotonic() < until
