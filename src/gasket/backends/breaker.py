"""Circuit breakers: a backend that keeps failing is set aside for a while, then tried with one request.

Each replica keeps its own; nothing here waits, and nothing is stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from gasket.backends.schemas import BackendState

FAILURES = 5
"""So many in a row set a backend aside."""
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0
"""Seconds for which it is set aside: the first time, and at most, for each trial that fails doubles them."""

_MOST = 1000

_log = logging.getLogger("gasket.backends")


class Breaker:
    """Whether requests may go to one backend. `clock` gives seconds and never goes back."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._state: BackendState = "available"
        self._until = 0.0
        self._admission = Admission(self)

    @property
    def state(self) -> BackendState:
        """`set_aside` lasts until a request comes that may try the backend, `trying` until that one has ended."""
        return self._state

    @property
    def retry_after(self) -> float:
        """Seconds until the next trial; 0 when the backend is available, or could be or is being tried."""
        return max(0.0, self._until - self._clock()) if self._state == "set_aside" else 0.0

    @property
    def untouched(self) -> bool:
        """Whether it knows nothing that a new breaker would not."""
        return self._state == "available" and not self._failures

    def admit(self) -> Admission | None:
        """For a request that may go to the backend now. After a pause the first one that asks has the only place."""
        if self._state == "available":
            return self._admission
        if self._state == "trying" or self._clock() < self._until:
            return None
        self._state = "trying"
        self._admission = Admission(self)
        _log.info("Backend %r: one request tries it again.", self.name)
        return self._admission

    def _heeds(self, admission: Admission) -> bool:
        return admission is self._admission and self._state != "set_aside"

    def _succeeded(self) -> None:
        if self._state == "trying":
            _log.info("Backend %r is available again.", self.name)
        self._state = "available"
        self._failures = 0
        self._pause = FIRST_PAUSE

    def _failed(self) -> None:
        self._failures += 1
        if self._state == "trying":
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._set_aside("the trial failed")
        elif self._failures >= FAILURES:
            self._set_aside(f"{FAILURES} failures in a row")

    def _abandoned(self) -> None:
        if self._state == "trying":
            self._state = "set_aside"

    def _set_aside(self, why: str) -> None:
        self._state = "set_aside"
        self._failures = 0
        self._until = self._clock() + self._pause
        _log.warning("Backend %r is set aside for %g s: %s.", self.name, self._pause, why)


class Admission:
    """A request may go to the backend. Whoever has it says once how that ended: `succeeded`, `failed`, or `abandoned`.

    A trial gets a new one, which those share that are admitted after it. What is said through an older one is about the
    time before the backend was set aside, and does not count; nor does anything while it is set aside.
    """

    __slots__ = ("_breaker",)

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def answered(self) -> None:
        """It has begun to answer, which is enough for a trial. Whoever says this says later how the answer ended."""
        if self._breaker._state == "trying":
            self.succeeded()

    def succeeded(self) -> None:
        """The backend answered as it should, to the end."""
        if self._breaker._heeds(self):
            self._breaker._succeeded()

    def failed(self) -> None:
        """It did not answer, not in time, or with an error that is its own fault."""
        if self._breaker._heeds(self):
            self._breaker._failed()

    def abandoned(self) -> None:
        """The request ended without a verdict: its client left, or it was never sent. The next one may try."""
        if self._breaker._heeds(self):
            self._breaker._abandoned()


class Breakers:
    """The breakers of this process, by the backends' ids."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breakers: dict[int, Breaker] = {}

    def of(self, backend_id: int, name: str) -> Breaker:
        """The backend's breaker, under the name that it has now."""
        breaker = self._breakers.get(backend_id)
        if breaker is None:
            self._make_room()
            breaker = self._breakers[backend_id] = Breaker(name, self._clock)
        breaker.name = name
        return breaker

    def state(self, backend_id: int) -> BackendState:
        """The state of any backend; one that was never asked is available."""
        breaker = self._breakers.get(backend_id)
        return breaker.state if breaker else "available"

    def states(self) -> dict[str, BackendState]:
        """By name, of all that were asked. Where an old breaker has the name that a new one has, the new one counts."""
        return {breaker.name: breaker.state for breaker in list(self._breakers.values())}

    def forget(self, backend_id: int) -> None:
        """For a backend that was deleted."""
        self._breakers.pop(backend_id, None)

    def _make_room(self) -> None:
        """Other replicas delete backends, too: keep the breakers that know something, and of those the newest."""
        if len(self._breakers) < _MOST:
            return
        telling = {key: breaker for key, breaker in self._breakers.items() if not breaker.untouched}
        self._breakers = dict(list(telling.items())[-_MOST // 2 :])
