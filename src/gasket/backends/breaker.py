"""Circuit breakers: what keeps failing is set aside for a while, then tried with one request.

A backend and a model are judged together, so that a model which fails takes no other model of its backend along. The
backend as a whole is set aside when it cannot be connected to, or when several of its models fail at once.
Each replica keeps its own breakers; nothing here waits, and nothing is stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, TypeVar

from gasket.backends.schemas import BackendState

FAILURES = 5
"""Failures in a row after which a model, or a backend, is set aside."""
MODELS = 3
"""Models set aside, with no answer of any model in between, after which the whole backend is set aside."""
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0
"""Seconds for which it is set aside: the first time, and at most, for each trial that fails doubles them."""

_MOST = 1000
_MOST_MODELS = 200
"""How many backends, and how many models of one, are remembered. Clients make up names of models."""

_log = logging.getLogger("gasket.backends")

K = TypeVar("K")
B = TypeVar("B", "Breaker", "BackendBreaker")
Notify = Callable[[str, str, Mapping[str, object]], None]
"""Tells people: a type such as `backend.set_aside`, a sentence, and the same for programs. It returns at once."""


def _nobody(*_told: object) -> None:
    """Without a `Notify`, nobody is told."""


class Breaker:
    """Whether requests may go to one backend, or to one model of it. `subject` names it in the log. `clock` gives
    seconds and never goes back.

    `on_change` is told the new state and a sentence when it is set aside, and when it is available again; a trial that
    fails changes nothing.
    """

    def __init__(
        self,
        subject: str,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[BackendState, str], None] = _nobody,
    ) -> None:
        self.subject = subject
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._state: BackendState = "available"
        self.since: datetime | None = None
        """Since when it is available, or since when it is not; None: it was never set aside."""
        self._until = 0.0
        self._admission = Admission(self)

    @property
    def state(self) -> BackendState:
        """`set_aside` lasts until a request comes that may try it again, `trying` until that one has ended."""
        return self._state

    @property
    def retry_after(self) -> float:
        """Seconds until the next trial; 0 when it is available, or could be or is being tried."""
        return max(0.0, self._until - self._clock()) if self._state == "set_aside" else 0.0

    @property
    def untouched(self) -> bool:
        """Whether it knows nothing that a new breaker would not."""
        return self._state == "available" and not self._failures

    def admit(self) -> Admission | None:
        """The admission of a request, or None. After the pause only one request is admitted: the trial."""
        if self._state == "available":
            return self._admission
        if self._state == "trying" or self._clock() < self._until:
            return None
        self._enter("trying")
        self._admission = Admission(self)
        _log.info("%s: one request tries it again.", self.subject)
        return self._admission

    def _is_current(self, admission: Admission) -> bool:
        return admission is self._admission and self._state != "set_aside"

    def _succeeded(self) -> None:
        if self._state == "trying":
            sentence = f"{self.subject} is available again."
            _log.info("%s", sentence)
            self._on_change("available", sentence)
            self._enter("available")
        self._failures = 0
        self._pause = FIRST_PAUSE

    def _enter(self, state: BackendState) -> None:
        if "available" in (state, self._state) and state != self._state:  # a trial that fails changes nothing
            self.since = datetime.now(UTC)
        self._state = state

    def _failed(self) -> None:
        self._failures += 1
        if self._state == "trying":
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self.set_aside("the trial failed")
        elif self._failures >= FAILURES:
            self.set_aside(f"{FAILURES} failures in a row")

    def _abandoned(self) -> None:
        if self._state == "trying":
            self._enter("set_aside")

    def set_aside(self, why: str) -> None:
        """Admit nothing for a while."""
        before = self._state
        self._enter("set_aside")
        self._failures = 0
        self._until = self._clock() + self._pause
        sentence = f"{self.subject} is set aside for {self._pause:g} s: {why}."
        _log.warning("%s", sentence)
        if before == "available":
            self._on_change("set_aside", sentence)


class Admission:
    """The permission to send a request. Its holder reports once how that ended: `succeeded`, `failed` or `abandoned`.

    A trial gets a new admission, and later requests share it. A report through an older one is about the time before
    it was set aside, so it does not count. While it is set aside, no report counts.
    """

    __slots__ = ("_breaker",)

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def answered(self) -> None:
        """The answer has begun, which is enough for a trial. Its end is reported later, as for every admission."""
        if self._breaker._state == "trying":
            self.succeeded()

    def succeeded(self) -> None:
        """The backend answered as it should, to the end."""
        if self._breaker._is_current(self):
            self._breaker._succeeded()

    def failed(self) -> None:
        """It did not answer, not in time, or with an error that is its own fault."""
        if self._breaker._is_current(self):
            self._breaker._failed()

    def abandoned(self) -> None:
        """The request ended without a verdict: its client left, or it was never sent. The next one may try."""
        if self._breaker._is_current(self):
            self._breaker._abandoned()


class SetAside(NamedTuple):
    """Why a request is not admitted: what is set aside, and the seconds until its next trial."""

    subject: str
    retry_after: float


class BackendBreaker:
    """One backend: a breaker for all of it, and one for each of its models."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic, notify: Notify = _nobody) -> None:
        self._clock = clock
        self._notify = notify
        self._models: dict[str | None, Breaker] = {}
        self._fallen: set[str | None] = set()
        """The models that were set aside since any model last answered."""
        self.whole = Breaker("", clock, partial(self._changed, None))
        self.rename(name)

    def rename(self, name: str) -> None:
        """The name that the backend has now."""
        self.name = name
        self.whole.subject = f"Backend {name!r}"

    @property
    def untouched(self) -> bool:
        """Whether it knows nothing that a new one would not."""
        return self.whole.untouched and all(breaker.untouched for breaker in self._models.values())

    @property
    def models_set_aside(self) -> list[str]:
        """The models that are set aside or being tried, in alphabetical order."""
        return sorted(model for model, breaker in self._models.items() if model and breaker.state != "available")

    def admit(self, model: str | None) -> BackendAdmission | SetAside:
        """For a request that may go to the backend now. `model` is None where the request names none."""
        whole = self.whole.admit()
        if whole is None:
            return SetAside(self.whole.subject, self.whole.retry_after)
        breaker = self._of(model)
        part = breaker.admit()
        if part is None:
            whole.abandoned()
            return SetAside(breaker.subject, breaker.retry_after)
        return BackendAdmission(self, model, whole, part)

    def _of(self, model: str | None) -> Breaker:
        breaker = self._models.get(model)
        if breaker is None:
            if len(self._models) >= _MOST_MODELS:
                self._models = _telling(self._models, _MOST_MODELS)
            what = "Requests without a model" if model is None else f"Model {model[:100]!r}"
            subject, on_change = f"{what} of backend {self.name!r}", partial(self._changed, model)
            breaker = self._models[model] = Breaker(subject, self._clock, on_change)
        return breaker

    def _changed(self, model: str | None, state: BackendState, sentence: str) -> None:
        self._notify(f"backend.{state}", sentence, {"backend": self.name, "model": model and model[:100]})

    def _answered(self) -> None:
        self._fallen.clear()

    def _failed(self, model: str | None) -> None:
        """A model was set aside, perhaps: several of them at once are the backend's fault."""
        breaker = self._models.get(model)
        if breaker is None or breaker.state != "set_aside":
            return
        self._fallen.add(model)
        if len(self._fallen) >= MODELS and self.whole.state == "available":
            self._fallen.clear()
            self.whole.set_aside(f"{MODELS} of its models fail")


class BackendAdmission:
    """A request may go to the backend, for its model. As `Admission`; and it may say that nobody was there."""

    __slots__ = ("_breaker", "_model", "_part", "_whole")

    def __init__(self, breaker: BackendBreaker, model: str | None, whole: Admission, part: Admission) -> None:
        self._breaker = breaker
        self._model = model
        self._whole = whole
        self._part = part

    def answered(self) -> None:
        """It has begun to answer. Whoever says this says later how the answer ended."""
        self._part.answered()
        self._whole.answered()

    def succeeded(self) -> None:
        """The model answered as it should, to the end."""
        self._part.succeeded()
        self._whole.succeeded()
        self._breaker._answered()

    def failed(self) -> None:
        """It answered with an error that is its own fault, or not to the end. The backend itself can be reached."""
        self._part.failed()
        if self._breaker.whole.state == "trying":
            self._whole.failed()
        else:
            self._whole.succeeded()
        self._breaker._failed(self._model)

    def unreachable(self) -> None:
        """The backend could not be connected to, which says nothing about the model."""
        self._part.abandoned()
        self._whole.failed()

    def abandoned(self) -> None:
        """The request ended without a verdict: its client left, it was never sent, or the model only was silent."""
        self._part.abandoned()
        self._whole.abandoned()


class Breakers:
    """The breakers of this process, by the backends' ids. `notify` is told what is set aside, and what comes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, notify: Notify = _nobody) -> None:
        self._clock = clock
        self._notify = notify
        self._breakers: dict[int, BackendBreaker] = {}

    def of(self, backend_id: int, name: str) -> BackendBreaker:
        """The backend's breaker, under the name that it has now."""
        breaker = self._breakers.get(backend_id)
        if breaker is None:
            if len(self._breakers) >= _MOST:  # other replicas delete backends, too
                self._breakers = _telling(self._breakers, _MOST)
            breaker = self._breakers[backend_id] = BackendBreaker(name, self._clock, self._notify)
        elif breaker.name != name:
            breaker.rename(name)
        return breaker

    def state(self, backend_id: int) -> BackendState:
        """The state of any backend as a whole; one that was never asked is available."""
        breaker = self._breakers.get(backend_id)
        return breaker.whole.state if breaker else "available"

    def since(self, backend_id: int) -> datetime | None:
        """Since when any backend as a whole is in its state; None: since this process started."""
        breaker = self._breakers.get(backend_id)
        return breaker.whole.since if breaker else None

    def models_set_aside(self, backend_id: int) -> list[str]:
        """The models of any backend that are set aside by themselves."""
        breaker = self._breakers.get(backend_id)
        return breaker.models_set_aside if breaker else []

    def states(self) -> dict[str, BackendState]:
        """The state of each backend that was asked, by name. If two breakers have one name, the newer one counts."""
        return {breaker.name: breaker.whole.state for breaker in list(self._breakers.values())}

    def forget(self, backend_id: int) -> None:
        """Drop the breaker of a deleted backend."""
        self._breakers.pop(backend_id, None)


def _telling(breakers: dict[K, B], most: int) -> dict[K, B]:
    """Those that know something, and of these the newest: at most half of `most`."""
    telling = {key: breaker for key, breaker in breakers.items() if not breaker.untouched}
    return dict(list(telling.items())[-most // 2 :])
