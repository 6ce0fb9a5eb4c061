"""One connection: HTTP/1.1 (RFC 9112) on httptools, one request at a time.

Where it differs from uvicorn's own protocol, whose place it takes:

- A client's wish to upgrade is ignored (RFC 9110, 7.8). httptools stops parsing at the head of such a request and calls
  its body another protocol; whoever then goes on parsing takes the body for the next request.
- A head is limited in size and time, and so is everything else that a connection without a request may do.
- What a client sends ahead of its answer is not looked at, and the connection ends with the answer (RFC 9112, 9.3.2).
  So there is always somebody who reads, and notices that the client leaves.
- An HTTP/1.0 client gets no chunks, and trailer fields are dropped (RFC 9110, 6.5.1).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from gasket.proxy.errors import GatewayError, SlowRequestError
from gasket.server.connections import Connections
from gasket.server.parser import Head, RequestParser
from gasket.server.request import Fields, Request, status_line

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

log = logging.getLogger("gasket.server")

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: the connection ends with RST and not with FIN (socket(7))."""


class Connection(asyncio.Protocol):
    """What uvicorn makes for each connection, in the way in which it makes its own protocols."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._application = config.loaded_app
        self._root_path = config.root_path
        self._server = server_state
        self._state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._all = Connections.of(app_state)
        self._parser = RequestParser(self)
        self._request: Request | None = None
        """The one whose body is not complete, or whose answer is not."""
        self._closing = False
        self._reading = True
        self._writing = asyncio.Event()
        self._writing.set()

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by birth
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn lists its own protocols
        self._all.open.add(self)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "root_path": self._root_path,
        }
        self._all.deadlines.set(self, self._all.first)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._all.open.discard(self)
        self._all.deadlines.clear(self)
        self._closing = True
        if self._request is not None:
            self._request.disconnect()
            self._request = None
        self._writing.set()
        self._parser.forget()

    def data_received(self, data: bytes) -> None:
        request = self._request
        if self._closing:
            return
        between = not self._parser.pending if request is None else request.whole
        if between and not data.strip(b"\r\n"):  # RFC 9112, 2.2: empty lines are forgiven
            return
        if request is not None and request.whole:
            request.keep_alive = False
            return
        begun = self._parser.pending
        try:
            self._parser.feed(data)
        except GatewayError as error:
            if self._request is not None and self._request.whole:
                self._request.keep_alive = False  # it was about what has been sent ahead
            else:
                self._refuse(error)
        else:
            if self._parser.pending and not begun and self._request is None:
                self._limit_time()

    def pause_writing(self) -> None:
        self._writing.clear()
        self._limit_time()

    def resume_writing(self) -> None:
        self._writing.set()
        self._limit_time()

    # uvicorn's side.

    def shutdown(self) -> None:
        """The server takes no more requests."""
        if self._request is None or self._request.answered or self._closing:
            self.close()
        else:
            self._request.keep_alive = False

    # The limits'.

    def time_is_up(self) -> None:
        """See `Connections`."""
        if self._closing or not self._writing.is_set():
            self._transport.abort()
        elif self._request is None and self._parser.pending:
            self._refuse(SlowRequestError("The request's head did not arrive in time."))
        else:
            self.close()

    def cut_off(self) -> None:
        """See `Open`."""
        self._transport.abort()

    def _limit_time(self) -> None:
        """For what the connection waits now."""
        request, limits = self._request, self._all
        if self._closing or (request is not None and request.answered):
            limits.deadlines.set(self, limits.hurry)
        elif not self._writing.is_set():
            limits.deadlines.set(self, limits.stalled)
        elif request is None:
            limits.deadlines.set(self, limits.hurry if self._parser.pending else limits.idle)
        else:
            limits.deadlines.clear(self)

    # The request's.

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        self._transport.write(data)

    async def drained(self) -> None:
        """See `Wire`."""
        if not self._writing.is_set():
            await self._writing.wait()

    def pause_reading(self) -> None:
        """See `Wire`."""
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `Wire`."""
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def own_fields(self) -> Fields:
        """See `Wire`."""
        return self._server.default_headers

    def answered(self) -> None:
        """See `Wire`."""
        self._server.total_requests += 1
        request = self._request
        assert request is not None
        if not request.keep_alive:
            self._hang_up(still_sending=not request.whole)
            return
        self.resume_reading()
        if request.whole:
            self._request = None
        self._limit_time()

    def broken_off(self, *, looks_whole: bool) -> None:
        """See `Wire`."""
        if looks_whole and (raw := self._transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self.close()

    # The parser's.

    @property
    def busy(self) -> bool:
        """See `Receiver`."""
        return self._request is not None

    def on_head(self, head: Head) -> None:
        """See `Receiver`."""
        path = head.raw_path.decode("ascii")
        scope = {
            **self._scope,
            "http_version": head.version,
            "method": head.method,
            "path": self._root_path + (unquote(path) if "%" in path else path),
            "raw_path": self._root_path.encode("ascii") + head.raw_path,
            "query_string": head.query,
            "headers": head.fields,
            "state": self._state.copy(),
        }
        self._request = request = Request(
            self,
            scope,
            keep_alive=head.keep_alive and not self._all.leaving,
            expects_continue=head.expects_continue,
        )
        self._limit_time()
        task = self._loop.create_task(request.run(self._application))
        for tasks in (self._all.tasks, self._server.tasks):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def on_body(self, body: bytes) -> None:
        """See `Receiver`."""
        request = self._request
        if request is not None and not request.answered:
            request.take(body)

    def on_end(self, *, keep_alive: bool) -> None:
        """See `Receiver`."""
        request = self._request
        if request is None:
            return
        request.keep_alive = request.keep_alive and keep_alive
        request.end()
        if request.answered:
            self._request = None
            if keep_alive:
                self._limit_time()
            else:
                self.close()

    # The end.

    def close(self) -> None:
        """Once what has been written is sent."""
        self._closing = True
        self._transport.close()
        self._limit_time()

    def _hang_up(self, *, still_sending: bool) -> None:
        """As `close`; what a client is still sending is thrown away, for a closed socket would answer it with a reset,
        which could reach the client before our answer (RFC 9112, 9.6).
        """
        self.resume_reading()
        if still_sending and self._transport.can_write_eof():
            self._closing = True
            self._transport.write_eof()
            self._limit_time()
        else:
            self.close()

    def _refuse(self, error: GatewayError) -> None:
        """Answer what is no request in place of the application."""
        request = self._request
        if self._closing:
            return
        if request is not None:
            request.disconnect()
            if request.started:
                self.close()
                return
        log.info("%s from %s: %s", error.status, self._scope["client"], error)
        if self._parser.for_gateway:
            fields, body = error.headers(), error.body()
        else:
            body = f"{error}\n".encode()
            fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        fields = [*self._server.default_headers, *fields, (b"connection", b"close")]
        lines = [b"%b: %b" % field for field in fields]
        self._transport.write(status_line(error.status) + b"\r\n".join([*lines, b"", body]))
        self._hang_up(still_sending=True)


def _address(name: Sequence[Any] | str | None) -> tuple[str, int | None] | None:
    """Host and port, or the path of a Unix socket."""
    if isinstance(name, str):
        return (name, None) if name else None
    return (str(name[0]), int(name[1])) if name else None
