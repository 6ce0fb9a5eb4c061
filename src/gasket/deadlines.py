"""Time limits for many waits at once, which are almost never reached.

A timer of the event loop costs some ten microseconds for each wait, and so does `asyncio.timeout`, which sets one. A
whole request takes a hundred. Here a limit is an entry of a dictionary that is checked ten times a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Generator
from functools import partial
from types import TracebackType, coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_CHECK_INTERVAL = 0.1


class Limited(Protocol):
    """An object with a time limit."""

    def time_is_up(self) -> None:
        """The event loop calls this once, when the limit is reached."""


class Deadlines:
    """The time limits of one event loop. Each is reached at most a tenth of a second late."""

    def __init__(self) -> None:
        self._due: dict[Limited, float] = {}
        self._next_check: asyncio.TimerHandle | None = None

    def set(self, waiting: Limited, within: float) -> None:
        """Set its limit to this many seconds from now; replaces the limit that it has."""
        self._due[waiting] = time.monotonic() + within
        if self._next_check is None:
            self._schedule_check(asyncio.get_running_loop())

    def clear(self, waiting: Limited) -> None:
        """Remove its limit, if it has one."""
        self._due.pop(waiting, None)

    def end(self) -> None:
        """All limits are reached now."""
        for waiting in list(self._due):
            if self._due.pop(waiting, None) is not None:  # another's time_is_up may have cleared it
                waiting.time_is_up()

    def limit(self, within: float) -> Limit:
        """`with deadlines.limit(seconds):` around an `await` raises TimeoutError, as `asyncio.timeout` does."""
        return Limit(self, within)

    @coroutine
    def in_time(self, work: Awaitable[T], within: float) -> Generator[Any, Any, T]:
        """`await deadlines.in_time(work, seconds)` is `await work` within a `limit`, which only a wait sets: most reads
        and writes of a request are done at once.
        """
        steps = work.__await__()
        try:
            waits_for = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        with self.limit(within):
            return (yield from _go_on(steps, waits_for))

    def _schedule_check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_check = loop.call_later(_CHECK_INTERVAL, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_check = None
        now = time.monotonic()
        for waiting in [waiting for waiting, due in self._due.items() if due <= now]:
            if self._due.pop(waiting, None) is not None:  # another's time_is_up may have cleared it
                waiting.time_is_up()
        if self._due:
            self._schedule_check(loop)


def _go_on(steps: Generator[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """`yield from steps`, whose first step has been taken and waits for this (PEP 380)."""
    while True:
        try:
            sent = yield waits_for
        except BaseException as error:
            step = partial(steps.throw, error)
        else:
            step = partial(steps.send, sent)
        try:
            waits_for = step()
        except StopIteration as done:
            result: T = done.value
            return result


class Limit:
    """A context manager: it cancels the waiting task at the limit, and turns that cancellation into TimeoutError."""

    __slots__ = ("_cancelling", "_deadlines", "_reached", "_task", "_within")

    def __init__(self, deadlines: Deadlines, within: float) -> None:
        self._deadlines = deadlines
        self._within = within
        self._reached = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.set(self, self._within)

    def time_is_up(self) -> None:
        """See `Limited`."""
        self._reached = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.clear(self)
        # If something else has cancelled the task too, that cancellation goes on, as with asyncio.timeout.
        if self._reached and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
