"""Limits of time for many waits at once, each of which is hardly ever reached.

A timer of the event loop, and `asyncio.timeout`, which sets one, cost some ten microseconds for each wait, in requests
that take a hundred in all. Here a limit is an entry in a dictionary, which is looked through ten times a second.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Protocol

_LOOKED_THROUGH_EVERY = 0.1


class Limited(Protocol):
    """What waits."""

    def time_is_up(self) -> None:
        """Called once, by the event loop, when the limit is reached."""


class Deadlines:
    """The limits of one event loop. Each is reached at most a tenth of a second late."""

    def __init__(self) -> None:
        self._due: dict[Limited, float] = {}
        self._looking: asyncio.TimerHandle | None = None

    def set(self, waiting: Limited, within: float) -> None:
        """Give it so many seconds from now, in place of what it had."""
        self._due[waiting] = time.monotonic() + within
        if self._looking is None:
            self._look_again(asyncio.get_running_loop())

    def clear(self, waiting: Limited) -> None:
        """It waits no longer."""
        self._due.pop(waiting, None)

    def end(self) -> None:
        """Everybody's time is up, now."""
        for waiting in list(self._due):
            if self._due.pop(waiting, None) is not None:  # one may clear another
                waiting.time_is_up()

    def limit(self, within: float) -> Limit:
        """`with deadlines.limit(seconds):` around an `await` raises TimeoutError, as `asyncio.timeout` does."""
        return Limit(self, within)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = loop.call_later(_LOOKED_THROUGH_EVERY, self._look_through, loop)

    def _look_through(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = None
        now = time.monotonic()
        for waiting in [waiting for waiting, due in self._due.items() if due <= now]:
            if self._due.pop(waiting, None) is not None:  # one may clear another
                waiting.time_is_up()
        if self._due:
            self._look_again(loop)


class Limit:
    """What `Deadlines.limit` returns; it cancels the task that waits, and turns the cancellation into TimeoutError."""

    __slots__ = ("_cancelling", "_deadlines", "_task", "_up", "_within")

    def __init__(self, deadlines: Deadlines, within: float) -> None:
        self._deadlines = deadlines
        self._within = within
        self._up = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.set(self, self._within)

    def time_is_up(self) -> None:
        """See `Limited`."""
        self._up = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.clear(self)
        # Whoever else has cancelled the task meanwhile goes first, as with asyncio.timeout.
        if self._up and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
