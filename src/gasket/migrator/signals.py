"""SIGTERM and SIGINT while the schema is waited for or changed.

uvicorn only notes a signal that comes before start-up is complete, so a replica that waits for the lock would
ignore it for as long as it waits.
"""

from __future__ import annotations

import asyncio
import signal
import sys
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
    signalled = asyncio.Event()
    with _noted(signalled, pass_on=pass_on) as numbers:
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(signalled.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            working.cancel()
            await asyncio.wait({working}, timeout=_CLEANUP_LIMIT)
            if working.done() and not working.cancelled() and working.exception() is None:
                return working.result()  # it was complete before the signal could stop it
            raise MigrationInterruptedError(start=pass_on, complete=working.done(), number=numbers[-1])
        finally:
            stopping.cancel()
            working.cancel()


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Around a whole command: a signal ends the process with one line, and 128 and its number as exit code."""
    try:
        yield
    except MigrationInterruptedError as stopped:
        line, number = str(stopped), stopped.number
    except KeyboardInterrupt:  # where nothing was waited for
        line, number = "Stopped by SIGINT.", signal.SIGINT
    else:
        return
    sys.stderr.write(f"Error: {line}\n")
    sys.exit(128 + number)


@contextmanager
def _noted(signalled: asyncio.Event, *, pass_on: bool) -> Iterator[list[int]]:
    """The numbers of the signals that come inside; the first one sets the event."""
    numbers: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield numbers  # Python delivers signals to the main thread only
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def handler(number: int, frame: FrameType | None) -> None:
        numbers.append(number)
        loop.call_soon_threadsafe(signalled.set)
        before = previous[signal.Signals(number)]
        if pass_on and callable(before):
            before(number, frame)

    for number in _SIGNALS:
        signal.signal(number, handler)
    try:
        yield numbers
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
