"""How much of the event loop's time one connection may take: a large read ends its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Reading:
    """Reads from a connection's socket, or does not: while its request wants nothing, and until its next turn.

    libuv reads a socket up to 32 times in a row, 256 KiB each time, unless reading is paused meanwhile.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, at_next_turn: Callable[[], None]
    ) -> None:
        """`at_next_turn` is called in the next turn of the loop, when this one is over; it may end that one, too."""
        self._loop = loop
        self._transport = transport
        self._at_next_turn = at_next_turn
        self._wanted = True
        self._next_turn: asyncio.Handle | None = None

    def pause(self) -> None:
        """Nobody wants more."""
        if self._wanted:
            self._wanted = False
            if self._next_turn is None:
                self._transport.pause_reading()

    def resume(self) -> None:
        """More is wanted."""
        if not self._wanted:
            self._wanted = True
            if self._next_turn is None:
                self._transport.resume_reading()

    def end_turn(self) -> None:
        """Let the other connections have their turn."""
        if self._next_turn is None and not self._transport.is_closing():
            self._next_turn = self._loop.call_soon(self._go_on)
            if self._wanted:
                self._transport.pause_reading()

    def forget(self) -> None:
        """The connection is gone: break the reference cycle, so that no garbage collection is waited for."""
        if self._next_turn is not None:
            self._next_turn.cancel()
        del self._at_next_turn

    def _go_on(self) -> None:
        self._next_turn = None
        self._at_next_turn()
        if self._next_turn is None and self._wanted and not self._transport.is_closing():
            self._transport.resume_reading()
