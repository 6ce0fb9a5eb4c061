"""SIGTERM and SIGINT while the schema is waited for or changed.

uvicorn only notes a signal that comes before start-up is complete, so a replica that waits for the lock would
ignore it for as long as it waits.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from gasket.migrator.errors import MigrationInterruptedError

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CLEANUP_LIMIT = 4.0


async def until_signalled(work: Coroutine[Any, Any, T], *, pass_on: bool) -> T:
    """Run `work`; on SIGTERM or SIGINT cancel it, which rolls back and unlocks, within a few seconds.

    `pass_on` hands the signal to the handler that was there before (a server's), too: it is a start.

    Raises:
        MigrationInterruptedError: a signal came first.
    """
    with _signal_event(pass_on=pass_on) as signalled:
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(signalled.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            working.cancel()
            await asyncio.wait({working}, timeout=_CLEANUP_LIMIT)
            if working.done() and not working.cancelled() and working.exception() is None:
                return working.result()  # it was complete before the signal could stop it
            raise MigrationInterruptedError(start=pass_on)
        finally:
            stopping.cancel()
            working.cancel()


@contextmanager
def _signal_event(*, pass_on: bool) -> Iterator[asyncio.Event]:
    event = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # Python delivers signals to the main thread only
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def handler(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(event.set)
        before = previous[signal.Signals(number)]
        if pass_on and callable(before):
            before(number, frame)

    for number in _SIGNALS:
        signal.signal(number, handler)
    try:
        yield event
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
