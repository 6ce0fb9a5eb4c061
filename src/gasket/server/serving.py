"""uvicorn's server, with Gasket's protocol, on sockets that listen already."""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.lifespan.off import LifespanOff

from gasket import logs
from gasket.server.protocol import Connection

log = logging.getLogger("uvicorn.error")


class Server(uvicorn.Server):
    """uvicorn's, which accepts connections before the application has started instead of after.

    There is one listener from the first moment to the last, and no moment at which it is handed over. The application
    has its `connections`, and answers by itself while it is `starting`, which it ends when its start is complete.
    `at_end` is called however it ends, unless the process is killed.
    """

    def __init__(self, config: uvicorn.Config, at_end: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._at_end = at_end

    async def _serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Around this uvicorn catches signals, and raises them again: a SIGTERM ends the process there."""
        try:
            await super()._serve(sockets)
        finally:
            if self._at_end is not None:
                self._at_end()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then start the application; uvicorn's `main_loop` keeps the `Date` of its answers meanwhile."""
        lifespan = self.lifespan
        application: Any = self.config.loaded_app
        application.connections.put_into(lifespan.state)
        application.starting = True
        self.lifespan = LifespanOff(self.config)  # uvicorn starts this one, and then listens
        self.lifespan.state = lifespan.state
        await super().startup(sockets)
        self.lifespan = lifespan
        log.info("Listening on %s", ", ".join(_shown(listener) for listener in sockets or ()))
        ticking = asyncio.create_task(self.main_loop())
        try:
            await lifespan.startup()
        finally:
            ticking.cancel()
        if lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)


def serve(
    application: Any,
    sockets: Sequence[socket.socket],
    *,
    certfile: str | None,
    keyfile: str | None,
    log_format: str | None,
    at_end: Callable[[], None] | None = None,
) -> None:
    """Serve on these sockets until a signal; a start that is refused ends the process with status 3."""
    config = uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        proxy_headers=False,
        workers=1,
        log_config=_log_config(log_format),
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
    )
    with suppress(KeyboardInterrupt):  # raised again once the server has ended
        Server(config, at_end).run(list(sockets))


def _log_config(log_format: str | None) -> dict[str, Any]:
    """uvicorn's own, whose lines come before the application's start too: in the same format, waiting for no reader."""
    changed = copy.deepcopy(LOGGING_CONFIG)
    changed["handlers"]["default"] = {"()": logs.line_handler, "stream": "stderr", "log_format": log_format}
    return changed


def _shown(listener: socket.socket) -> str:
    """`127.0.0.1:8000`, `[::1]:8000`, or the path of a UNIX domain socket."""
    name = listener.getsockname()
    if isinstance(name, str):
        return name
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
