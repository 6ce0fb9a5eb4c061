"""Notices that the client has left, or that the replica stops, and then cancels what is done for the request."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any

from litestar.types import Receive

from gasket.deadlines import Deadlines
from gasket.proxy.errors import ClientGoneError, StoppingError

_LISTENS_AFTER = 0.1


class Watch:
    """`async with Watch(receive, deadlines):` around the work for one request, once its body is read.

    It begins to listen to the client after a tenth of a second: one that left before is noticed then, and what is
    answered before does not pay for a task that listens. Leaving the block turns the cancellation that came from here
    into its reason, as `asyncio.timeout` does.

    Raises:
        ClientGoneError: the client closed its connection.
        StoppingError: the replica stops, and the time for its requests is over.
    """

    __slots__ = ("_deadlines", "_listening", "_over", "_reason", "_receive", "_task")

    def __init__(self, receive: Receive, deadlines: Deadlines) -> None:
        self._receive = receive
        self._deadlines = deadlines
        self._listening: asyncio.Future[Any] | None = None
        self._reason: Exception | None = None
        self._over = False

    async def __aenter__(self) -> Watch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._deadlines.set(self, _LISTENS_AFTER)
        return self

    def time_is_up(self) -> None:
        """The deadlines': it is time to listen."""
        self._listening = asyncio.ensure_future(self._receive())
        self._listening.add_done_callback(self._client_left)

    def stop(self) -> None:
        """The replica stops: end this request now."""
        self._interrupt(StoppingError())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._deadlines.clear(self)
        if self._listening is not None:
            self._listening.cancel()
        if self._reason is None:
            return
        if kind is not asyncio.CancelledError:
            # It came too late to interrupt anything, but the task is still marked: take the mark off.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise self._reason from None

    def _client_left(self, listening: asyncio.Future[Any]) -> None:
        if not listening.cancelled():
            listening.exception()
            self._interrupt(ClientGoneError())

    def _interrupt(self, reason: Exception) -> None:
        if not self._over and self._reason is None:
            self._reason = reason
            self._task.cancel()
