"""All connections of a replica: what they may take of time and memory, and how they are ended."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from gasket.deadlines import Deadlines, Limited

log = logging.getLogger("gasket.server")

LARGEST_HEAD = 64 * 1024
"""Bytes of a request's head, as of a chunked body's trailer; more is 431 (RFC 6585, 5)."""

_STATE_KEY = "gasket_connections"
_FAREWELL = 2.0
"""Seconds that a server which ends has for its clients."""


class Open(Limited, Protocol):
    """One connection."""

    def cut_off(self) -> None:
        """End it now, whatever is still to be sent."""


class Connections:
    """The limits of time, in seconds, of the connections of one server, and those that are open.

    - `idle`: from one request to the first byte of the next one. More than the 60 s for which load balancers keep a
      connection by default: whoever closes first must be the client, else its next request may meet the closing.
    - `hurry`: for a new connection's first byte; for a head from its first byte on; for the rest of a body that nobody
      wants any more; for what is still to be written when a connection is closed.
    - `stalled`: for a client that reads nothing of its answer.
    """

    def __init__(self, *, idle: float = 75.0, hurry: float = 30.0, stalled: float = 300.0) -> None:
        self.idle = idle
        self.hurry = hurry
        self.stalled = stalled
        self.deadlines = Deadlines()
        self.open: set[Open] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """What runs for requests, also for those whose connection is gone."""
        self.leaving = False
        """Each answer is the last one of its connection, and a new connection is not waited for: uvicorn, when it
        stops, tells the connections that it has, and does not see one that it is accepting at that very moment.
        """

    @property
    def first(self) -> float:
        """Seconds for a new connection's first byte."""
        return min(self.hurry, _FAREWELL) if self.leaving else self.hurry

    def hand_over(self, lifespan_state: dict[str, Any]) -> None:
        """Let the server have them: the state of the lifespan is what ASGI has for that (Lifespan Protocol, 2.0)."""
        lifespan_state[_STATE_KEY] = self

    @classmethod
    def of(cls, lifespan_state: dict[str, Any]) -> Connections:
        """Those that the application has handed over; of one that has not, with the usual limits."""
        if _STATE_KEY not in lifespan_state:
            lifespan_state[_STATE_KEY] = cls()
        found: Connections = lifespan_state[_STATE_KEY]
        return found

    def end(self) -> None:
        """Cut off what is still there in a moment: time to be told of the end. A client that reads nothing would
        be waited for as long as it likes, and so would be what runs for one that has gone.
        """
        asyncio.get_running_loop().call_later(_FAREWELL, self.cut_off)

    def cut_off(self) -> None:
        """End all now, and what runs for them."""
        if self.open or self.tasks:
            log.warning("cut off %d connections and %d requests that were still there", len(self.open), len(self.tasks))
        for connection in list(self.open):
            connection.cut_off()
        for task in self.tasks:
            task.cancel()
