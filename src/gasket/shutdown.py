"""How a replica leaves: it says so first, then takes nothing new, and lets what runs end, for a limited time."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from litestar import Litestar

log = logging.getLogger("gasket")


class Shutdown:
    """Stands in front of the server's own handler of SIGTERM and SIGINT, once the replica serves.

    On SIGTERM: `announce`; after `delay` seconds the server's handler, which closes the port and waits for what runs;
    after `timeout` more, `stop`. SIGINT has no delay: it comes from a terminal. A second signal goes to the
    server at once.
    """

    def __init__(self, *, delay: float, timeout: float, announce: Callable[[], None], stop: Callable[[], None]) -> None:
        self._delay = delay
        self._timeout = timeout
        self._announce = announce
        self._stop = stop
        self._before: dict[int, Any] = {}
        self._leaving = False

    def install(self, app: Litestar) -> None:
        """Behind all other handlers of the start, in front of all of the end."""
        app.on_startup.append(self._listen)
        app.on_shutdown.insert(0, self._give_back)

    async def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if callable(before) and before is not signal.default_int_handler:  # a server's
                self._before[number] = before
                signal.signal(number, lambda number, frame: self._leave(loop, number, frame))

    def _leave(self, loop: asyncio.AbstractEventLoop, number: int, frame: FrameType | None) -> None:
        if self._leaving:
            self._before[number](number, frame)
            return
        self._leaving = True
        loop.call_soon_threadsafe(self._begin, loop, number)

    def _begin(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        delay = self._delay if number == signal.SIGTERM else 0.0
        log.info(
            "shutting down: accepting requests for %.1f s more, then running requests have %.1f s to end",
            delay,
            self._timeout,
        )
        self._announce()
        loop.call_later(delay, self._before[number], number, None)
        loop.call_later(delay + self._timeout, self._stop)

    async def _give_back(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
