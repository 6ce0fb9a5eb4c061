"""All connections of a replica: their limits of time and memory, and how they end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from gasket.deadlines import Deadlines, Limited

log = logging.getLogger("gasket.server")

LARGEST_HEAD = 64 * 1024
"""Bytes of a request's head; more is 431 (RFC 6585, 5)."""

_STATE_KEY = "gasket_connections"
_SHUTDOWN_GRACE = 2.0
"""Seconds that connections have to end when the server ends."""


class Open(Limited, Protocol):
    """One open connection."""

    def cut_off(self) -> None:
        """End it now, and drop what is not sent yet."""


class Connections:
    """The open connections of one server, and their time limits in seconds.

    - `idle_timeout`: from one request to the first byte of the next. It is more than the 60 s for which load balancers
      keep a connection by default: if the server closes first, the client's next request may be lost.
    - `head_timeout`: for a request's head, from its first byte on. It also limits the wait for a new connection's first
      byte, and for the last bytes to a client when a connection closes.
    - `stall_timeout`: for a client that reads nothing of its answer.
    - `linger_timeout`: for a client that goes on sending a request which has its answer.
    """

    def __init__(
        self,
        *,
        idle_timeout: float = 75.0,
        head_timeout: float = 30.0,
        stall_timeout: float = 300.0,
        linger_timeout: float = 5.0,
    ) -> None:
        self.idle_timeout = idle_timeout
        self.head_timeout = head_timeout
        self.stall_timeout = stall_timeout
        self.linger_timeout = linger_timeout
        self.deadlines = Deadlines()
        self.open: set[Open] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """The tasks that answer requests, also those whose connection is gone."""
        self.shutting_down = False
        """Whether each answer is the last one of its connection, and a new connection has little time. uvicorn tells
        only the connections that it knows to shut down, and misses one that it is just accepting.
        """

    @property
    def first_byte_timeout(self) -> float:
        """Seconds that a new connection has for its first byte."""
        return min(self.head_timeout, _SHUTDOWN_GRACE) if self.shutting_down else self.head_timeout

    def put_into(self, lifespan_state: dict[str, Any]) -> None:
        """Pass them from the application to the server, in the state of the lifespan (ASGI Lifespan Protocol, 2.0)."""
        lifespan_state[_STATE_KEY] = self

    @classmethod
    def from_state(cls, lifespan_state: dict[str, Any]) -> Connections:
        """The connections that the application put there; otherwise new ones with the default limits."""
        if _STATE_KEY not in lifespan_state:
            lifespan_state[_STATE_KEY] = cls()
        found: Connections = lifespan_state[_STATE_KEY]
        return found

    def end(self) -> None:
        """Cut all connections off after a short time, in which clients can still read the end of their answers.

        Without it the server would wait for a client that reads nothing, and for a task whose client has gone.
        """
        asyncio.get_running_loop().call_later(_SHUTDOWN_GRACE, self.cut_off)

    def cut_off(self) -> None:
        """End all connections now, and cancel the tasks of their requests."""
        if self.open or self.tasks:
            log.warning("cut off %d connections and %d requests that had not ended", len(self.open), len(self.tasks))
        for connection in list(self.open):
            connection.cut_off()
        for task in self.tasks:
            task.cancel()
